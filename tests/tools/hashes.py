"""Write a requirements file with hashes, for ``pip install --require-hashes``: ``make hashes``.

It holds what pip resolves on this machine, from ``constraints.txt`` and the package index that is set up here, for this
Python, platform and build of torch. Another machine needs a file of its own.
"""

import json
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
WANTED = ("torch", "torchvision", "setuptools", ".")
"""As the README installs them; setuptools builds g2l itself, without looking for another one."""


def main() -> None:
    """Ask pip, and write the file."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        subprocess.run(
            [
                *(sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet"),
                *("--only-binary", ":all:", "--report", report, "-c", "constraints.txt", *WANTED),
            ],
            cwd=ROOT,
            check=True,
        )
        found = json.loads(report.read_text())
    path = ROOT / file_name(found)
    path.write_text(text_of(found))
    print(path)


def file_name(report: Mapping[str, Any]) -> str:
    """What a file is called: system, processor, Python and build of torch."""
    torch = next(i["metadata"]["version"] for i in report["install"] if i["metadata"]["name"] == "torch")
    build = torch.partition("+")[2] or "default"  # the default of PyPI on Linux is CUDA
    version = "".join(platform.python_version_tuple()[:2])
    return f"requirements-{platform.system()}-{platform.machine()}-py{version}-{build}.txt".lower()


def text_of(report: Mapping[str, Any]) -> str:
    """The file: a line for each distribution that pip would install, sorted, without where it came from.

    Raises
    ------
    SystemExit
        When one of them, other than g2l itself, has no SHA-256.
    """
    lines = []
    for item in report["install"]:
        name, version = item["metadata"]["name"], item["metadata"]["version"]
        if "dir_info" in item["download_info"]:
            continue  # g2l itself
        digest = item["download_info"].get("archive_info", {}).get("hashes", {}).get("sha256", "")
        if not re.fullmatch("[0-9a-f]{64}", digest):
            raise SystemExit(
                f"{name} {version}: pip reports no SHA-256; use an index that has one, or a newer pip"
            )
        lines.append(f"{name}=={version} --hash=sha256:{digest}\n")
    heading = (
        "# Made by `make hashes`: one build of each package, for one platform; the name of this file says which.\n"
        "#     pip install --require-hashes -r THIS_FILE\n"
        "#     pip install --no-deps --no-build-isolation -e .\n"
    )
    return heading + "".join(sorted(lines, key=str.casefold))


if __name__ == "__main__":
    main()
