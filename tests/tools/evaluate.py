"""Call ``evaluate`` and pick one of its figures."""

import json
from typing import Any

from click.testing import CliRunner

from cli import g2l


def run(*arguments: Any) -> dict[str, Any]:
    done = CliRunner().invoke(g2l, ["evaluate", *map(str, arguments), "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def figure(result: dict[str, Any], name: str, k: int | None = None) -> dict[str, Any]:
    (found,) = [row for row in result["figures"] if (row["figure"], row["k"]) == (name, k)]
    return found
