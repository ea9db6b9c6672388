"""What the tests of merge and subset share."""

import hashlib
from pathlib import Path
from typing import Any

from stores.combine.merge import Shared, merge
from stores.combine.subset import Selection, subset
from stores.format import manifest
from stores.io.location import StoreLike
from stores.verify.structure import verify_structure
from tests.tools.made_stores import MadeSlide

SLIDES = [
    MadeSlide("a", 70, bad=(3, 69), pixels=True, columns={"site": "x", "age": "61"}),
    MadeSlide("b", 1, seeds_apart=1, columns={"site": "y", "age": "7", "split": "val"}),
    MadeSlide("c", status="no_tissue"),
    MadeSlide("d", 33, seeds_apart=2, pixels=True, columns={"site": "o'x", "patient_id": "p-a"}),
    MadeSlide("e", 1100, bad=range(600, 1100), columns={"split": "test"}),
]


def joined(stores: list[Path], out: Path, allow_duplicates: bool = False) -> Shared:
    return merge(stores, out, allow_duplicates)


def part(store: StoreLike, out: Path, **selection: Any) -> Path:
    subset(store, out, Selection(**selection))
    return out


def wrong(store: Path, partial: bool = False) -> list[str]:
    return [str(finding) for finding in verify_structure(store, partial).findings]


def contents(store: Path) -> dict[str, str]:
    return {
        str(path.relative_to(store)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(store.rglob("*"))
        if path.is_file() and path.parent.name != "options"
    }


def edit(store: Path, of: str, **columns: Any) -> None:
    rows = manifest.read_slides(store)
    manifest.write_slides(store, [{**r, **(columns if r["slide_id"] == of else {})} for r in rows])
