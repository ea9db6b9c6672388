"""What an installation needs and gets: declared dependencies, and the content of the wheel."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterable, Iterator
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest

from tests.tools import hashes
from tests.tools.settings import ROOT

OWN = {"cli", "pipeline", "stores", "tests"}
RUNTIME_ONLY = {"openslide-bin": "the C library behind openslide-python"}
"""Dependencies that no file imports, with the reason why they are declared."""
BY_HAND = dict.fromkeys(
    ("lazyslide", "slide2vec"), "a benchmark against it runs in an environment of its own"
)
"""Modules that tests and benchmarks import without a declaration, with the reason."""


def _normal(name: str) -> str:
    """The form in which two spellings of a distribution are equal (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _names(requirements: Iterable[str]) -> set[str]:
    return {_normal(re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0]) for requirement in requirements}


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return found


def _with_extras(project: dict[str, Any]) -> set[str]:
    """What an installation may have: what it needs, and the extras that are not for tests."""
    extras = {**project["optional-dependencies"], "test": []}
    return _names([*project["dependencies"], *(need for needs in extras.values() for need in needs)])


def _product() -> list[Path]:
    return [ROOT / "cli.py", *(ROOT / "pipeline").rglob("*.py"), *(ROOT / "stores").rglob("*.py")]


def _imported(files: Iterable[Path]) -> Iterator[tuple[str, str]]:
    """Top-level modules from elsewhere that the files import, each with the line that does it."""
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(), str(file))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            else:
                continue
            for name in names:
                module = name.partition(".")[0]
                if module not in sys.stdlib_module_names and module not in OWN:
                    yield module, f"{file.relative_to(ROOT)}:{node.lineno}"


def _undeclared(files: Iterable[Path], declared: set[str]) -> list[str]:
    distributions = packages_distributions()
    return [
        f"{place}: {module}"
        for module, place in _imported(files)
        if not declared & {_normal(name) for name in distributions.get(module, [])}
    ]


def test_transformers_is_no_dependency(project: dict[str, Any]) -> None:
    assert "transformers" not in _names(project["dependencies"])
    assert len(_product()) > 100
    assert [place for module, place in _imported(_product()) if module == "transformers"] == []


@pytest.mark.slow
def test_every_import_is_declared(project: dict[str, Any]) -> None:
    assert _undeclared(_product(), _with_extras(project)) == []


@pytest.mark.slow
def test_every_import_of_the_tests_is_declared(project: dict[str, Any]) -> None:
    declared = _names([*project["dependencies"], *project["optional-dependencies"]["test"]])
    missing = _undeclared((ROOT / "tests").rglob("*.py"), declared)
    assert [line for line in missing if line.rpartition(" ")[2] not in BY_HAND] == []


@pytest.mark.slow
def test_an_import_that_nothing_declares_is_found(project: dict[str, Any]) -> None:
    found = _undeclared(_product(), _with_extras(project) - {"google-crc32c"})
    assert found
    assert all(line.endswith(": google_crc32c") for line in found)


@pytest.mark.slow
def test_every_dependency_is_imported(project: dict[str, Any]) -> None:
    distributions = packages_distributions()
    used = {_normal(name) for module, _ in _imported(_product()) for name in distributions.get(module, [])}
    assert _names(project["dependencies"]) - used == set(RUNTIME_ONLY)


def test_every_dependency_has_a_pin(project: dict[str, Any]) -> None:
    pins = {
        _normal(line.partition("==")[0])
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    declared = _names([*project["dependencies"], *project["optional-dependencies"]["test"]])
    assert declared - pins == set()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The files of a wheel that is built without a network, outside the checkout."""
    source = tmp_path_factory.mktemp("source")
    for name in ("cli.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("pipeline", "stores"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    out = tmp_path_factory.mktemp("wheel")
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(out)]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", *options, str(source)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = out.glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        return set(archive.namelist())


@pytest.mark.slow
def test_the_wheel_ships_every_file_of_the_packages(wheel: set[str]) -> None:
    expected = {
        file.relative_to(ROOT).as_posix()
        for folder in ("pipeline", "stores")
        for file in (ROOT / folder).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts and file.suffix != ".md"
    }
    assert {"pipeline/py.typed", "stores/py.typed"} <= expected
    assert expected | {"cli.py"} <= wheel


@pytest.mark.slow
def test_the_wheel_holds_nothing_else(wheel: set[str]) -> None:
    top = {name.partition("/")[0] for name in wheel}
    assert {name for name in top if not name.endswith(".dist-info")} == {"cli.py", "pipeline", "stores"}


def test_the_container_is_installed_as_the_readme_says() -> None:
    """Its steps are the two commands, after all that they read was copied; what is left behind is not needed."""
    readme = (ROOT / "README.md").read_text()
    commands = re.search(r"## With your own slides\n\n```\n((?:pip .*\n)+)", readme)
    assert commands is not None
    recipe = (ROOT / "Containerfile").read_text()
    steps = [line for line in recipe.splitlines() if line and not line.startswith("#")]
    assert [step.removeprefix("RUN ") for step in steps if step.startswith("RUN ")] == commands[
        1
    ].splitlines()
    assert steps.index("COPY . .") < min(i for i, step in enumerate(steps) if step.startswith("RUN "))
    assert steps[-1] == 'ENTRYPOINT ["g2l"]'
    version = re.fullmatch(r"FROM python:(\d+)\.(\d+)-slim", steps[0])
    assert version is not None
    assert (int(version[1]), int(version[2])) >= (3, 11)
    ignored = set((ROOT / ".dockerignore").read_text().split())
    needed = {
        "pyproject.toml",
        "constraints.txt",
        "README.md",
        "LICENSE",
        "cli.py",
        "pipeline",
        "stores",
        "docs",
    }
    assert not ignored & needed
    assert {".git", ".venv"} <= ignored


def test_files_of_hashes_have_the_pins(project: dict[str, Any]) -> None:
    """Every distribution that g2l needs, in the version of constraints.txt, with one hash and no address."""
    pins = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        name, _, version = line.partition("==")
        pins[_normal(name)] = version
    files = list(ROOT.glob("requirements-*.txt"))
    assert files
    for path in files:
        lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
        found = [re.fullmatch(r"([\w.-]+)==([\w.+]+) --hash=sha256:[0-9a-f]{64}", line) for line in lines]
        assert all(found)
        versions = {_normal(match[1]): match[2].partition("+")[0] for match in found if match}
        assert len(versions) == len(lines)
        assert versions == {name: pins.get(name) for name in versions}, "make hashes"
        assert _names(project["dependencies"]) <= versions.keys(), "make hashes"


def test_what_pip_reports_becomes_lines() -> None:
    def item(name: str, version: str, **info: Any) -> dict[str, Any]:
        return {"metadata": {"name": name, "version": version}, "download_info": info}

    digest = "a" * 64
    wheels = [
        item(name, version, url="https://somewhere/x.whl", archive_info={"hashes": {"sha256": digest}})
        for name, version in (("torch", "2.13.0+cpu"), ("Numpy", "2.4"))
    ]
    own = item("g2l", "0.1.0", url="file:///here", dir_info={"editable": True})
    text = hashes.text_of({"install": [*wheels, own]})
    assert text.splitlines()[3:] == [
        f"Numpy==2.4 --hash=sha256:{digest}",
        f"torch==2.13.0+cpu --hash=sha256:{digest}",
    ]
    assert hashes.file_name({"install": wheels}).endswith("-cpu.txt")
    with pytest.raises(SystemExit, match=r"x 1: pip reports no SHA-256"):
        hashes.text_of({"install": [item("x", "1", url="git+x", vcs_info={})]})
