"""The loader: views as the teacher saw them, every one once an epoch, the same stream from any position."""

import itertools
import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.data.loader import LoaderOptions, load_views
from pipeline.data.sources import find_sources
from pipeline.slides.sources import StoreSource
from pipeline.views.render import view_crc32
from stores import sampler
from stores.errors import CorruptStore, OptionError, ViewMismatch
from stores.format import features, manifest, pixels, recipe
from stores.format.index import drop_index
from tests.tools.loader import OPTIONS, POLICY, joined, stream


def epoch_views(store: Path) -> int:
    return sum(unit.n_views for unit in sampler.find_units(store, "train", None))


def test_an_epoch_holds_every_view_once_with_its_own_target(store: Path) -> None:
    total = epoch_views(store)
    batches = stream(store, LoaderOptions(1, 40, 1, 0, "all", 2), 0, total)
    expected = {}
    for commit in itertools.chain(manifest.commits(store, "a"), manifest.commits(store, "b")):
        for record in commit.read().to_pylist():
            block = features.open_features(store, record["slide_id"]).read_block(
                record["seed"], record["row"] // 1024
            )
            expected[record["view_crc32"]] = block[record["row"]]
    found = Counter(view_crc32(batch.views[0]) for batch in batches)
    assert found == Counter(dict.fromkeys(expected, 1))
    for batch in batches:
        np.testing.assert_array_equal(batch.targets[0], expected[view_crc32(batch.views[0])])


@pytest.mark.slow
def test_the_stream_is_the_same_from_any_position(store: Path) -> None:
    """Over two epochs, with batches that straddle windows and epochs."""
    total = epoch_views(store)
    batches = 2 * total // 7 + 2
    whole = stream(store, OPTIONS, 0, batches)
    assert whole[-1].epoch == 2
    assert all(len(batch.views) == 7 for batch in whole)
    for at in (1, 6, total // 7, total // 7 + 1, batches - 1):
        assert joined(stream(store, OPTIONS, at * 7, batches - at)) == joined(whole[at:])


def test_the_stream_does_not_depend_on_threads_or_batches(store: Path) -> None:
    few = stream(store, LoaderOptions(7, 40, 2, 3, "none", 1), 0, 10)
    assert joined(few) == joined(stream(store, LoaderOptions(35, 40, 2, 3, "all", 4), 0, 2))


def test_epochs_differ(store: Path) -> None:
    total = epoch_views(store)
    first, second = (stream(store, LoaderOptions(total, 40, 1, 0, "none", 2), at, 1) for at in (0, total))
    assert sorted(map(bytes, first[0].targets)) == sorted(map(bytes, second[0].targets))
    assert joined(first) != joined(second)


def test_slides_and_pixels_give_the_same_views(store: Path, slides: Path, tmp_path: Path) -> None:
    without = Path(shutil.copytree(store, tmp_path / "s", ignore=shutil.ignore_patterns("pixels.zarr")))
    units = sampler.find_units(store, "train", None)
    loaded = []
    for path in (store, without):
        sources = find_sources(path, recipe.load(path), {"a", "b"}, [slides])
        loaded.append(load_views(path, units, sources, POLICY, 2, 9, 2))
    assert joined(loaded[:1]) == joined(loaded[1:])
    with pytest.raises(
        OptionError, match="slide a: the store keeps no pixels of it; give the slides with --slides"
    ):
        find_sources(without, recipe.load(without), {"a"}, [])
    with pytest.raises(OptionError, match="slide c: the store keeps no pixels of it; not found in"):
        find_sources(without, recipe.load(without), {"c"}, [slides / "a.tiff"])


def test_a_changed_pixel_is_noticed(store: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(store, tmp_path / "s"))
    kept = pixels.open_pixels(path, "a")
    n_chunks = -(-kept.spec.shape[0] // kept.chunk_rows)
    patches = np.concatenate([kept.read_chunk(index) for index in range(n_chunks)])
    patches[:, 100, 100, 0] ^= 1
    shutil.rmtree(path / "pixels.zarr/a")
    pixels.create_slide(path, "a", len(patches), 256)
    pixels.write_rows(path, "a", 0, patches)
    with pytest.raises(
        ViewMismatch, match=r"slide a row \d+ \(\d+,\d+\) seed \d: the rebuilt view has crc32"
    ):
        stream(path, OPTIONS, 0, 99)


def test_fewer_patches_than_the_manifest_lists(store: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(store, tmp_path / "s"))
    file = path / "pixels.zarr/a/zarr.json"
    about = json.loads(file.read_text())
    about["shape"][0] = 5
    file.write_text(json.dumps(about))
    with pytest.raises(CorruptStore, match=r"keeps 5 patches of slide a, and the manifest lists row \d+"):
        stream(path, OPTIONS, 0, 99)


def test_a_changed_parameter_is_noticed(store: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(store, tmp_path / "s"))
    commit = next(manifest.commits(path, "a"))
    table = commit.read()
    drawn = zip(table["hflip"].to_pylist(), table["seed"].to_pylist(), strict=True)
    flipped = pa.array([value != (seed > 0) for value, seed in drawn])
    pq.write_table(table.set_column(table.column_names.index("hflip"), "hflip", flipped), commit.path)
    drop_index(path)
    with pytest.raises(ViewMismatch, match="slide a row"):
        stream(path, OPTIONS, 0, 99)


def test_a_lost_chunk_stops_training(store: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(store, tmp_path / "s"))
    (path / "features.zarr/b/features/c/1/0/0").unlink()
    with pytest.raises(CorruptStore, match=r"b seed 1 block 0: \d+ committed rows have no finite features"):
        stream(path, OPTIONS, 0, 99)


def test_load_views_spreads_over_slides(store: Path) -> None:
    units = sampler.find_units(store, "train", 1)
    sources = {name: StoreSource(name, store) for name in "ab"}
    batch = load_views(store, units, sources, POLICY, 0, 6, 2)
    assert batch.views.shape == (6, 224, 224, 3)
    assert batch.targets.shape == (6, 24)
    everything = load_views(store, units, sources, POLICY, 0, 10_000, 2)
    assert len(everything.views) == sum(len(unit.rows) for unit in units)


def test_a_sample_is_of_few_blocks_unless_they_have_too_few_views(store: Path) -> None:
    """Each costs a record and the patches of its slide: a store of 1,000 slides took a minute to begin."""
    units = sampler.find_units(store, "train", 1)
    assert len(units) == 2
    sources = {name: StoreSource(name, store) for name in "ab"}
    first = len(units[0].rows)
    for n_views, of in ((first, units[:1]), (first + 1, units)):
        found = load_views(store, units, sources, POLICY, 0, n_views, 2, blocks=1)
        assert joined([found]) == joined([load_views(store, of, sources, POLICY, 0, n_views, 2)])
    assert joined([load_views(store, units, sources, POLICY, 0, first, 2)]) != joined(
        [load_views(store, units, sources, POLICY, 0, first, 2, blocks=1)]
    )
