"""What ``store merge``, ``subset`` and ``reindex`` print when they are done."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stores.combine.copy_slide import Shared
from stores.info import store_info
from stores.io.text import human_bytes
from stores.verify.reindex import Reindexed

_SHOWN = 20


def copy_json(out: Path, result: Shared) -> dict[str, Any]:
    """The summary of ``merge`` and ``subset``."""
    info = store_info(out)
    figures = {name: info[name] for name in ("recipe_digest", "seeds", "views", "complete")}
    return {"store": str(out), **asdict(result), **figures, "bytes": sum(info["bytes"].values())}


def copy_lines(summary: Mapping[str, Any]) -> list[str]:
    """The same for people."""
    sources = ", ".join(f"{source['name']} ({source['slides']})" for source in summary["sources"])
    return [
        f"{summary['store']}: {summary['slides']} slides, {summary['patches']} patches, "
        f"{summary['views']} views under {len(summary['seeds'])} seeds, {human_bytes(summary['bytes'])}; "
        f"slides from: {sources}",
        *(f"note: {text}" for text in summary["notes"]),
        *_some("left out, no file of a store or of a slide in its table", summary["left_out"]),
    ]


def reindex_json(store: Path, dry_run: bool, result: Reindexed) -> dict[str, Any]:
    """The summary of ``reindex``."""
    return {"store": str(store), "dry_run": dry_run, **asdict(result)}


def reindex_lines(summary: Mapping[str, Any]) -> list[str]:
    """The same for people."""
    verb = "would be " if summary["dry_run"] else ""
    gone = "removed" if summary["pruned"] else "--prune removes it"
    return [
        *(f"{verb}done: {text}" for text in summary["done"]),
        *_some(f"no commit record lists it, {gone}", summary["leftovers"]),
        *_some("stray, no file of a store, left alone", summary["strays"]),
        *(f"wrong: {text}" for text in summary["problems"]),
        f"{summary['store']}: {_count(summary)}",
    ]


def _count(summary: Mapping[str, Any]) -> str:
    wrong = len(summary["problems"])
    if wrong:
        return f"{wrong} wrong, which nothing else tells how to mend"
    todo = len(summary["done"]) if summary["dry_run"] else 0
    return f"{todo} things to do" if todo else "everything is in line"


def _some(what: str, names: Sequence[str]) -> list[str]:
    lines = [f"{what}: {name!r:.300}" for name in names[:_SHOWN]]
    more = len(names) - _SHOWN
    return [*lines, f"{what}: {more} more, see --json"] if more > 0 else lines
