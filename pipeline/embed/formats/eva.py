"""``eva``: the offline manifest of kaiko-eva, with a tensor for each sample."""

import csv
import io
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.embed.formats.base import Format, Parts, Unit, ok_rows
from pipeline.embed.parts import feature_matrix
from stores.errors import OptionError
from stores.io import files
from stores.io.text import csv_cell


def check_eva(columns: Mapping[str, Any], tiles: bool) -> None:
    if "label" not in columns:
        where = "--column label=NAME" if tiles else "in a column label of --slides-csv"
        raise OptionError(f"--format eva: its manifest has a target for every sample; say which: {where}")


def write_eva(folder: Path, unit: Unit, parts: Parts) -> list[Path]:
    import torch

    from pipeline.encoders.tensor_files import save_torch

    target = folder / "embeddings"
    if unit.row:
        values = np.concatenate([feature_matrix(ok_rows(part)["features"]) for part in parts])
        path = target / f"{unit.name}.pt"
        save_torch(path, torch.from_numpy(values))
        return [path]
    lines = []
    for part in parts:
        good = ok_rows(part)
        for row, value in zip(good["row"].to_pylist(), feature_matrix(good["features"]), strict=True):
            name = f"{row:08d}.pt"  # never a name out of the CSV
            save_torch(target / name, torch.from_numpy(value.copy()))
            lines.append((row, name))
    rows = [
        {
            "origin": unit.columns["path"][row],
            "embeddings": f"embeddings/{name}",
            "target": unit.columns["label"][row],
            **({"split": unit.columns["split"][row]} if "split" in unit.columns else {}),
        }
        for row, name in lines
    ]
    return _write_eva_manifest(folder, rows)


def _write_eva_manifest(folder: Path, rows: list[dict[str, Any]]) -> list[Path]:
    """``manifest.csv`` with whole numbers as targets, and ``classes.json`` that says what they mean.

    No text in it is a formula, see `stores.io.text.csv_cell`: eva opens ``embeddings`` alone, whose names are ours.
    """
    labels = sorted({row["target"] for row in rows})
    whole = all(re.fullmatch(r"\d{1,9}", label or "") for label in labels)
    number = {label: int(label) if whole else i for i, label in enumerate(labels)}
    text = io.StringIO()
    names = list(rows[0]) if rows else ["origin", "embeddings", "target"]
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        shown = {**row, "target": number[row["target"]]}
        writer.writerow({name: csv_cell(value) for name, value in shown.items()})
    files.write_json(folder / "classes.json", {str(i): label for label, i in number.items()})
    files.write_text(folder / "manifest.csv", text.getvalue())
    return [folder / "manifest.csv", folder / "classes.json"]


def finish_eva(folder: Path, units: Iterable[Unit]) -> None:
    slides = [unit for unit in units if unit.row]
    if slides:
        rows = [
            {
                "wsi_id": unit.name,
                "origin": unit.row["file_name"],
                "embeddings": f"embeddings/{unit.name}.pt",
                "target": unit.row["label"],
                "split": unit.row["split"],
            }
            for unit in slides
        ]
        _write_eva_manifest(folder, rows)


EVA = Format(check_eva, write_eva, finish_eva)
