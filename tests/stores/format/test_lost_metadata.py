"""Metadata that were lost beside chunks: written again as they were, or refused; no chunk is touched."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from stores.errors import CorruptStore
from stores.export.export import ExportOptions, export
from stores.format import features, layout, manifest, pixels, tokens
from stores.format.index import write_index
from stores.verify.reindex import reindex
from tests.tools.share import wrong
from tests.tools.stores import DIM, PATCH_PX, TOKENS, make_store

ROWS, SEEDS = 70, 3
LEAVES = ("features", "coords", "stats", "tokens", "positions")
ARRAYS = [*(f"features.zarr/a/{leaf}" for leaf in LEAVES), "pixels.zarr/a"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("s") / "s", {"a": ROWS}, with_pixels=True, about=TOKENS)


@pytest.fixture
def store(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "s"))


def files_of(store: Path) -> dict[str, bytes]:
    return {str(path.relative_to(store)): path.read_bytes() for path in store.rglob("*") if path.is_file()}


def create(store: Path, n_seeds: int = SEEDS) -> None:
    """What stage one does before it writes into a slide's arrays."""
    found = manifest.read_patches(store, "a")
    tokens.create_slide(store, "a", ROWS, n_seeds, TOKENS)
    pixels.create_slide(store, "a", ROWS, PATCH_PX)
    features.create_slide(store, "a", np.stack([found.x_px0, found.y_px0], axis=1), n_seeds, DIM)


@pytest.mark.parametrize("array", ARRAYS)
def test_lost_metadata_are_written_again(store: Path, array: str) -> None:
    before = files_of(store)
    (store / layout.metadata_file(array)).unlink()
    create(store)
    assert files_of(store) == before


def test_all_metadata_are_written_again(store: Path) -> None:
    before = files_of(store)
    for path in store.rglob(layout.METADATA):
        path.unlink()
    create(store)
    assert files_of(store) == before


def test_lost_coords_are_written_again(store: Path) -> None:
    before = files_of(store)
    (store / layout.chunk_file("features.zarr/a/coords", (0, 0))).unlink()
    create(store)
    assert files_of(store) == before


def test_metadata_of_a_lossless_copy_are_those_of_its_chunks(store: Path, tmp_path: Path) -> None:
    out = tmp_path / "copy"
    export(store, out, ExportOptions(compact="lossless"))
    before = files_of(out)
    for leaf in ("features", "tokens"):
        (out / layout.metadata_file(f"features.zarr/a/{leaf}")).unlink()
    create(out)
    assert files_of(out) == before


@pytest.mark.parametrize("array", ["features.zarr/a/features", "pixels.zarr/a"])
def test_chunks_of_an_unknown_form_are_not_given_metadata(store: Path, array: str) -> None:
    (store / layout.metadata_file(array)).unlink()
    chunks = [path for path in (store / array).rglob("*") if path.is_file()]
    for path in chunks:
        path.write_bytes(b"of another program")
    before = files_of(store)
    with pytest.raises(CorruptStore, match=rf"cannot be made again, since none of the {len(chunks)} chunks"):
        create(store)
    assert {name: raw for name, raw in files_of(store).items() if name in before} == before


def test_seeds_are_added_to_metadata_alone(store: Path) -> None:
    before = files_of(store)
    create(store, SEEDS + 2)
    after = files_of(store)
    assert set(after) == set(before)
    assert all(after[name] == raw for name, raw in before.items() if not name.endswith(layout.METADATA))
    assert features.open_features(store, "a").n_seeds == SEEDS + 2


def test_reindex_replaces_statistics_of_another_form_in_place(store: Path) -> None:
    """The metadata first, then one chunk after the other: at no moment are they gone."""
    write_index(store)
    before = files_of(store)
    path = store / layout.metadata_file("features.zarr/a/stats")
    path.write_text(path.read_text().replace("float64", "float32"))
    reindex(store)
    assert files_of(store) == before
    assert wrong(store) == []
