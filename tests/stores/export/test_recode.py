"""Compact copies: lossless to the bit, int8 at the cost that its recipe says, lost and absent rows, chunk headers."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from pipeline.extract.extract import extract
from pipeline.runtime.progress import Silent
from pipeline.tile import tile
from pipeline.tile.options import TileOptions
from stores.errors import CorruptStore, OptionError, RecipeMismatch
from stores.export import export, recode
from stores.export.export import ExportOptions
from stores.format import arrays, features, layout, manifest, recipe
from stores.format.chunks import require_decodable
from stores.format.int8 import Cost, neighbour_overlap, relative_error
from stores.format.metadata import ArraySpec
from stores.io import files
from tests.tools.export import contents, run
from tests.tools.interrupted import Interrupted
from tests.tools.settings import TEACHER

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def lossless(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lossless") / "out"
    run(store, path, compact="lossless")
    return path


@pytest.fixture(scope="module")
def int8(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("int8") / "out"
    run(store, path, compact="int8")
    return path


def test_lossless_keeps_every_bit(store: Path, lossless: Path) -> None:
    assert recipe.load(lossless) == recipe.load(store)
    for slide_id in "abc":
        old, new = features.open_features(store, slide_id), features.open_features(lossless, slide_id)
        for seed in range(3):
            assert old.read_block(seed, 0).tobytes() == new.read_block(seed, 0).tobytes()
        spec = arrays.read_metadata(lossless, layout.feature_array(slide_id, "features"))
        assert spec.compressor == "blosc"
        assert spec.chunks == old.spec.chunks
        plain = zarr.open_array(lossless / "features.zarr" / slide_id / "features", mode="r")
        np.testing.assert_array_equal(
            plain[:], zarr.open_array(store / "features.zarr" / slide_id / "features")[:]
        )
    codecs = json.loads((lossless / "features.zarr/a/features/zarr.json").read_text())["codecs"]
    assert [codec["name"] for codec in codecs] == ["bytes", "blosc", "crc32c"]
    assert codecs[1]["configuration"] == {
        "cname": "zstd", "clevel": 3, "shuffle": "shuffle", "typesize": 2, "blocksize": 1 << 20
    }  # fmt: skip
    copied, made = contents(store), contents(lossless)
    assert made.keys() - copied.keys() == {"options/export.json"}
    assert not copied.keys() - made.keys()
    changed = {name for name in copied if made[name] != copied[name]}
    changed.remove(layout.INDEX)  # it has the bytes of the features
    assert all("/features/" in name or re.fullmatch(r".*\.zarr/(\w+/)?zarr.json", name) for name in changed)


def test_int8_costs_what_its_recipe_says(store: Path, int8: Path) -> None:
    stored = recipe.load(int8)
    assert stored.compact is not None
    errors, sample = [], []
    for slide_id in "abc":
        old, new = features.open_features(store, slide_id), features.open_features(int8, slide_id)
        assert new.spec.dtype == np.int8
        for seed in range(3):
            pair = old.read_block(seed, 0), new.read_block(seed, 0)
            errors.append(relative_error(*pair))
            sample += [pair] if seed == 0 else []
        whole = np.concatenate([old.read_block(s, 0) for s in range(3)]).astype(np.float64)
        assert new.standard is not None
        np.testing.assert_allclose(new.standard, [whole.mean(axis=0), whole.std(axis=0)], rtol=1e-6)
    every = np.concatenate(errors)
    exact, rounded = (np.concatenate([p[i] for p in sample]) for i in (0, 1))
    overlap = neighbour_overlap(exact, rounded)
    assert stored.compact == {
        "kind": "int8",
        "rows": len(every),
        "relative_error": float(f"{every.mean():.3g}"),
        "max_relative_error": float(f"{every.max():.3g}"),
        "nn10_overlap": round(overlap or 0, 4),
        "nn10_rows": sum(len(p[0]) for p in sample),
    }
    assert 0 < stored.compact["relative_error"] < 0.02
    assert replace(stored, compact=None) == recipe.load(store)
    assert stored.digest() != recipe.load(store).digest()


def test_nothing_is_added_to_int8(int8: Path, slides: Path) -> None:
    for call in (
        lambda: extract([slides], int8, TEACHER, TileOptions(), Silent()),
        lambda: tile.tile([slides], int8, TileOptions(), Silent()),
    ):
        with pytest.raises(RecipeMismatch) as caught:
            call()
        assert re.match(r"recipe\.compact: .* is a compact copy in int8, .* use the store", str(caught.value))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["lossless", "int8"])
def test_int8_is_not_compacted_again(int8: Path, tmp_path: Path, kind: str) -> None:
    with pytest.raises(OptionError, match=f"--compact {kind}: .* is a compact copy already \\(int8\\)"):
        run(int8, tmp_path / "o", compact=kind)


def test_a_row_that_could_not_be_read_is_absent(store: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(store, tmp_path / "s"))
    (commit,) = manifest.commits(path, "a")
    rows = commit.read().to_pylist()
    for row in rows:
        if row["row"] == 1:
            row |= {"status": manifest.BAD_READ, "view_crc32": None}
    table = commit.read().schema.empty_table().from_pylist(rows, schema=manifest.VIEWS_SCHEMA)
    manifest.write_commit(path, "a", 0, commit.seeds, table)
    for seed in range(3):
        values = features.open_features(path, "a").read_block(seed, 0).copy()
        values[1] = 60000  # left over from another run: must not be in the statistics
        features.write_block(path, "a", seed, 0, values)
    run(path, tmp_path / "o", compact="int8")
    new = features.open_features(tmp_path / "o", "a")
    block = new.read_block(0, 0)
    assert np.isnan(block[1]).all()
    assert np.isfinite(np.delete(block, 1, axis=0)).all()
    assert new.standard is not None
    assert np.abs(new.standard).max() < 1000


@pytest.mark.parametrize("kind", ["lossless", "int8"])
def test_a_committed_row_that_is_lost_stops_the_export(store: Path, tmp_path: Path, kind: str) -> None:
    path = Path(shutil.copytree(store, tmp_path / "s"))
    (path / "features.zarr/b/features/c/1/0/0").unlink()
    with pytest.raises(CorruptStore, match=r"b seed 1 block 0: .* no finite features"):
        run(path, tmp_path / "o", compact=kind)
    assert not (tmp_path / "o").exists()


def test_a_flipped_bit_stops_the_export(store: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(store, tmp_path / "s"))
    chunk = path / "features.zarr/b/features/c/1/0/0"
    raw = bytearray(chunk.read_bytes())
    raw[100] ^= 4
    chunk.write_bytes(raw)
    with pytest.raises(CorruptStore, match=r"b seed 1 .* damaged chunk"):
        run(path, tmp_path / "o", compact="lossless")


@pytest.mark.parametrize("compressor", ["zstd", "blosc"])
@pytest.mark.parametrize("n", [1, 3, 100, 255, 256, 300, 65535, 65536, 65792, 70000, 3_000_000])
@pytest.mark.parametrize("kind", ["random", "equal"])
def test_what_zarr_writes_is_decodable(compressor: str, n: int, kind: str, tmp_path: Path) -> None:
    """Tiny, incompressible and very compressible chunks, around the sizes where Zstandard's header changes its form."""
    codec = {
        "zstd": zarr.codecs.ZstdCodec(level=1),
        "blosc": zarr.codecs.BloscCodec(cname="zstd", clevel=1, shuffle="shuffle", typesize=2),
    }[compressor]
    held: dict[str, Any] = {}
    array = zarr.create_array(
        zarr.storage.MemoryStore(held),
        shape=(n,),
        chunks=(n,),
        dtype="int8",
        filters=None,
        compressors=[codec, zarr.codecs.Crc32cCodec()],
    )
    rng = np.random.default_rng(0)
    array[:] = rng.integers(-128, 128, n, dtype=np.int8) if kind == "random" else np.int8(3)
    raw = held["c/0"].to_bytes()
    assert len(raw) <= n * 9 // 8 + 1024
    spec = ArraySpec((n,), (n,), np.dtype("int8"), compressor)
    require_decodable(raw[:-4], spec, "x")
    other = ArraySpec((n + 1,), (n + 1,), np.dtype("int8"), compressor)
    with pytest.raises(CorruptStore, match=f"decodes to {n} bytes, expected {n + 1}"):
        require_decodable(raw[:-4], other, "x")
    for name, data in held.items():
        files.write_bytes(tmp_path / "x" / name, data.to_bytes())
    store = arrays.ReadOnlyStore(tmp_path, "x", spec)
    np.testing.assert_array_equal(zarr.open_array(store, mode="r", zarr_format=3)[:], array[:])


@pytest.mark.parametrize("n_rows", [1500, 1025, 40, 1])
def test_slides_of_several_blocks(tmp_path: Path, n_rows: int) -> None:
    """The last chunk reaches beyond the array; blocks that nobody committed stay out."""
    rng = np.random.default_rng(0)
    coords = rng.integers(0, 9999, (n_rows, 2)).astype(np.int32)
    values = (rng.normal(size=(3, n_rows, 8)) * np.arange(1, 9)).astype(np.float16)
    old, new = tmp_path / "old", tmp_path / "new"
    features.create_slide(old, "a", coords, 3, 8)
    blocks = []
    for seed in range(3):
        for block in range(features.n_blocks(n_rows)):
            rows = features.block_range(n_rows, block)
            features.write_block(old, "a", seed, block, values[seed, rows.start : rows.stop])
            if (seed, block) != (2, 0):
                blocks.append(recode.Block(seed, block, np.arange(rows.start, rows.stop, dtype=np.int32)))
    recode.write_lossless(old, "a", blocks, new, "x")
    recode.write_int8(old, "a", blocks, new, "y", Cost(n_rows))
    exact, rounded = features.open_features(new, "x"), features.open_features(new, "y")
    for made in blocks:
        expected = values[made.seed, made.rows]
        np.testing.assert_array_equal(exact.read_block(made.seed, made.block), expected)
        error = relative_error(expected, rounded.read_block(made.seed, made.block))
        assert error.max() < 0.05
    assert np.isnan(exact.read_block(2, 0)).all()
    assert np.isnan(rounded.read_block(2, 0)).all()


def test_rows_that_the_block_does_not_have(store: Path, tmp_path: Path) -> None:
    slide = features.open_features(store, "a")
    rows = np.array([slide.n_rows], np.int32)
    with pytest.raises(CorruptStore, match="a block 0: the manifest lists rows that the block does not have"):
        recode.write_lossless(store, "a", [recode.Block(0, 0, rows)], tmp_path, "a")


def test_a_source_that_grew_since_the_interruption(
    store: Path, slides: Path, tile_options: TileOptions, tmp_path: Path
) -> None:
    path = Path(shutil.copytree(store, tmp_path / "s"))

    with pytest.raises(KeyboardInterrupt):
        export.export(path, tmp_path / "o", ExportOptions(compact="int8"), Interrupted())
    assert (tmp_path / ".o.partial/features.zarr/a/standard/zarr.json").is_file()
    extract([slides], path, replace(TEACHER, seeds=4), tile_options, Silent())
    run(path, tmp_path / "o", compact="int8")
    run(path, tmp_path / "whole", compact="int8")
    assert contents(tmp_path / "o") == contents(tmp_path / "whole")
    assert features.open_features(tmp_path / "o", "a").n_seeds == 4


def test_a_slide_without_features(store: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(store, tmp_path / "s"))
    shutil.rmtree(path / "manifest/views/b")
    run(path, tmp_path / "o", compact="int8")
    assert not (tmp_path / "o/features.zarr/b").exists()
    assert len(manifest.read_patches(tmp_path / "o", "b")) > 0
