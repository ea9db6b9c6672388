"""Bytes a view and error of compact copies, for features of an encoder on given slides.

python -m tests.bench.bench_compact SLIDES TEACHER [options of extract-teacher]
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any


def run(*arguments: str) -> dict[str, Any]:
    """A command's JSON."""
    done = subprocess.run(
        [sys.executable, "cli.py", *arguments, "--json"], capture_output=True, text=True, check=False
    )
    assert done.returncode in (0, 3), done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main(slides: str, teacher: str, *options: str) -> None:
    """Extract, export, and print."""
    with tempfile.TemporaryDirectory() as name:
        store = str(Path(name) / "store")
        run("extract-teacher", slides, "--store", store, "--teacher", teacher, *options)
        for kind in (None, "lossless", "int8"):
            path = store if kind is None else str(Path(name) / kind)
            figures = (
                run("store", "export", store, "--out", path, "--compact", kind)["compact"] if kind else None
            )
            info = run("store", "info", path)
            bytes_a_view = info["bytes"]["features.zarr"] / info["views"]
            print(
                f"{kind or 'as extracted':<13} {info['views']} views, {bytes_a_view:.0f} B a view {figures or ''}"
            )


if __name__ == "__main__":
    main(*sys.argv[1:])
