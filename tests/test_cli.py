"""The command line: exit codes, one-line errors, config files, JSON, no torch for --help."""

import errno
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import cli
from pipeline.commands import stages
from pipeline.distill.options import DistillOptions
from pipeline.extract.options import ExtractOptions
from pipeline.runtime import version
from pipeline.runtime.options import from_json, to_json
from pipeline.tile import tile as tiling
from pipeline.tile.options import TileOptions
from stores.errors import OptionError
from tests.tools.commands import g2l, one_error
from tests.tools.settings import ROOT

TEACHER = ["--teacher", "tests.tools.tiny:teacher", "--random-weights", "0", "--threads", "1"]


def test_a_disk_that_fails_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*args: object, **settings: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(tmp_path / "f"))

    monkeypatch.setattr("stores.info.store_info", failing)
    said = g2l("store", "info", tmp_path)
    one_error(said, f"{tmp_path / 'f'}: Input/output error: the disk fails")


def test_help_loads_nothing_heavy() -> None:
    script = "import sys, cli; cli.g2l(['--help'], standalone_mode=False); print(sorted(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "extract-teacher" in done.stdout
    for heavy in ("torch", "timm", "zarr", "numpy", "openslide", "pyarrow", "cv2", "rich"):
        assert f"'{heavy}'" not in done.stdout


def test_a_signal_while_python_ends_says_nothing() -> None:
    """As `torchrun` sends it to a process that ends since another one failed."""
    script = (
        "import atexit, os, signal, sys, cli; atexit.register(os.kill, os.getpid(), signal.SIGTERM); "
        "sys.argv = ['g2l', '--version']; cli.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout.startswith("g2l, version")
    assert done.stderr == ""


def every_command(group: click.Group, *names: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    for name, command in group.commands.items():
        yield (*names, name), command
        if isinstance(command, click.Group):
            yield from every_command(command, *names, name)


COMMANDS = dict(every_command(cli.g2l))


@pytest.mark.parametrize("names", COMMANDS, ids=" ".join)
def test_every_command_has_help(names: tuple[str, ...]) -> None:
    shown = g2l(*names, "--help")
    assert shown.exit_code == 0
    assert 0 < len(COMMANDS[names].short_help or "") <= 45
    for option in COMMANDS[names].params:
        if isinstance(option, click.Option):
            assert option.help, option.name


@pytest.mark.parametrize("names", [(), ("store",), ("evaluate",)])
def test_no_summary_of_a_command_is_cut_off(names: tuple[str, ...]) -> None:
    shown = g2l(*names, "--help").stdout
    assert "Commands:" in shown
    assert not [line for line in shown.splitlines() if line.endswith("...") and not line.startswith("Usage")]


def test_long_commands_have_headings() -> None:
    for command, headings in {
        "distill": ("Encoder", "Loss", "Training", "Data", "Validation and checkpoints", "Machine", "Other"),
        "extract-teacher": ("Encoder", "Views", "Tiling", "Machine", "Other"),
        "embed": ("Encoder", "Tiles from a CSV", "Tiling", "Machine", "Other"),
    }.items():
        shown = g2l(command, "--help").stdout.splitlines()
        assert [f"{heading}:" for heading in headings] == [
            line for line in shown if line.endswith(":") and line[0].isalpha() and line != "Options:"
        ]
    assert "Other:" not in g2l("models", "--help").stdout


def test_defaults_are_in_brackets() -> None:
    shown = " ".join(g2l("distill", "--help").stdout.split())
    for text in (
        "[default: number of CPUs]",
        "[default: 32]",
        "[default: temporary]",
        "Fail unless a checkpoint exists.",
        "[default: auto: processes with a GPU, threads on a CPU]",
    ):
        assert text in shown


@pytest.mark.slow
def test_tile_extract_info_distill(slides: Path, tmp_path: Path) -> None:
    store, run = tmp_path / "store", tmp_path / "run"
    tiled = g2l("tile", slides, "--store", store, "--slides-csv", slides / "slides.csv", "--json")
    assert tiled.exit_code == 0, tiled.output
    assert json.loads(tiled.stdout)["splits"] == {"train": 2, "val": 1, "test": 0}
    extracted = g2l("extract-teacher", slides, "--store", store, *TEACHER, "--seeds", 2, "--pixels", "--json")
    assert extracted.exit_code == 0, extracted.output
    summary = json.loads(extracted.stdout)
    assert summary["views"] == 2 * json.loads(tiled.stdout)["patches"]
    assert summary["complete"] == 1.0
    assert "float32, because CPU" in extracted.stderr
    info = g2l("store", "info", store)
    assert "tests.tools.tiny:teacher, 24-d, float32" in info.stdout
    assert "100.0% complete" in info.stdout
    assert json.loads(g2l("store", "info", store, "--json").stdout)["views"] == summary["views"]
    student = ["--student", "tests.tools.tiny:student", "--random-weights", 1, "--threads", 1]
    trained = g2l("distill", "--store", store, "--out", run, *student, "--steps", 3, "--batch-size", 4)
    assert trained.exit_code == 0, trained.output
    assert "held out: CKA to the teacher" in trained.stdout
    assert ", cosine " in trained.stdout
    assert "the student explains" in trained.stdout
    assert "peak memory" in trained.stdout
    again = g2l(
        "distill",
        "--store",
        store,
        "--out",
        run,
        *student,
        "--steps",
        3,
        "--batch-size",
        4,
        "--resume",
        "--json",
    )
    assert json.loads(again.stdout)["steps"] == 3
    one_error(
        g2l("distill", "--store", store, "--out", run / "x", *student, "--seeds", 5), "seed 2 is needed"
    )
    one_error(
        g2l("extract-teacher", slides, "--store", store, *TEACHER, "--pixels", "--policy", "none"),
        "recipe.policy.",
    )


def test_bad_slides_beside_a_good_one(shared: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(shared / "bad_slides", tmp_path / "slides"))
    shutil.copy(shared / "slides/CMU-1-Small-Region.svs", folder)
    store = tmp_path / "store"
    result = g2l("extract-teacher", folder, "--store", store, *TEACHER, "--seeds", 1, "--json")
    assert result.exit_code == 3, result.output
    summary = json.loads(result.stdout)
    bad = {path.stem for path in (shared / "bad_slides").iterdir()}
    assert set(summary["unusable"]) == bad
    assert all(reason and "\n" not in reason for reason in summary["unusable"].values())
    assert summary["views"] == 38
    assert summary["complete"] == 1.0
    info = json.loads(g2l("store", "info", store, "--json").stdout)
    assert info["slides_by_status"] == {"failed": len(bad), "ok": 1}


def test_wrong_uses(slides: Path, tmp_path: Path) -> None:
    store = ["--store", tmp_path / "s"]
    one_error(g2l("tile", tmp_path / "absent", *store), "no such file or folder")
    one_error(g2l("tile", slides, *store, "--mpp", 9), "--mpp 9.0: allowed is 0.05 to 5")
    one_error(g2l("extract-teacher", slides, *store, "--teacher", "h-optimos-0"), "h-optimus-0")
    one_error(g2l("extract-teacher", slides, *store, *TEACHER, "--device", "cuda:77"), "CUDA devices")
    missing = tmp_path / "w.safetensors"
    one_error(
        g2l("extract-teacher", slides, *store, "--teacher", "h0-mini", "--weights", missing),
        "no such file or folder",
    )
    one_error(g2l("store", "info", tmp_path), "not a store")


def test_click_refuses_what_it_can_by_itself(slides: Path, tmp_path: Path) -> None:
    for arguments in (
        ("tile", slides),
        ("extract-teacher", slides, "--store", tmp_path),
        ("distill", "--store", tmp_path, "--out", tmp_path, "--student", "x", "--loss", "l3"),
        ("tile", slides, "--store", tmp_path, "--mpp", "fine"),
        ("store", "verify", tmp_path, "--sample", "some"),
    ):
        assert g2l(*arguments).exit_code == 2


def test_config_file(slides: Path, tmp_path: Path) -> None:
    config = tmp_path / "tile.yaml"
    csv = slides / "slides.csv"
    config.write_text(
        f"store: {tmp_path / 's'}\nmax_patches: 4\nslides_csv: {csv}\nslide_mpp: [a=0.5, b=0.5]\njson: true\n"
    )
    result = g2l("tile", slides, "--config", config)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["patches_by_slide"] == {"a": 4, "b": 4, "c": 4}
    written = json.loads((tmp_path / "s/options/tile.json").read_text())
    assert written["max_patches"] == 4
    assert from_json(TileOptions, written).slide_mpp == ("a=0.5", "b=0.5")
    wins = g2l("tile", slides, "--config", config, "--store", tmp_path / "t", "--max-patches", 2)
    assert json.loads(wins.stdout)["patches"] == 6
    config.write_text("mmp: 0.5\n")
    unknown = g2l("tile", slides, "--config", config)
    assert unknown.exit_code == 2
    assert "unknown option 'mmp'" in unknown.stderr
    config.write_text("a: [")
    assert "not readable as YAML" in g2l("tile", slides, "--config", config).stderr


def test_extract_remembers_how_the_store_was_tiled(slides: Path, tmp_path: Path) -> None:
    store = tmp_path / "s"
    options = ["--slides-csv", slides / "slides.csv", "--min-tissue", 0.9, "--max-patches", 3]
    assert g2l("tile", slides / "a.tiff", "--store", store, *options).exit_code == 0
    result = g2l("extract-teacher", slides, "--store", store, *TEACHER, "--seeds", 1, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["views"] == 9
    one_error(
        g2l("extract-teacher", slides, "--store", store, *TEACHER, "--min-tissue", 0.5),
        "recipe.patch.min_tissue",
    )


@pytest.mark.parametrize("kind", [TileOptions, ExtractOptions, DistillOptions])
def test_flag_field_and_key_have_one_name(kind: type) -> None:
    command = {
        TileOptions: stages.tile_command,
        ExtractOptions: stages.extract_command,
        DistillOptions: stages.distill_command,
    }[kind]
    flags = {opt.removeprefix("--").replace("-", "_") for p in command.params for opt in p.opts}
    assert set(to_json(kind())) <= flags
    assert from_json(kind, to_json(kind())) == kind()
    with pytest.raises(OptionError, match="option 'nonsense': not one of"):
        from_json(kind, {"nonsense": 1})


def test_interrupted_says_how_to_go_on(slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tiling, "find_patches", interrupted)
    result = g2l("tile", slides, "--store", tmp_path)
    assert result.exit_code == 130
    assert "interrupted: start the same command again to continue" in result.stderr


def test_a_full_disk_is_one_line(slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("stores.format.manifest.write_patches", full)
    one_error(g2l("tile", slides, "--store", tmp_path), "the disk is full; all that was committed is kept")


def test_models_and_doctor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    models = {row["name"]: row for row in json.loads(g2l("models", "--json").stdout)["models"]}
    assert models["h-optimus-0"]["params"] == 1_134_774_272
    assert models["hibou-l"]["params"] == 303_657_216
    assert "CC-BY-NC-ND" in g2l("models").stdout
    found = json.loads(g2l("doctor", "--json").stdout)
    assert found["packages"]["torch"]
    assert found["devices"][0]["device"] == "cpu"
    assert found["openslide"]["reads_tiff"]
    assert found["weights"]["demo-teacher"] == "shipped"
    away = [name for name, model in models.items() if model["hub"] is not None]
    assert found["out_of_reach"] == away
    assert len(away) >= 16
    assert "HF_HUB_OFFLINE is set (bioptimus/H-optimus-0, access has to be" in found["weights"]["h-optimus-0"]
    said = g2l("doctor").stdout
    assert "OpenSlide 4" in said
    assert f"OUT OF REACH: the published weights of {len(away)} encoders (h-optimus-0, " in said
    assert ", since HF_HUB_OFFLINE is set." in said
    assert len(said.splitlines()) < 15  # the presets out of reach are one line
    assert "no problems found\n" not in said


def test_version_of_a_checkout_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    written = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    monkeypatch.setattr(importlib.metadata, "version", absent)
    version.g2l_version.cache_clear()
    assert g2l("--version").stdout == f"g2l, version {written}\n"
    version.g2l_version.cache_clear()
    monkeypatch.setattr(version, "_PYPROJECT", ROOT / "absent.toml")
    assert g2l("--version").stdout == "g2l, version unknown\n"
    version.g2l_version.cache_clear()


def test_installed_command_and_module_are_one() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "cli.py"), "--version"], capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert "0.1.0" in done.stdout
