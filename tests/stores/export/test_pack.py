"""Packed stores: the same values in few files, read by ours and by Zarr; what is damaged is not packed."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr

from pipeline.distill import train
from pipeline.runtime.progress import Silent
from stores.combine.merge import merge
from stores.combine.subset import Selection, subset
from stores.errors import CorruptStore, G2LError, OptionError
from stores.export.export import ExportOptions, export
from stores.export.pseudonyms import Pseudonyms
from stores.format import arrays, features, layout, manifest, shards
from stores.info import store_info
from stores.remote.objects import Objects
from stores.remote.store import open_store
from stores.verify.reindex import reindex
from stores.verify.seal import seal
from stores.verify.structure import verify_structure
from tests.tools.distill import SHORT
from tests.tools.export import run
from tests.tools.interrupted import Interrupted
from tests.tools.stores import ATTENTION, TOKENS, content, files_of, make_store

MADE_AGAIN = ("options/export.json", "features.zarr/zarr.json", "pixels.zarr/zarr.json")
"""Files that every export writes itself."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("loose") / "store"
    rows = {"a": 40, "b": 1100, "cv": 5, "d": 0}
    return make_store(path, rows, with_pixels=True, about=TOKENS, looks=ATTENTION)


@pytest.fixture(scope="module")
def packed(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("packed") / "store"
    run(made, path, form="packed")
    return path


def test_it_says_the_same_in_fewer_files(made: Path, packed: Path) -> None:
    assert content(packed) == content(made)
    names = [name for name in layout.list_files(packed) if "/c/" in name]
    assert len(names) == 3 * (1 + 6)  # each slide: coords, five arrays beside it, pixels
    assert verify_structure(packed).findings == []
    about = [store_info(store) for store in (made, packed)]
    assert [info.pop("packed") for info in about] == [False, True]
    assert about[0]["recipe_digest"] == about[1]["recipe_digest"]
    assert about[1]["files"] == len(layout.list_files(packed))


def test_zarr_reads_it(made: Path, packed: Path) -> None:
    groups = [zarr.open_group(store / layout.FEATURES, mode="r") for store in (made, packed)]
    for leaf in ("features", "stats", "tokens", "positions", "attention"):
        loose, shard = (group[f"b/{leaf}"] for group in groups)
        assert isinstance(shard, zarr.Array)
        assert shard.shards is not None
        np.testing.assert_array_equal(loose[:], shard[:])  # type: ignore[index]
    loose, shard = (zarr.open_array(store / layout.PIXELS, path="b", mode="r") for store in (made, packed))
    np.testing.assert_array_equal(np.asarray(loose[:]), np.asarray(shard[:]))


def test_the_way_back_ends_at_the_same_bytes(made: Path, packed: Path, tmp_path: Path) -> None:
    run(packed, tmp_path / "loose", form="loose")
    before, after = files_of(made), files_of(tmp_path / "loose")
    assert {name for name in before | after if before.get(name) != after.get(name)} == {
        *MADE_AGAIN,
        layout.INDEX,
    }


def test_a_shard_has_a_bounded_size(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "MAX_READ_BYTES", 100_000)
    run(made, tmp_path / "small", form="packed")
    assert content(tmp_path / "small") == content(made)
    sizes = {name: size for name, size in layout.list_files(tmp_path / "small").items() if "/c/" in name}
    assert len([name for name in sizes if name.startswith("pixels.zarr/b/")]) == 35
    assert len([name for name in sizes if name.startswith("features.zarr/b/tokens/")]) > 1
    assert verify_structure(tmp_path / "small").findings == []
    small, whole = (
        zarr.open_array(p / "features.zarr/b/tokens", mode="r") for p in (tmp_path / "small", made)
    )
    np.testing.assert_array_equal(np.asarray(small[:]), np.asarray(whole[:]))
    run(tmp_path / "small", tmp_path / "loose", form="loose")
    assert content(tmp_path / "loose") == content(made)


def test_a_killed_export_continues(made: Path, packed: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        export(made, out, ExportOptions(form="packed"), Interrupted(2))
    assert not out.exists()
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("features.zarr/b/*/c/**/0")}
    assert written
    run(made, out, form="packed")
    for path, at in written.items():
        assert (out / path.relative_to(tmp_path / ".out.partial")).stat().st_mtime_ns == at
    assert files_of(out) == files_of(packed)


def test_what_is_damaged_is_not_packed(made: Path, packed: Path, tmp_path: Path) -> None:
    name = "features.zarr/b/features/c/1/1/0"
    loose = Path(shutil.copytree(made, tmp_path / "loose"))
    raw = (loose / name).read_bytes()
    (loose / name).write_bytes(raw[:50] + bytes([raw[50] ^ 1]) + raw[51:])
    with pytest.raises(CorruptStore, match=r"features/c/1/1/0: its crc32c differs"):
        run(loose, tmp_path / "out", form="packed")
    (loose / name).write_bytes(raw)
    (loose / "features.zarr/b/features/c/9/0").mkdir(parents=True)
    (loose / "features.zarr/b/features/c/9/0/0").write_bytes(raw)
    with pytest.raises(CorruptStore, match=r"c/9/0/0: is outside of the array's \[3, 2, 1\] chunks"):
        run(loose, tmp_path / "out", form="packed")
    shard = Path(shutil.copytree(packed, tmp_path / "packed")) / "features.zarr/b/features/c/0/0/0"
    shard.write_bytes(shard.read_bytes() + b"hidden")
    with pytest.raises(CorruptStore, match="its index says"):
        run(tmp_path / "packed", tmp_path / "out", form="loose")
    assert not (tmp_path / "out").exists()


def test_one_chunk_is_read_without_the_others(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_store(f"file://{packed}", tmp_path) as found:
        asked: list[int] = []

        def counted(self: Objects, name: str, start: int, length: int) -> bytes | None:
            asked.append(length)
            return get(self, name, start, length)

        get = Objects.get_range
        monkeypatch.setattr(Objects, "get_range", counted)
        values = features.open_features(found, "b").read_block(2, 1)
        np.testing.assert_array_equal(values, features.open_features(packed, "b").read_block(2, 1))
        spec = arrays.read_metadata(packed, "features.zarr/b/features")
        assert asked == [6 * 16 + 4, spec.chunk_bytes + 4]
        assert content(found) == content(packed)  # type: ignore[arg-type]


def test_what_writes_or_copies_single_chunks_refuses_it(made: Path, packed: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(packed, tmp_path / "copy"))
    before = files_of(copy)
    values = features.open_features(copy, "b").read_block(0, 0)
    calls = {
        "block": lambda: features.write_block(copy, "b", 0, 0, values),
        "seeds": lambda: features.create_slide(copy, "b", features.read_coords(copy, "b"), 4, 8),
        "subset": lambda: subset(copy, tmp_path / "out", Selection(slides=("b",))),
        "merge": lambda: merge([copy, made], tmp_path / "out"),
        "compact": lambda: run(copy, tmp_path / "out", compact="lossless"),
        "pseudonyms": lambda: run(copy, tmp_path / "out", pseudonyms=Pseudonyms(b"x" * 16)),
    }
    for name, call in calls.items():
        with pytest.raises(OptionError, match=r"is packed, .* `g2l store export STORE --loose --out DIR`"):
            call()
        assert files_of(copy) == before, name
    assert reindex(copy, prune=True).problems == []
    assert files_of(copy) == before


def test_pruning_spares_shards(tmp_path: Path) -> None:
    """The first shard has the number of the first block, which is not there, and holds the second."""
    store = make_store(tmp_path / "loose", {"b": 1100}, with_pixels=True)
    first, second = manifest.commits(store, "b")
    first.path.unlink()
    assert len(reindex(store, prune=True).leftovers) > 0
    run(store, tmp_path / "packed", form="packed")
    before = files_of(tmp_path / "packed")
    assert reindex(tmp_path / "packed", prune=True).leftovers == []
    assert files_of(tmp_path / "packed") == before
    assert [each.file for each in manifest.commits(tmp_path / "packed", "b")] == [second.file]


def test_options_that_contradict_each_other(made: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="--packed: not together with --pseudonymise or --compact"):
        run(made, tmp_path / "out", form="packed", compact="int8")
    with pytest.raises(G2LError, match="or --packed, or --loose"):
        run(made, tmp_path / "out")


def test_a_packed_store_is_sealed(packed: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(packed, tmp_path / "copy"))
    seal(copy)
    found = verify_structure(copy)
    assert (found.findings, found.sealed) == ([], True)
    run(copy, tmp_path / "again", form="packed", pixels=False)  # packed arrays are copied as they are
    assert verify_structure(tmp_path / "again").findings == []
    assert not (tmp_path / "again" / layout.PIXELS).exists()


@pytest.mark.slow
def test_a_student_of_it_is_the_same_to_the_byte(store: Path, tmp_path: Path) -> None:
    run(store, tmp_path / "packed", form="packed")
    for path in (store, tmp_path / "packed"):
        train.distill(path, tmp_path / f"run-{path.name}", SHORT, False, Silent())
    runs = [tmp_path / f"run-{path.name}" / "student" for path in (store, tmp_path / "packed")]
    assert [len(files_of(run)) > 2 for run in runs] == [True, True]
    assert files_of(runs[0]) == files_of(runs[1])
    assert manifest.count_views(store).equals(manifest.count_views(tmp_path / "packed"))
