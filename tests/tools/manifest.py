"""Small tables: of views, and of the slides and patches that they are of."""

from pathlib import Path
from typing import Any

import numpy as np
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
        "x_px0": [row for _, row in places],
        "status": [manifest.BAD_READ if row in bad else manifest.OK for _, row in places],
        "view_crc32": [None if row in bad else row * 7 + seed for seed, row in places],
    }
    return pa.table(columns, schema=manifest.VIEWS_SCHEMA)


def write_slides(store: Path, n_rows: dict[str, int]) -> None:
    """The slides table and the patches to which `views_table` fits: so many patches in a row, for training."""
    rows = []
    for slide_id, n in n_rows.items():
        at = np.arange(n, dtype=np.int32)
        manifest.write_patches(store, slide_id, at, 0 * at, np.zeros(n, np.float32))
        row = {"slide_id": slide_id, "patient_id": slide_id, "split": "train", "status": "ok"}
        rows.append(row | {"n_patches": n})
    manifest.write_slides(store, rows)
