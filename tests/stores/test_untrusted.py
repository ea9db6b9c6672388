"""Stores by somebody with bad intentions: nothing is written outside, unpickled, imported or allocated for them."""

import dataclasses
import json
import os
import pickle
import resource
import shutil
import struct
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import cli
from stores.combine.subset import Selection, subset
from stores.errors import CorruptStore, G2LError
from stores.export.export import ExportOptions, export
from stores.export.pseudonyms import Pseudonyms
from stores.format import arrays, features, manifest, pixels, recipe
from stores.format.chunks import read_chunk
from stores.info import store_info
from stores.verify.structure import verify_structure
from tests.tools.stores import make_store

pytestmark = pytest.mark.slow


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return make_store(tmp_path / "store", {"a": 40, "b": 5}, with_pixels=True)


def everything(store: Path, out: Path) -> list[str]:
    """What every reading command says of a store; none may end in anything but a finding or one line."""
    said = []
    work: dict[str, Any] = {
        "info": lambda: store_info(store),
        "verify": lambda: [str(f) for f in verify_structure(store).findings],
        "subset": lambda: subset(store, out / "subset", Selection(seeds=1)),
        "lossless": lambda: export(store, out / "lossless", ExportOptions(compact="lossless")),
        "int8": lambda: export(store, out / "int8", ExportOptions(compact="int8")),
        "pseudonyms": lambda: export(
            store, out / "pseudonyms", ExportOptions(pseudonyms=Pseudonyms(b"x" * 16))
        ),
    }
    for name, call in work.items():
        try:
            said.append(f"{name}: {call()}")
        except G2LError as error:
            said.append(f"{name}: error: {error}")
    assert not any("\n" in text for text in said if ": error: " in text)
    for command in (["info"], ["verify"], ["card"]):
        done = CliRunner().invoke(cli.g2l, ["store", *command, str(store)])
        assert done.exit_code in (0, 1, 2), done.output
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        said.append(done.output)
    return said


def metadata(store: Path, name: str, **changes: Any) -> None:
    path = store / name / "zarr.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def grid(*chunk: int) -> dict[str, Any]:
    return {"name": "regular", "configuration": {"chunk_shape": list(chunk)}}


HUGE = 10**12


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("features.zarr/a/features", {"shape": [3, HUGE, 8]}),
        ("features.zarr/a/features", {"shape": [3, 2_000_000_000, 8]}),
        ("features.zarr/a/features", {"shape": [2_000_000_000, 40, 8]}),
        ("features.zarr/a/features", {"shape": [3, 40, 2_000_000_000], "chunk_grid": grid(1, 64, 2_000_000_000)}),
        ("features.zarr/a/features", {"chunk_grid": grid(3, HUGE, 8)}),
        ("features.zarr/a/coords", {"shape": [2_000_000_000, 2], "chunk_grid": grid(40, 2)}),
        ("features.zarr/a/stats", {"shape": [3, 2_000_000_000, 2, 8]}),
        ("pixels.zarr/a", {"shape": [2_000_000_000, 32, 32, 3]}),
        ("pixels.zarr/a", {"shape": [40, 100_000, 100_000, 3], "chunk_grid": grid(32, 100_000, 100_000, 3)}),
        ("features.zarr/a/features", {"data_type": "object"}),
        ("features.zarr/a/features", {"data_type": "variable_length_bytes"}),
        ("features.zarr/a/features", {"data_type": {"name": "numpy.void", "configuration": {}}}),
        ("features.zarr/a/features", {"codecs": [{"name": "numcodecs.pickle"}, {"name": "crc32c"}]}),
        ("features.zarr/a/features", {"codecs": [{"name": "sharding_indexed"}, {"name": "crc32c"}]}),
        ("features.zarr/a/features", {"codecs": [{"name": "bytes"}, {"name": "gzip"}, {"name": "crc32c"}]}),
        ("features.zarr/a/features", {"codecs": "zstd"}),
        ("features.zarr/a/features", {"shape": [3, -1, 8]}),
        ("features.zarr/a/features", {"shape": [True, 40, 8]}),
        ("features.zarr/a/features", {"chunk_grid": grid(1, 0, 8)}),
        ("features.zarr/a/features", {"node_type": "group"}),
        ("features.zarr/a/features", {"storage_transformers": [{"name": "evil"}]}),
    ],
)  # fmt: skip
def test_shapes_types_and_codecs_are_judged_before_memory_is_taken(
    store: Path, tmp_path: Path, name: str, changes: dict[str, Any]
) -> None:
    metadata(store, name, **changes)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    said = everything(store, tmp_path)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 300_000, f"{grown} kB"
    findings = [str(f) for f in verify_structure(store).findings]
    assert any(name in text for text in findings), said


def zstd_bomb(size: int, real: bool = False) -> bytes:
    """A frame that says it decodes to `size` bytes, with a right crc32c; a real one does, from runs of 128 kB."""
    body = b"\x28\xb5\x2f\xfd" + bytes([0b11100000]) + struct.pack("<Q", size)
    runs = size >> 17 if real else 1
    for number in range(runs):
        last = number == runs - 1
        body += struct.pack("<I", last | 1 << 1 | 1 << 17 << 3)[:3] + b"\0"
    return body + struct.pack("<I", google_crc32c.value(body))


@pytest.mark.parametrize(
    "raw",
    [
        zstd_bomb(1 << 30, real=True),
        zstd_bomb(10**12),
        zstd_bomb(1 << 34),
        b"\x02\x01\x01\x02" + struct.pack("<III", (1 << 31) - 1, 1 << 20, 16) + b"\0" * 16,
        b"",
        b"\x28\xb5\x2f\xfd\x00",
    ],
)
def test_a_chunk_that_decodes_to_more_than_its_array_says(store: Path, raw: bytes) -> None:
    (store / "pixels.zarr/a/c/0/0/0/0").write_bytes(raw)
    for blosc in (False, True):
        if blosc:
            codec = {"name": "blosc", "configuration": {"typesize": 1, "cname": "zstd", "clevel": 1,
                     "shuffle": "noshuffle", "blocksize": 0}}  # fmt: skip
            metadata(store, "pixels.zarr/a", codecs=[{"name": "bytes"}, codec, {"name": "crc32c"}])
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(CorruptStore):
            pixels.open_pixels(store, "a").read_chunk(0)
        with pytest.raises(CorruptStore):
            read_chunk(store, "pixels.zarr/a", arrays.read_metadata(store, "pixels.zarr/a"), (0, 0, 0, 0))
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


def test_the_bomb_is_a_real_one() -> None:
    import numcodecs

    assert len(numcodecs.Zstd().decode(zstd_bomb(1 << 20, real=True)[:-4])) == 1 << 20


@pytest.mark.parametrize(
    "slide_id", ["../../evil", "/etc/evil", "..", "a/../../b", "a\x00b", "a\\b", "zarr.json", ""]
)
def test_slide_ids_never_become_paths(store: Path, tmp_path: Path, slide_id: str) -> None:
    before = {p for p in tmp_path.rglob("*") if store not in p.parents}
    rows = manifest.read_slides(store)
    rows[0]["slide_id"] = slide_id
    manifest.write_slides(store, rows)
    said = everything(store, tmp_path / "out")
    assert sum("slide id" in text for text in said) >= 6
    assert {p for p in tmp_path.rglob("*") if store not in p.parents} <= before | {tmp_path / "out"}


def test_slide_ids_inside_commit_records(store: Path, tmp_path: Path) -> None:
    commit = next(manifest.commits(store, "a"))
    table = commit.read()
    column = pa.array(["../../evil"] * table.num_rows)
    at = table.column_names.index("slide_id")
    manifest.write_commit(store, "a", 0, commit.seeds, table.set_column(at, "slide_id", column))
    everything(store, tmp_path / "out")
    assert not list(tmp_path.rglob("*evil*"))
    assert any("expected 'a'" in str(f) for f in verify_structure(store).findings)


def test_folders_with_evil_names(store: Path, tmp_path: Path) -> None:
    for name in ("manifest/views/-rf", "manifest/views/a b", "features.zarr/.hidden"):
        (store / name).mkdir()
        (store / name / "00000-s0000-0000.parquet").write_bytes(b"x")
    everything(store, tmp_path / "out")
    assert sum(f.kind == "stray" for f in verify_structure(store).findings) >= 3


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    store = make_store(tmp_path / "one", {"a": 5}, records=[range(1)])
    proof = tmp_path / "unpickled"
    data = pickle.dumps(Evil(proof))
    pickle.loads(data)
    assert proof.exists()
    proof.unlink()
    for path in [p for p in store.rglob("*") if p.is_file()]:
        whole = path.read_bytes()
        path.write_bytes(data)
        everything(store, tmp_path / "out")
        path.write_bytes(whole)
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
    table = pa.table({"slide_id": pa.array([data])})
    pq.write_table(table, store / "manifest/slides.parquet")
    everything(store, tmp_path / "out")
    assert not proof.exists()


def test_the_function_that_a_recipe_names_is_not_imported(store: Path, tmp_path: Path) -> None:
    """In a process of its own, where nothing else can have imported it; with every command that reads a store."""
    (tmp_path / "evil_encoder.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w')\ndef make(): ...\n")
    stored = recipe.load(store)
    assert stored.teacher is not None
    recipe.save(
        store,
        dataclasses.replace(stored, teacher=dataclasses.replace(stored.teacher, name="evil_encoder:make")),
    )
    (tmp_path / "key").write_text("0123456789abcdef")
    s, out = str(store), str(tmp_path)
    commands = [
        ["store", "info", s],
        ["store", "verify", s, "--views"],
        ["store", "card", s],
        ["store", "subset", s, "--out", f"{out}/1", "--seeds", "1"],
        ["store", "merge", s, f"{out}/1", "--out", f"{out}/2"],
        ["store", "export", s, "--out", f"{out}/3", "--compact", "int8", "--pseudonymise", f"{out}/key"],
        ["store", "push", s, f"file://{out}/4"],
        ["store", "pull", f"file://{out}/4", f"{out}/5"],
        ["store", "reindex", s],
        ["store", "seal", s],
        [
            "distill",
            "--store",
            s,
            "--student",
            "tests.tools.tiny:student",
            "--random-weights",
            "0",
            "--out",
            f"{out}/6",
        ],
    ]
    script = (
        "import json, sys, click.testing, cli\n"
        "for arguments in json.loads(sys.argv[1]):\n"
        "    done = click.testing.CliRunner().invoke(cli.g2l, arguments)\n"
        "    print(arguments[:2], done.exit_code, done.output[-300:])\n"
        "    assert done.exit_code in (0, 1, 2), (arguments, done.exception)\n"
        "assert 'evil_encoder' not in sys.modules"
    )
    env = os.environ | {"PYTHONPATH": f"{os.getcwd()}{os.pathsep}{tmp_path}"}
    done = subprocess.run(
        [sys.executable, "-c", script, json.dumps(commands)], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert not (tmp_path / "imported").exists()
    assert (tmp_path / "2/recipe.json").is_file()
    assert (tmp_path / "5/recipe.json").is_file()


@pytest.mark.parametrize("target", ["/etc/hostname", "/dev/zero", "/"])
def test_links_are_not_followed_out_of_a_store(store: Path, tmp_path: Path, target: str) -> None:
    chunk = store / "features.zarr/a/features/c/0/0/0"
    chunk.unlink()
    chunk.symlink_to(target)
    said = everything(store, tmp_path / "out")
    assert sum("symbolic link" in text for text in said) >= 5
    with pytest.raises(CorruptStore):
        features.open_features(store, "a").read_block(0, 0)
    assert not list((tmp_path / "out").glob("*"))


def test_a_pipe_does_not_hang(store: Path) -> None:
    chunk = store / "features.zarr/a/features/c/0/0/0"
    chunk.unlink()
    os.mkfifo(chunk)
    with pytest.raises(CorruptStore, match="not a file"):
        features.open_features(store, "a").read_block(0, 0)
    assert verify_structure(store).findings


def test_a_zip_file_is_no_store(tmp_path: Path) -> None:
    """Zarr would open one, members with ../ included."""
    path = tmp_path / "store.zip"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("../evil", "x")
        file.writestr("recipe.json", "{}")
    for command in ("info", "verify"):
        done = CliRunner().invoke(cli.g2l, ["store", command, str(path)])
        assert done.exit_code == 2, done.output
    assert not (tmp_path.parent / "evil").exists()


def test_a_zip_file_in_place_of_an_array(store: Path, tmp_path: Path) -> None:
    folder = store / "features.zarr/a/features"
    shutil.rmtree(folder)
    with zipfile.ZipFile(folder, "w") as file:
        file.writestr("zarr.json", "{}")
    everything(store, tmp_path / "out")
    assert verify_structure(store).findings


@pytest.mark.parametrize(
    "text",
    ["", "[]", "null", "{}", "NaN", '{"schema": 1e999}', "[" * 100_000, '{"schema": 2}', '{"schema": true}',
     '{"schema": 1, "patch": {"mpp": NaN}}', '{"schema": ' + "9" * 5000 + "}", "\ufeff{}", '{"a": "\\ud800"}'],
    ids=range(13),
)  # fmt: skip
def test_recipes_of_any_form(store: Path, tmp_path: Path, text: str) -> None:
    (store / "recipe.json").write_text(text)
    said = everything(store, tmp_path / "out")
    assert any("recipe.json" in line for line in said)


@pytest.mark.parametrize("depth", [17, 450, 600, 900])
def test_recipes_that_are_nested_deep(store: Path, tmp_path: Path, depth: int) -> None:
    """Deep enough for Python's recursion limit in a copy, not deep enough for that of the JSON parser."""
    value = json.loads((store / "recipe.json").read_text())
    del value["digest"]
    text = json.dumps(value).replace('"name": "g2l"', f'"name": {"[" * depth}{"]" * depth}')
    assert "[" * depth in text
    (store / "recipe.json").write_text(text)
    said = everything(store, tmp_path / "out")
    assert sum("nested more than" in line for line in said) >= 7


def test_a_parquet_file_that_says_it_has_more_than_memory(store: Path, tmp_path: Path) -> None:
    """A million million equal rows take a few kilobytes on disk."""
    n = 30_000_000
    schema = manifest.PATCHES_SCHEMA
    columns = [np.zeros(n, field.type.to_pandas_dtype()) for field in schema]
    pq.write_table(pa.table(columns, schema=schema), store / "manifest/patches/a.parquet", compression="zstd")
    assert (store / "manifest/patches/a.parquet").stat().st_size < 1_000_000
    with pytest.raises(CorruptStore, match=r"30000000 rows in \d+ groups; at most"):
        manifest.read_patches(store, "a")


def test_deep_folders_and_many_names(store: Path, tmp_path: Path) -> None:
    deep = store / "/".join(["x"] * 200)
    deep.mkdir(parents=True)
    (deep / "f").touch()
    everything(store, tmp_path / "out")
    assert verify_structure(store).findings


BLOSC = struct.Struct("<4B3I")
PLAIN_BLOSC = BLOSC.pack(2, 1, 0x83, 2, 1024, 1024, 1040)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (PLAIN_BLOSC, "says that it has 1040 bytes, and has 16"),
        (PLAIN_BLOSC[:12], "less than its header"),
        (BLOSC.pack(2, 1, 0x83, 2, 1024, 1024, 20) + b"four", "plain Blosc chunk of another size"),
        (BLOSC.pack(2, 1, 0x81, 2, 2048, 2048, 16), "decodes to 2048 bytes, expected 1024"),
        (BLOSC.pack(3, 1, 0x81, 2, 1024, 1024, 16), "version 3"),
        (BLOSC.pack(2, 1, 0x81, 0, 1024, 1024, 16), "type size 0"),
        (BLOSC.pack(2, 1, 0x21, 2, 1024, 1024, 16), "codec 1"),
        (BLOSC.pack(2, 1, 0x81, 2, 1024, 2, 16), "blocks of 2 bytes"),
        (BLOSC.pack(2, 1, 0x81, 2, 1024, 1024, 16), "ends behind it"),
        (BLOSC.pack(2, 1, 0x81, 2, 1024, 1024, 24) + struct.pack("<ii", 1 << 30, 0), "block 0 starts at"),
        (BLOSC.pack(2, 1, 0x91, 2, 1024, 1024, 24) + struct.pack("<ii", 20, 1000), "block 0 ends behind it"),
    ],
)
def test_every_field_that_blosc_trusts_is_compared_with_the_chunk(
    tmp_path: Path, body: bytes, said: str
) -> None:
    """The library is given no length: 16 bytes made it read a megabyte of other memory, or end the process."""
    spec = arrays.ArraySpec((512,), (512,), np.dtype("float16"), "blosc")
    (tmp_path / "x.zarr/c").mkdir(parents=True)
    (tmp_path / "x.zarr/c/0").write_bytes(body + struct.pack("<I", google_crc32c.value(body)))
    with pytest.raises(CorruptStore, match=said):
        read_chunk(tmp_path, "x.zarr", spec, (0,))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda body: body * 2, "Zstandard frame of"),
        (lambda body: body + b"\x50\x2a\x4d\x18\x00\x00\x00\x00", "Zstandard frame of"),
        (lambda body: body[:-3], "Zstandard frame"),
        (lambda body: body[:4] + bytes([body[4] | 1]) + body[5:], "dictionary"),
        (lambda body: b"\x50" + body[1:], "no Zstandard frame"),
    ],
)
def test_a_chunk_is_one_zstandard_frame(tmp_path: Path, change: Any, said: str) -> None:
    import numcodecs

    spec = arrays.ArraySpec((512,), (512,), np.dtype("uint8"), "zstd")
    body = change(numcodecs.Zstd(level=3).encode(np.arange(512, dtype=np.uint16).astype(np.uint8)))
    (tmp_path / "x.zarr/c").mkdir(parents=True)
    (tmp_path / "x.zarr/c/0").write_bytes(body + struct.pack("<I", google_crc32c.value(body)))
    with pytest.raises(CorruptStore, match=said):
        read_chunk(tmp_path, "x.zarr", spec, (0,))


@pytest.mark.parametrize("change", [{"shape": 3}, {"shape": None}, {"zarr_format": None}, {"codecs": [3]}])
def test_a_broken_slide_does_not_end_verify_for_the_others(store: Path, change: dict[str, Any]) -> None:
    metadata(store, "features.zarr/a/features", **change)
    (store / "features.zarr/b/features/c/0/0/0").unlink()
    found = verify_structure(store).findings
    assert {f.slide_id for f in found} == {"a", "b"}
    assert {f.kind for f in found} == {"metadata", "features"}


def test_what_no_check_foresaw_is_a_finding_of_its_slide(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(check: Any) -> None:
        if check.slide_id == "a":
            raise MemoryError

    monkeypatch.setattr("stores.verify.slide._check_usable", fails)
    (found,) = verify_structure(store).findings
    assert str(found) == "slide a: could not be checked: MemoryError: MemoryError (features.zarr/a)"
    assert found.kind == "unreadable"


@pytest.mark.parametrize(
    "name",
    [
        "recipe.json",
        "manifest/slides.parquet",
        "manifest/patches/a.parquet",
        "features.zarr/a/coords/zarr.json",
    ],
)
def test_a_pipe_in_place_of_any_file(store: Path, tmp_path: Path, name: str) -> None:
    (store / name).unlink()
    os.mkfifo(store / name)
    said = everything(store, tmp_path / "out")
    assert sum("is a pipe" in text for text in said) >= 2


def test_a_sparse_file_is_not_copied(store: Path, tmp_path: Path) -> None:
    with (store / "features.zarr/a/features/c/0/0/0").open("r+b") as file:
        file.truncate(1 << 40)
    said = everything(store, tmp_path / "out")
    assert sum("no file of this kind has more than" in text for text in said) >= 5


def test_more_views_than_a_slide_has(store: Path) -> None:
    """Memory for each view would be taken as the slides table and the name of a commit record say."""
    columns = [np.zeros(1 << 20, field.type.to_pandas_dtype()) for field in manifest.PATCHES_SCHEMA]
    pq.write_table(pa.table(columns, schema=manifest.PATCHES_SCHEMA), store / "manifest/patches/a.parquet")
    commit = next(manifest.commits(store, "b"))
    manifest.write_commit(store, "b", 0, range(500), commit.read())
    assert any("views, which no slide has" in str(f) for f in verify_structure(store).findings)


def test_statistics_of_blocks_that_are_not_there_are_not_waited_for(store: Path) -> None:
    """By way of Zarr each missing chunk took 0.2 ms, and a shape may ask for a million of them."""
    metadata(store, "features.zarr/a/stats", shape=[1000, 40, 2, 8])
    begun = time.process_time()
    assert np.isnan(features.read_stats(store, "a")[3:]).all()
    assert time.process_time() - begun < 4
    metadata(store, "features.zarr/a/stats", shape=[1001, 1, 2, 8])
    with pytest.raises(CorruptStore, match="shape"):
        features.read_stats(store, "a")
