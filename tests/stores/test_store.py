"""`stores.open`: what a notebook sees of a store, from a folder and from a URL, and the errors in between."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest

import stores
from pipeline.evaluate.embeddings import from_store
from pipeline.report.gather import gather
from pipeline.report.options import ReportOptions
from pipeline.runtime.progress import Silent
from stores.errors import CorruptStore, OptionError, StoreError
from stores.format import features, layout, manifest, recipe
from stores.info import store_info
from tests.tools.export import run
from tests.tools.made_stores import DIM, RECIPE, MadeSlide, make_store, rows_of
from tests.tools.settings import ROOT

BIG = MadeSlide("big", n_rows=1200, bad=(3, 1100), seeds_apart=1)
HALF = MadeSlide("half", n_rows=1200, blocks=1)
FAILED = MadeSlide("failed", status="failed")
URL = "memory://open/store"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two blocks a slide; read only."""
    return make_store(tmp_path_factory.mktemp("made") / "store", [BIG, FAILED, HALF])


@pytest.fixture
def uploaded(made: Path) -> Iterator[str]:
    memory = fsspec.filesystem("memory")
    for name in layout.list_files(made):
        memory.pipe_file(f"/open/store/{name}", (made / name).read_bytes())
    yield URL
    memory.rm("/open", recursive=True)


@pytest.mark.parametrize("seed", [0, 2])
def test_features_are_those_that_were_written_and_nan_where_there_are_none(made: Path, seed: int) -> None:
    with stores.open(made) as store:
        found = store.features("big", seed)
        assert (found.dtype, found.shape) == (np.float16, (1200, DIM))
        np.testing.assert_array_equal(found, rows_of(BIG)[1][seed])  # NaN in the rows of a bad read
        assert np.flatnonzero(np.isnan(found).any(axis=1)).tolist() == list(BIG.bad)
        half = store.features("half", seed)
        reached = features.block_rows(1200)
        np.testing.assert_array_equal(half[:reached], rows_of(HALF)[1][seed, :reached])
        assert np.isnan(half[reached:]).all()
        assert store.features("failed", seed).shape == (0, DIM)


def test_rows_that_are_written_but_not_committed_are_nan(made: Path, tmp_path: Path) -> None:
    """A chunk comes before its commit: a killed extraction leaves such rows."""
    copy = Path(shutil.copytree(made, tmp_path / "store"))
    for commit in list(manifest.commits(copy, "big")):
        if commit.block == 1:
            commit.path.unlink()
    found = stores.open(copy).features("big")
    assert np.isnan(found[features.block_rows(1200) :]).all()
    assert np.isnan(found).any(axis=1).sum() == 1200 - features.block_rows(1200) + 1


def test_patches_coords_and_views_are_those_of_the_manifest(made: Path) -> None:
    with stores.open(str(made)) as store:
        patches = rows_of(BIG)[0]
        assert store.coords("big").dtype == np.int32
        np.testing.assert_array_equal(store.coords("big"), features.read_coords(made, "big"))
        np.testing.assert_array_equal(store.patches("big").tissue, patches.tissue)
        assert store.coords("failed").shape == (0, 2)
        views = store.views("big")
        assert views.schema == manifest.VIEWS_SCHEMA
        assert views.num_rows == 3 * 1200
        assert set(zip(views["seed"].to_pylist(), views["row"].to_pylist(), strict=True)) == {
            (seed, row) for seed in range(3) for row in range(1200)
        }
        assert store.views("failed").num_rows == 0
        assert [row["slide_id"] for row in store.slides] == ["big", "failed", "half"]
        assert store.slides is store.slides
        assert store.info() == store_info(made)
        assert str(store) == str(made)
        assert store.recipe == RECIPE


def test_a_real_store_reads_as_training_reads_it_compact_or_not(store: Path, tmp_path: Path) -> None:
    """Whole blocks, as the loader decodes them, against the same rows here."""
    run(store, tmp_path / "int8", compact="int8")
    for path in (store, tmp_path / "int8"):
        with stores.open(path) as opened:
            for row in opened.slides:
                source = features.open_features(path, row["slide_id"])
                blocks = [source.read_block(1, block) for block in range(features.n_blocks(source.n_rows))]
                np.testing.assert_array_equal(
                    opened.features(row["slide_id"], seed=1), np.concatenate(blocks)
                )


def test_a_url_gives_the_same_within_its_cache_and_leaves_nothing(
    uploaded: str, made: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    with stores.open(uploaded, cache, cache_gb=0.001) as there, stores.open(made) as here:
        assert str(there) == uploaded
        assert there.recipe == here.recipe
        assert there.slides == here.slides
        for slide_id in ("big", "half", "failed"):
            np.testing.assert_array_equal(there.features(slide_id, 1), here.features(slide_id, 1))
            np.testing.assert_array_equal(there.coords(slide_id), here.coords(slide_id))
            assert there.views(slide_id).equals(here.views(slide_id))
        assert any(cache.rglob("recipe.json"))
    assert list(cache.iterdir()) == []


def test_the_cache_goes_with_the_object_too(uploaded: str, tmp_path: Path) -> None:
    opened = stores.open(uploaded, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir())
    del opened
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_store_that_cannot_be_opened_leaves_no_cache(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="not a store"):
        stores.open("memory://nothing/here", tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
    with pytest.raises(StoreError, match="not a store"):
        stores.open(tmp_path)
    with pytest.raises(OptionError, match="allowed is above 0"):
        stores.open("memory://nothing/here", cache_gb=0)


def test_an_unknown_slide_or_seed_is_one_line_with_what_is_allowed(made: Path) -> None:
    with stores.open(made) as store:
        for call in (store.features, store.coords, store.patches, store.views):
            with pytest.raises(StoreError, match=r"no slide '\.\./x'; allowed: big, failed, half$"):
                call("../x")
        for seed in (-1, 3):
            with pytest.raises(StoreError, match=rf"slide big has no seed {seed}; allowed: 0 to 2$"):
                store.features("big", seed)


def test_many_slides_are_not_all_listed(tmp_path: Path) -> None:
    path = make_store(tmp_path, [MadeSlide(f"s{i}", n_rows=1, n_seeds=1) for i in range(9)])
    with pytest.raises(StoreError, match=r"allowed: s0, s1, s2, s3, s4 and 4 more$"):
        stores.open(path).features("x")


def test_a_lost_chunk_of_a_committed_row_is_corrupt(made: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(made, tmp_path / "store"))
    (copy / "features.zarr" / "big" / "features" / "c" / "0" / "1" / "0").unlink()
    with stores.open(copy) as store:
        assert len(store.features("big", 1)) == 1200
        with pytest.raises(CorruptStore, match="no finite features"):
            store.features("big", 0)


def test_features_of_another_length_than_the_recipe_says_are_corrupt(made: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(made, tmp_path / "store"))
    shutil.rmtree(copy / "features.zarr" / "big")
    features.create_slide(copy, "big", np.zeros((1200, 2), np.int32), 3, DIM + 1)
    with pytest.raises(CorruptStore, match="its manifest and recipe say"):
        stores.open(copy).features("big")


def test_tiles_without_features_are_one_wording(tmp_path: Path) -> None:
    path = make_store(tmp_path / "tiles", [MadeSlide("a", n_seeds=0)], recipe.Recipe(RECIPE.patch))
    with stores.open(path) as store:
        assert store.coords("a").shape == (40, 2)
        message = f"{path}: has no teacher features yet; run `g2l extract-teacher` first"
        for call in (lambda: store.complete, lambda: store.features("a"), lambda: recipe.load_complete(path)):
            with pytest.raises(StoreError) as error:
                call()
            assert str(error.value) == message


def test_a_report_and_the_protocols_say_it_too(tmp_path: Path) -> None:
    path = make_store(tmp_path / "tiles", [MadeSlide("a", n_seeds=0)], recipe.Recipe(RECIPE.patch))
    message = f"{path}: {recipe.NO_FEATURES}"
    with pytest.raises(StoreError) as error:
        from_store(path)
    assert str(error.value) == message
    with pytest.raises(StoreError) as error:
        gather(path, None, ReportOptions(), Silent())
    assert str(error.value) == message


def test_a_complete_recipe_is_the_recipe(made: Path) -> None:
    complete = stores.open(made).complete
    assert complete == recipe.load_complete(made)
    assert complete.teacher.dim == DIM
    assert complete.to_json() == recipe.load(made).to_json()
    assert complete.digest() == recipe.load(made).digest()


def test_the_package_loads_nothing_heavy_and_has_what_it_says() -> None:
    code = """
import sys
import stores
heavy = {"numpy", "zarr", "pyarrow", "fsspec", "torch"} & set(sys.modules)
assert not heavy, heavy
assert stores.errors.StoreError and stores.Recipe and stores.Store and stores.open
assert dir(stores) == ["Recipe", "Store", "errors", "open"]
try:
    stores.opem
except AttributeError as error:
    assert "opem" in str(error)
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
