"""The seam for readers: a new one is tiled, extracted and read in other processes; slides are opened seldom."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import openslide
import pytest

from pipeline.extract.extract import extract
from pipeline.runtime.progress import Silent
from pipeline.slides import registry
from pipeline.slides.openslide_reader import OpenSlideReader
from pipeline.slides.pool import PatchPool
from pipeline.slides.sources import open_slide_source
from pipeline.tile.options import TileOptions
from stores.errors import SlideError
from stores.format import features, manifest, pixels, recipe
from tests.tools.array_reader import ArrayReader
from tests.tools.child_work import reads
from tests.tools.settings import TEACHER


@pytest.fixture
def array_slide(slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Slide ``a`` as a NumPy array, of which only a reader that is registered here knows."""
    with openslide.OpenSlide(slides / "a.tiff") as slide:
        array = np.asarray(slide.read_region((0, 0), 0, slide.dimensions))[:, :, :3]
    path = tmp_path / "in" / "n.npy"
    path.parent.mkdir()
    np.save(path, array)
    monkeypatch.setattr(registry, "READERS", (*registry.READERS, ArrayReader()))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("readers", ["threads", "processes"])
def test_a_reader_of_another_format(array_slide: Path, tmp_path: Path, readers: str) -> None:
    store, options = tmp_path / "s", replace(TEACHER, seeds=1, readers=readers)
    result = extract([array_slide.parent], store, options, TileOptions(), Silent())
    (row,) = manifest.read_slides(store)
    assert (row["slide_id"], row["vendor"], row["mpp"]) == ("n", "numpy", 0.5)
    assert row["n_patches"] == result.views > 0
    assert not result.bad_reads
    array, patches = np.load(array_slide), manifest.read_patches(store, "n")
    kept = pixels.open_pixels(store, "n")
    for i, (x, y) in enumerate(zip(patches.x_px0.tolist(), patches.y_px0.tolist(), strict=True)):
        chunk = kept.read_chunk(i // kept.chunk_rows)
        np.testing.assert_array_equal(chunk[i % kept.chunk_rows], array[y : y + 256, x : x + 256])
    assert np.isfinite(features.open_features(store, "n").read_block(0, 0)).all()


@pytest.mark.slow
def test_workers_read_with_the_reader_that_the_task_brings(array_slide: Path, tmp_path: Path) -> None:
    """A process of its own has the reader in no list of its own: it comes with the source."""
    store = tmp_path / "s"
    extract([array_slide], store, replace(TEACHER, seeds=1, limit=1), TileOptions(), Silent())
    (row,), array = manifest.read_slides(store), np.load(array_slide)
    source = open_slide_source(row, array_slide, recipe.load(store).patch)
    with PatchPool(1, processes=True) as pool:
        found: npt.NDArray[np.uint8] = pool.submit(source, reads, 0, 256, 512).result()
    np.testing.assert_array_equal(found, array[512:768, 256:512])


def test_a_file_goes_to_the_first_reader_that_takes_it(array_slide: Path, slides: Path) -> None:
    assert isinstance(registry.reader_of(array_slide), ArrayReader)
    assert isinstance(registry.reader_of(slides / "a.tiff"), OpenSlideReader)
    assert ".npy" in registry.suffixes()
    renamed = array_slide.with_name("without_ending")
    renamed.write_bytes((slides / "a.tiff").read_bytes())
    assert isinstance(registry.reader_of(renamed), OpenSlideReader)  # by its first bytes


def test_a_file_that_no_reader_takes(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("no slide")
    with pytest.raises(SlideError, match=r"a\.txt: not a slide format that is known; known are .*\.svs"):
        registry.inspect("a", tmp_path / "a.txt")
    with pytest.raises(SlideError, match="b: no such file"):
        registry.inspect("b", tmp_path / "b")


def test_another_file_under_the_same_name(store: Path, slides: Path) -> None:
    row = manifest.read_slides(store)[0]
    with pytest.raises(
        SlideError, match=r"a: b\.tiff is another file than the one that was tiled .*; give that file"
    ):
        open_slide_source(row, slides / "b.tiff", recipe.load(store).patch)


def test_a_slide_is_opened_three_times_before_its_first_patch(
    slides: Path, tile_options: TileOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To tile it, to see that it is the slide that was tiled, and to compare the faster reader with OpenSlide."""
    opened: list[Any] = []
    true_init = openslide.OpenSlide.__init__

    def init(self: openslide.OpenSlide, path: Any) -> None:
        opened.append(path)
        true_init(self, path)

    monkeypatch.setattr(openslide.OpenSlide, "__init__", init)
    path = shutil.copy(slides / "c.tiff", tmp_path)  # no earlier test has compared it
    extract([Path(path)], tmp_path / "s", replace(TEACHER, threads=1), tile_options, Silent())
    assert len(opened) == 3
