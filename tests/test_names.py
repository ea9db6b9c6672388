"""Files, folders and names that somebody chose to do harm: through every command nothing of them acts."""

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import PIL.Image
import pytest
from click.testing import Result

from pipeline.demo.synthetic_slides import write_slide
from stores.format import manifest
from stores.io import files
from tests.tools.commands import g2l
from tests.tools.settings import ROOT
from tests.tools.stores import make_store
from tests.tools.tiles import tile_pixels

pytestmark = pytest.mark.slow

TEACHER = [
    "--teacher",
    "tests.tools.tiny:teacher",
    "--random-weights",
    "0",
    "--threads",
    "1",
    "--device",
    "cpu",
]
ENCODER = ["--encoder", *TEACHER[1:]]
WHOLE = ["a\x1b[31m[red].tiff", "=cmd|'!A1.tiff"]
"""Names of slides that can be read."""
BROKEN = [
    "\x1b]0;title\x07.svs",
    "line\nwrong: 0 findings.svs",
    "\u202efdp.svs",
    "z\u200bero.svs",
    "<img src=x onerror=alert(1)>.svs",
    "-x- ---.svs",
    "x" * 196 + ".svs",
]
BYTES = os.fsdecode(b"latin-\xe9.tiff")
"""A slide that can be read, whose name is no text in UTF-8."""


def clean(result: Result, *codes: int) -> str:
    """What a command printed, which ended as it should: only lines of what prints."""
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    assert result.exit_code in (codes or (0,)), result.output
    for text in (result.stdout, result.stderr):
        assert all(line.isprintable() for line in text.split("\n")), text
        assert not re.search("[\u202e\u200b]", text)
    return result.output


def in_json(result: Result, *codes: int) -> dict[str, object]:
    clean(result, *codes)
    assert result.stdout.isascii()
    found: dict[str, object] = json.loads(result.stdout)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hostile") / "slides"
    path.mkdir()
    for seed, name in enumerate(WHOLE):
        write_slide(path / name, seed=seed, width_px=768, height_px=768)
    shutil.copyfile(path / WHOLE[0], path / BYTES)
    for name in BROKEN:
        (path / name).write_bytes(b"not a slide")
    label = '"=HYPERLINK(""x"")\n<b>|`"'
    (path / "meta.csv").write_text(f"slide_id,label,=own\na__31m_red_,{label},+1\ncmd___A1,@b,<i>\n")
    return path


@pytest.fixture(scope="module")
def made(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("made") / "store"
    tiled = clean(g2l("tile", folder, "--store", store, "--slides-csv", folder / "meta.csv"), 3)
    assert "2 of 10 slides usable" in tiled
    assert "latin-\\udce9.tiff: its name is not UTF-8 text; rename the file" in tiled
    clean(
        g2l(
            "extract-teacher",
            folder,
            "--store",
            store,
            "--seeds",
            1,
            *TEACHER,
            "--slides-csv",
            folder / "meta.csv",
        ),
        3,
    )
    return store


def test_every_slide_is_a_row(made: Path) -> None:
    rows = {row["file_name"]: row for row in manifest.read_slides(made)}
    assert set(rows) == {*WHOLE, *BROKEN, "latin-\\udce9.tiff"}
    assert all((rows[name]["status"] == "ok") == (name in WHOLE) for name in rows)
    assert all(row["reason"].isprintable() for row in rows.values())


def test_commands_on_the_store(folder: Path, made: Path, tmp_path: Path) -> None:
    store = Path(shutil.copytree(made, tmp_path / "store"))
    clean(g2l("store", "info", store))
    clean(g2l("store", "verify", store))
    clean(g2l("store", "card", store, "--cohort-column", "label", "--cohort-column", "=own"))
    assert "<b>" not in (store / "README.md").read_text()
    (tmp_path / "key").write_bytes(b"k" * 32)
    mapping = tmp_path / "map.csv"
    clean(
        g2l(
            "store",
            "export",
            store,
            "--out",
            tmp_path / "o",
            "--pseudonymise",
            tmp_path / "key",
            "--mapping",
            mapping,
        )
    )
    names = {row["original"] for row in csv.DictReader(io.StringIO(mapping.read_text()))}
    assert {"'=cmd|'!A1.tiff", "a\\x1b[31m[red].tiff"} <= names
    clean(g2l("report", store, "--slides", folder, "--out", tmp_path / "report.html"))
    assert not re.search("[\x1b\u202e]", (tmp_path / "report.html").read_text())
    (store / "a[").mkdir()
    for name in (*BROKEN, BYTES, "a[/b]"):
        (store / name).write_text("stray")
    found = in_json(g2l("store", "verify", store, "--json"), 1)
    assert len(found["findings"]) == len(BROKEN) + 2  # type: ignore[arg-type]
    said = clean(g2l("store", "verify", store), 1)
    assert said.count("is a stray file") == len(BROKEN) + 2
    assert not [line for line in said.splitlines() if line.startswith("wrong: 0 findings")]
    assert "not sealed, 9 things are wrong" in clean(g2l("store", "seal", store), 2)
    assert "rename or remove it" in clean(g2l("store", "seal", store, "--as-it-is"), 2)
    clean(g2l("store", "subset", store, "--split", "train", "--out", tmp_path / "subset"))
    clean(g2l("store", "merge", store, tmp_path / "subset", "--out", tmp_path / "merge"))
    clean(g2l("store", "export", store, "--compact", "lossless", "--out", tmp_path / "lossless"))


def test_tiles_of_such_names(tmp_path: Path) -> None:
    """All but the one that is not UTF-8 are tiles; what is wrong with a broken one is said on one line."""
    folder, store = tmp_path / "t", tmp_path / "s"
    names = ["a\x1b[31m.png", "line\nwrong: 0 findings/b.png", "\u202efdp.png", "-x.png", "back\\slash.png"]
    for number, name in enumerate([*names, os.fsdecode(b"latin-\xe9.png")]):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(tile_pixels(number, 256, 256)).save(folder / name)
    (folder / "no\nimage\x1b.png").write_bytes(b"no image")
    tiled = clean(g2l("tile", "--tiles", folder, "--store", store), 3)
    assert "2 of 2 slides usable, 5 patches" in tiled
    assert tiled.count("tile not used: ") == 2
    given = ["--tiles", "--store", store, "--seeds", 1, *TEACHER]
    in_json(g2l("extract-teacher", folder, *given, "--json"), 3)
    kept = {
        name
        for row in manifest.read_slides(store)
        for name in manifest.read_further(store, row["slide_id"], ("file",))[0].to_pylist()
    }
    assert kept == set(names)
    clean(g2l("store", "verify", store, "--slides", folder, "--sample", "all"))
    clean(g2l("report", store, "--slides", folder, "--out", tmp_path / "report.html"))
    assert not re.search("[\x1b\u202e]", (tmp_path / "report.html").read_text())


@pytest.mark.parametrize("kind", ["eva", "parquet"])
def test_embeddings_and_what_is_evaluated(folder: Path, tmp_path: Path, kind: str) -> None:
    out = tmp_path / os.fsdecode(b"out-\xff\x1b")
    clean(
        g2l("embed", folder, "--out", out, "--format", kind, *ENCODER, "--slides-csv", folder / "meta.csv"), 3
    )
    if kind == "parquet":
        clean(g2l("evaluate", "cka", out, out))
    else:
        rows = list(csv.DictReader(io.StringIO((out / "embeddings/manifest.csv").read_text())))
        assert {row["origin"] for row in rows} == {"'=cmd|'!A1.tiff", "a\\x1b[31m[red].tiff"}
        assert {row["target"] for row in rows} == {"0", "1"}


def test_tables_of_hostile_names(made: Path, tmp_path: Path) -> None:
    bench = {
        "encoders": {"s": {"embeddings": {"d": str(made)}}, "t": {"embeddings": {"d": str(made)}}},
        "data": {"d": {"input": str(made)}},
        "tasks": [{"protocol": "cka", "data": "d", "to": "t", "name": "=1+1|<b>\x1b[0m"}],
    }
    files.write_json(tmp_path / "bench.yaml", bench)
    clean(g2l("evaluate", "all", "--config", tmp_path / "bench.yaml", "--out", tmp_path / "out"), 0)
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out/table.csv").read_text())))
    assert [row["figure"] for row in rows] == ["cka", "cka_unbiased"]
    assert {row["task"] for row in rows} == {"'=1+1|<b>\\x1b[0m"}
    assert [float(row["value"]) for row in rows] == pytest.approx([1, 1])
    table = (tmp_path / "out/table.md").read_text()
    assert "<b>" not in table
    assert len({line.count("|") for line in table.splitlines() if line.startswith("|")}) == 1


def test_a_store_in_a_folder_whose_name_is_not_utf8(tmp_path: Path) -> None:
    home = tmp_path / os.fsdecode(b"\xff\x1b[31m")
    store = make_store(home / "s", {"a": 40, "bv": 12}, with_pixels=True)
    (home / "key").write_bytes(b"k" * 32)
    for command in (
        ["info", store],
        ["verify", store],
        ["card", store],
        ["reindex", store],
        ["subset", store, "--seeds", 2, "--out", home / "subset"],
        ["merge", store, home / "subset", "--out", home / "merge"],
        ["export", store, "--compact", "int8", "--out", home / "int8"],
        ["export", store, "--pseudonymise", home / "key", "--out", home / "open"],
        ["seal", store],
        ["verify", store],
    ):
        clean(g2l("store", *command))
        in_json(g2l("store", "info", store, "--json"))
    clean(g2l("evaluate", "cka", store, store))
    for name in ("checksums.sha256", "checksums.sha256.digest"):
        (store / name).unlink()
    (store / BYTES).touch()
    assert "or not in UTF-8; rename or remove it" in clean(g2l("store", "seal", store, "--as-it-is"), 2)


def test_the_command_line_itself(tmp_path: Path) -> None:
    """``*`` puts the names of files there."""
    name = "\x1b[31m\nerror: fine\u202e"
    for arguments in (
        ["store", "info", "x", name],
        ["store", name],
        [f"--{name}"],
        ["tile", name, "--store", name],
        ["tile", tmp_path, "--store", tmp_path / "s", "--slide-mpp", name],
        ["store", "info", f"{name}-\udcff"],
        ["store", "info", "n" * 300],
        ["store", "verify", "n" * 300],
        ["report", tmp_path / ("n" * 255), "--out", tmp_path / ("m" * 255)],
        ["store", "subset", make_store(tmp_path / "made", {"a": 3}), "--out", tmp_path / ("m" * 255)],
    ):
        assert "error: fine" not in clean(g2l(*arguments), 2).splitlines()
        shutil.rmtree(tmp_path / "made", ignore_errors=True)


def test_a_slide_of_a_name_of_255_bytes(slides: Path, tmp_path: Path) -> None:
    shutil.copy(slides / "a.tiff", tmp_path / ("x" * 250 + ".tiff"))
    assert "1 of 1 slides usable" in clean(g2l("tile", tmp_path, "--store", tmp_path / "s"), 0)


def test_letters_that_the_terminal_does_not_have(tmp_path: Path) -> None:
    store = make_store(tmp_path / "病理", {"a": 3})
    done = subprocess.run(
        [sys.executable, "cli.py", "store", "info", store],
        cwd=ROOT,
        env={**os.environ, "PYTHONIOENCODING": "latin-1", "PYTHONUTF8": "0"},
        capture_output=True,
        check=True,
    )
    assert b"\\u75c5\\u7406" in done.stdout
