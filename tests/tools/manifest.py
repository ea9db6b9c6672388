"""A small table of views."""

from typing import Any

import pyarrow as pa

from stores.format import manifest


def views_table(slide_id: str, rows: range, seeds: range, bad: tuple[int, ...] = ()) -> pa.Table:
    """A commit record's rows with constant parameters."""
    places = [(seed, row) for seed in seeds for row in rows]
    columns: dict[str, Any] = {field.name: [0] * len(places) for field in manifest.VIEWS_SCHEMA}
    columns |= {name: [False] * len(places) for name in ("hflip", "vflip", "jitter", "blur", "stain")}
    columns |= {
        "slide_id": [slide_id] * len(places),
        "split": ["train"] * len(places),
        "seed": [seed for seed, _ in places],
        "row": [row for _, row in places],
        "status": [manifest.BAD_READ if row in bad else manifest.OK for _, row in places],
        "view_crc32": [None if row in bad else row * 7 + seed for seed, row in places],
    }
    return pa.table(columns, schema=manifest.VIEWS_SCHEMA)
