"""The commands ``g2l store ...``: their help fits, and their results print as JSON and as lines."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import cli
from pipeline.commands.store import store as group
from tests.tools.made_stores import make_store
from tests.tools.share import SLIDES


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with slides of many kinds. Read only."""
    return make_store(tmp_path_factory.mktemp("made") / "s", SLIDES)


def run(*arguments: object) -> Result:
    done = CliRunner().invoke(cli.g2l, ["store", *map(str, arguments)])
    assert done.exit_code == 0, done.output
    return done


@pytest.mark.parametrize("name", sorted(group.commands))
def test_the_short_help_fits_on_its_line(name: str) -> None:
    short = group.commands[name].short_help
    assert short is not None
    assert 0 < len(short) <= 45
    assert f"{name:<7}  {short}\n" in run("--help").stdout


@pytest.mark.slow
def test_results_as_json_and_as_lines(made: Path, tmp_path: Path) -> None:
    part, small, back = tmp_path / "part", tmp_path / "small", tmp_path / "back"
    url = f"file://{tmp_path / 'bucket'}"
    for made_store, *command in (
        (part, "subset", made, "--out", part),
        (small, "export", made, "--out", small, "--compact", "lossless"),
        (part, "reindex", part),
        (part, "verify", part),
        (part, "seal", part),
        (url, "push", part, url),
        (back, "pull", url, back),
    ):
        assert json.loads(run(*command, "--json").stdout)["store"] == str(made_store)
    assert run("verify", part).stdout.splitlines()[-1] == f"{part}: nothing is wrong"
    assert run("seal", part).stdout.startswith("sealed ")
    assert run("push", part, url).stdout.startswith(f"{url}: ")
    assert run("info", back).stdout.startswith(f"store     {back}\n")
    assert run("subset", made, "--out", part / "x").stdout.startswith(f"{part / 'x'}: 5 slides, ")
