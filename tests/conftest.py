"""Fixtures shared by the tests: the shared real data, small slides written on the spot, a small finished store."""

import multiprocessing
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from stores.format.index import write_index
from tests.tools.settings import SHARED, TEACHER, VIT

os.environ["OMP_NUM_THREADS"] = (
    "1"  # before torch loads, here and in child processes: tiny models gain nothing from more
)

from pipeline.demo.synthetic_slides import write_slide
from pipeline.extract.extract import extract
from pipeline.runtime.progress import Silent
from pipeline.tile.options import TileOptions
from tests.tools.pairs import write_pairs

# No test cuts the power, and those of the order of flushes trace child processes. What the tests write in their own
# process does not wait for the disk.
os.fsync = os.fstat  # type: ignore[assignment]

# There is one server for all processes of the tests. The first test that needs it decides what it has imported: without
# this a DataLoader of `test_dataset.py` did, and each start of a kill test then took seven seconds instead of one.
multiprocessing.set_forkserver_preload(["tests.tools.kill"])


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real files; tests that ask for it are skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("the folder of real slides is not beside the checkout")
    return SHARED


@pytest.fixture(scope="session")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three small slides and a CSV that puts ``c`` into the validation split."""
    folder = tmp_path_factory.mktemp("slides")
    for seed, name in enumerate("abc"):
        write_slide(folder / f"{name}.tiff", seed=seed, width_px=1536, height_px=1536)
    (folder / "slides.csv").write_text(
        "slide_id,patient_id,split,site\na,p1,train,x\nb,p2,train,y\nc,p3,val,x\n"
    )
    return folder


@pytest.fixture(scope="session")
def tile_options(slides: Path) -> TileOptions:
    return TileOptions(slides_csv=slides / "slides.csv")


@pytest.fixture(scope="session")
def store(slides: Path, tile_options: TileOptions, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished store of the three slides with pixels. Read only: copy it to damage it."""
    path = tmp_path_factory.mktemp("store") / "store"
    extract([slides], path, TEACHER, tile_options, Silent())
    return path


@pytest.fixture(scope="session")
def token_store(slides: Path, tile_options: TileOptions, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished store with five patch tokens of every view. Read only: copy it to damage it."""
    path = tmp_path_factory.mktemp("tokens") / "store"
    extract([slides], path, replace(TEACHER, teacher=VIT, tokens=5), tile_options, Silent())
    return path


@pytest.fixture(scope="session")
def paired(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished store of 24 places, as three scanners show 20 of them and one shows 4, with pixels. Read only."""
    folder = tmp_path_factory.mktemp("paired")
    table = write_pairs(folder / "tiles", range(24), alone=4)
    teacher = replace(TEACHER, teacher="tests.tools.tiny:teacher_of_64_px", threads=1)
    extract([table], folder / "store", teacher, TileOptions(patch=64), Silent())
    return folder / "store"


@pytest.fixture(scope="session")
def small(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished store without its pixels, to be copied and damaged."""
    path = tmp_path_factory.mktemp("small") / "store"
    shutil.copytree(store, path)
    shutil.rmtree(path / "pixels.zarr")
    write_index(path)
    return path


@pytest.fixture
def copy(small: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small, tmp_path / "copy"))
