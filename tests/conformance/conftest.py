"""``pytest tests/conformance --store PATH``: is a store what docs/reference/store-format.md says?

``--store`` may be repeated. Without it the small store of the test suite is judged.
"""

from pathlib import Path

import pytest

from tests.conformance.subject import Subject


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--store", action="append", type=Path, default=[], help="A store to judge; may be repeated."
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "path" in metafunc.fixturenames:
        given = metafunc.config.getoption("--store", default=None) or [None]
        ids = [str(path) if path else "fixture" for path in given]
        metafunc.parametrize("path", given, ids=ids, scope="session")


@pytest.fixture(scope="session")
def subject(path: Path | None, request: pytest.FixtureRequest) -> Subject:
    return Subject(path if path is not None else request.getfixturevalue("store"))
