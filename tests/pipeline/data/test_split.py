"""A split of a store: what reads its pixels, also when they come over a network."""

from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

import stores
from pipeline.data.dataset import ViewDataset
from pipeline.data.split import Split, files_and_recipe, open_split
from stores.errors import OptionError
from tests.pipeline.data.test_dataset import SETTINGS, expected, of_dataset, taken


@pytest.fixture
def url(store: Path, small: Path) -> Iterator[str]:
    """The store in fsspec's memory, which is read as any remote store is; beside it the store without pixels."""
    memory = fsspec.filesystem("memory")
    memory.put(f"{store}/", "/shelf/store/", recursive=True)
    memory.put(f"{small}/", "/shelf/small/", recursive=True)
    yield "memory://shelf/store"
    memory.rm("/shelf", recursive=True)


def split_of(store: Path | stores.Store) -> Split:
    return open_split(*files_and_recipe(store), "train", None)


def test_who_reads_pixels(store: Path, slides: Path, url: str) -> None:
    local = split_of(store)
    assert [local.readers_are_processes(readers, True) for readers in ("auto", "threads", "processes")] == [
        1,
        0,
        1,
    ]
    assert not local.readers_are_processes("auto", False)
    with stores.open(url) as opened:
        remote = split_of(opened)
        assert not remote.readers_are_processes("auto", True)
        with pytest.raises(OptionError, match=r"memory://shelf/store come over a network .* use threads"):
            remote.readers_are_processes("processes", False)
    # pixels from slide files, which processes open themselves
    with stores.open("memory://shelf/small") as opened:
        of_slides = open_split(opened.files, opened.complete, "train", None, [slides])
        assert of_slides.readers_are_processes("auto", True)


def test_a_dataset_behind_a_url(store: Path, url: str) -> None:
    """In one process; workers are refused instead of hanging on a copied connection."""
    dataset = ViewDataset(url, **SETTINGS)
    assert of_dataset(taken(dataset, 4, 0)) == expected(store, 4)
    for context in ("forkserver", "spawn"):
        with pytest.raises(OptionError, match="cannot be read by workers of a DataLoader"):
            taken(dataset, 4, 1, context)
    with pytest.raises(OptionError, match="readers processes: the pixels of memory:"):
        ViewDataset(url, readers="processes", **SETTINGS)
