"""Where a run or a store comes from: its date, its command and the sizes of its splits.

Everything is read from files that the run or the store carries, so the same files give the same page on any day.
"""

import os
import shlex
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.distill.options import DistillOptions
from pipeline.runtime.options import to_json
from stores.format import manifest
from stores.io.files import parse_json
from stores.io.foreign import open_regular
from stores.io.location import StoreLike

_TAIL_BYTES = 1 << 16
"""A log is read from its end; its last line is far shorter than this."""


def last_date(log: Path) -> str | None:
    """Day and minute (UTC) of the last readable line of a log; None without one.

    The times of files are not used: a copy of the run would get another date.
    """
    if not log.exists():
        return None
    with open_regular(log, sys.maxsize, inside=log.parent) as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
        lines = file.read(_TAIL_BYTES).decode("utf-8", errors="replace").splitlines()
    for line in reversed(lines):
        try:
            moment = datetime.fromisoformat(parse_json(line)["time"]).astimezone(UTC)
        except (ValueError, TypeError, KeyError, OverflowError):  # a line cut off by a kill, or foreign
            continue
        return f"{moment:%Y-%m-%d %H:%M} UTC"
    return None


def distill_command(options: Mapping[str, Any], stores: Sequence[str], run: str) -> str:
    """The command that gives the recorded options: those that differ from the defaults.

    >>> distill_command({"student": "vit_small_patch16_224", "lr": 0.001, "slides": ["my slides"]}, ["a", "b:2"], "run")
    "g2l distill --store a --store b:2 --out run --student vit_small_patch16_224 --lr 0.001 --slides 'my slides'"
    """
    defaults = to_json(DistillOptions())
    words = ["g2l", "distill", *(word for store in stores for word in ("--store", store)), "--out", run]
    for name, value in options.items():
        if value == defaults.get(name):
            continue
        flag = "--" + name.replace("_", "-")
        if value is True:
            words.append(flag)
        else:
            for item in value if isinstance(value, list) else [value]:
                words += [flag, str(item)]
    return shlex.join(words)


def split_sizes(store: StoreLike, info: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Usable slides, patches and views of each split, in words.

    Parameters
    ----------
    info
        What `stores.info.store_info` says about the store.
    """
    usable = Counter(row["split"] for row in manifest.read_slides(store) if row["status"] == manifest.OK)
    views: Counter[str] = Counter()
    for by_split in info["views_by_seed_and_split"].values():
        views.update(by_split)
    return [
        (
            f"split {name}",
            f"{usable[name]:,} slides, {info['patches_by_split'].get(name, 0):,} patches, {views[name]:,} views",
        )
        for name in manifest.SPLITS
        if usable[name]
    ]
