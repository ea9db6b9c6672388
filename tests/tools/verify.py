"""What the tests of ``store verify`` share: looking at a store, and damaging it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.runtime.progress import Silent
from pipeline.verify import verify as verify_module
from pipeline.verify.options import VerifyOptions
from stores.format import manifest
from stores.verify.findings import Finding
from stores.verify.structure import verify_structure

SAME_TEACHER = VerifyOptions(teacher="tests.tools.tiny:teacher", random_weights=0, threads=2)


def structure(store: Path, partial: bool = False) -> list[Finding]:
    return verify_structure(store, partial).findings


def look(store: Path, options: VerifyOptions) -> verify_module.Verified:
    return verify_module.verify(store, options, Silent())


def names_of(store: Path) -> list[str]:
    return sorted(str(path.relative_to(store)) for path in store.rglob("*") if path.is_file())


def named(found: list[Finding], name: str) -> bool:
    return any(finding.file == name or name.startswith(f"{finding.file}/") for finding in found)


def edit_commit(store: Path, slide_id: str, edit: Callable[[pa.Table], pa.Table]) -> str:
    commit = next(manifest.commits(store, slide_id))
    manifest.write_commit(store, slide_id, commit.block, commit.seeds, edit(commit.read()))
    return str(commit.path.relative_to(store))


def with_column(name: str, change: Callable[[list[object]], list[object]]) -> Callable[[pa.Table], pa.Table]:
    def edit(table: pa.Table) -> pa.Table:
        at = table.column_names.index(name)
        return table.set_column(at, name, pa.array(change(table[name].to_pylist()), table[name].type))

    return edit


def findings_of(store: Path, **options: Any) -> list[Finding]:
    """What ``store verify`` finds, without the processes and threads that it may start."""
    return look(store, VerifyOptions(threads=1, **options)).findings
