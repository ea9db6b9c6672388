"""The embeddings of a slide, or of a CSV of tiles, in the files that other tools read.

``parquet`` is ours and keeps everything. ``trident-h5`` is what TRIDENT, Patho-Bench and CLAM read for a slide,
``clam`` the two folders of CLAM, ``eva`` its offline manifest with a tensor a sample, ``plism`` the folders of
plism-benchmark.
A patch that could not be read stays in a Parquet file as an empty row, and is left out of the others, which have no
such thing; it is named in the summary in any case.
"""

import contextlib
import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.embed.parts import feature_matrix
from stores.errors import OptionError, SlideError
from stores.format import manifest
from stores.io import files

FOLDER = "embeddings"
TILES = "tiles"
"""Name of the unit that a CSV of tiles is."""
_BASE_MAGNIFICATION_MPP = 10.0  # 10x is 1 micrometre a pixel
_H5_CHUNK_ROWS = 64


@dataclass(frozen=True, slots=True)
class Unit:
    """What is published together: a slide, or all tiles of a CSV."""

    name: str
    n_patches: int
    dim: int
    about: Mapping[str, Any]
    """What decides the values: encoder, patch or fit, reader; goes into the files."""
    row: Mapping[str, Any] = field(default_factory=dict)
    """The slide's row of the slides table; empty for tiles."""
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """The CSV's columns; empty for a slide."""


Parts = Iterable[pa.Table]
"""Tables of `parts.schema` in order of rows."""


@dataclass(frozen=True, slots=True)
class Format:
    """How one of the formats is written."""

    check: Callable[[Mapping[str, Any], bool], None]
    """Raise OptionError when the columns (names, of the slides table or the CSV) do not do; True: for tiles."""
    write: Callable[[Path, Unit, Parts], list[Path]]
    """Write a unit below a folder, each file whole or not at all; returns the files that say it is there."""
    finish: Callable[[Path, Iterable[Unit]], None] = lambda folder, units: None
    """Write what lists all units, from those that are published."""


def _anything(columns: Mapping[str, Any], tiles: bool) -> None: ...


def _slides_only(name: str) -> Callable[[Mapping[str, Any], bool], None]:
    def check(columns: Mapping[str, Any], tiles: bool) -> None:
        if tiles:
            raise OptionError(
                f"--format {name}: is for slides, tiles have no place on one; use parquet, eva or plism"
            )

    return check


def _ok(part: pa.Table) -> pa.Table:
    return part.filter(pc.equal(part["status"], manifest.OK))


# parquet


def _write_parquet(folder: Path, unit: Unit, parts: Parts) -> list[Path]:
    path = folder / f"{unit.name}.parquet"
    known = {b"g2l": json.dumps(unit.about, sort_keys=True).encode()}
    with files.replacing(path) as partial, contextlib.ExitStack() as stack:
        writer: pq.ParquetWriter | None = None
        for part in parts:
            table = _with_columns(unit, part)
            if writer is None:
                schema = table.schema.with_metadata(known)
                writer = stack.enter_context(
                    pq.ParquetWriter(
                        partial,
                        schema,
                        compression={name: "zstd" for name in schema.names if name != "features"},
                        use_dictionary=[name for name in schema.names if name != "features"],
                        write_page_checksum=True,
                    )
                )
            writer.write_table(table.replace_schema_metadata(known))
    return [path]


def _with_columns(unit: Unit, part: pa.Table) -> pa.Table:
    """A part with the columns of its slide or tiles before its own."""
    if unit.columns:
        rows = part["row"].to_numpy()
        own = {name: pa.array([values[i] for i in rows]) for name, values in unit.columns.items()}
        return pa.table({**own, **{name: part[name] for name in ("row", "status", "reason", "features")}})
    own_names = [name for name in unit.row if name not in manifest.SLIDES_SCHEMA.names]
    names = ["slide_id", "patient_id", "split", *own_names]
    fixed = {name: pa.array([unit.row[name]] * len(part), pa.string()) for name in names}
    return pa.table({**fixed, **{name: part[name] for name in part.column_names}})


# TRIDENT, Patho-Bench, CLAM


def _write_h5(folder: Path, unit: Unit, parts: Parts) -> list[Path]:
    path = folder / f"{unit.name}.h5"
    import h5py

    row, patch = unit.row, unit.about["patch"]
    with files.replacing(path) as partial, h5py.File(partial, "w") as file:
        made = {
            "features": file.create_dataset(
                "features",
                (0, unit.dim),
                np.float32,
                maxshape=(None, unit.dim),
                chunks=(_H5_CHUNK_ROWS, unit.dim),
            ),
            "coords": file.create_dataset("coords", (0, 2), np.int64, maxshape=(None, 2), chunks=(4096, 2)),
        }
        for part in parts:
            good = _ok(part)
            if not len(good):
                continue
            _append(made["features"], feature_matrix(good["features"]))
            _append(made["coords"], np.stack([good["x_px0"].to_numpy(), good["y_px0"].to_numpy()], axis=1))
        made["coords"].attrs.update(
            {
                "patch_size": patch["size_px"],
                "patch_size_level0": row["patch_px0"],
                "level0_magnification": round(_BASE_MAGNIFICATION_MPP / row["mpp"]),
                "target_magnification": round(_BASE_MAGNIFICATION_MPP / row["patch_mpp"]),
                "overlap": 0,
                "name": unit.name,
                "savetodir": "",
                "level0_width": row["width_px0"],
                "level0_height": row["height_px0"],
            }
        )
        made["features"].attrs.update({"name": unit.about["encoder"]["name"], "savetodir": ""})
        file.attrs["g2l"] = json.dumps(unit.about, sort_keys=True)
    return [path]


def _append(dataset: Any, values: npt.NDArray[Any]) -> None:
    n = len(dataset)
    dataset.resize(n + len(values), axis=0)
    dataset[n:] = values


def _write_clam(folder: Path, unit: Unit, parts: Parts) -> list[Path]:
    import h5py
    import torch

    (h5,) = _write_h5(folder / "h5_files", unit, parts)
    path = folder / "pt_files" / f"{unit.name}.pt"
    with h5py.File(h5) as file, files.replacing(path) as partial:
        torch.save(torch.from_numpy(file["features"][:]), partial)
    return [h5, path]


# eva


def _check_eva(columns: Mapping[str, Any], tiles: bool) -> None:
    if "label" not in columns:
        where = "--column label=NAME" if tiles else "in a column label of --slides-csv"
        raise OptionError(f"--format eva: its manifest has a target for every sample; say which: {where}")


def _write_eva(folder: Path, unit: Unit, parts: Parts) -> list[Path]:
    import torch

    target = folder / "embeddings"
    target.mkdir(parents=True, exist_ok=True)
    if unit.row:
        values = np.concatenate([feature_matrix(_ok(part)["features"]) for part in parts])
        path = target / f"{unit.name}.pt"
        with files.replacing(path) as partial:
            torch.save(torch.from_numpy(values), partial)
        return [path]
    lines = []
    for part in parts:
        good = _ok(part)
        for row, value in zip(good["row"].to_pylist(), feature_matrix(good["features"]), strict=True):
            name = f"{row:08d}.pt"  # never a name out of the CSV
            torch.save(torch.from_numpy(value.copy()), target / name)
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
    """``manifest.csv`` with whole numbers as targets, and ``classes.json`` that says what they mean."""
    labels = sorted({row["target"] for row in rows})
    whole = all(re.fullmatch(r"\d{1,9}", label or "") for label in labels)
    number = {label: int(label) if whole else i for i, label in enumerate(labels)}
    text = io.StringIO()
    names = list(rows[0]) if rows else ["origin", "embeddings", "target"]
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows({**row, "target": number[row["target"]]} for row in rows)
    files.write_json(folder / "classes.json", {str(i): label for label, i in number.items()})
    files.write_text(folder / "manifest.csv", text.getvalue())
    return [folder / "manifest.csv", folder / "classes.json"]


def _finish_eva(folder: Path, units: Iterable[Unit]) -> None:
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


# plism-benchmark


def _check_plism(columns: Mapping[str, Any], tiles: bool) -> None:
    if not tiles or "group" not in columns:
        raise OptionError(
            "--format plism: takes a CSV of the PLISM tiles with the slide they are of, as --column group=NAME"
        )
    for slide in sorted(set(columns["group"])):
        if not manifest.is_slide_id(slide) or not re.match(r"[A-Z]+_[A-Z0-9]+_", slide):
            raise OptionError(
                f"--format plism: slide {slide!r:.80}; expected STAINING_SCANNER_..., as GMH_S60_to_GMH_S60.tif"
            )
    for name in columns["path"]:
        _tile_id(name)


def _tile_id(name: str) -> tuple[int, int, int]:
    """The three numbers at the end of a PLISM tile's name: the second and third are its place.

    >>> _tile_id("GM_S60/tile_16_30_7.png")
    (16, 30, 7)
    """
    match = re.search(r"_(\d{1,7})_(\d{1,7})_(\d{1,7})$", Path(name).stem)
    if match is None:
        raise OptionError(
            f"--format plism: tile {name!r:.120}; expected a name that ends in three numbers, _16_30_7"
        )
    return int(match[1]), int(match[2]), int(match[3])


def _write_plism(folder: Path, unit: Unit, parts: Parts) -> list[Path]:
    ids = np.array([_tile_id(name) for name in unit.columns["path"]])
    slides = np.array(unit.columns["group"])
    folder.mkdir(parents=True, exist_ok=True)
    everything = folder / f".everything{files.PARTIAL}"  # 91 slides are 4.5 GB at 768 numbers
    try:
        values = np.lib.format.open_memmap(everything, "w+", np.float32, (unit.n_patches, unit.dim))
        for part in parts:
            _require_all(unit, part)
            rows = part["row"].to_numpy()
            values[rows[0] : rows[-1] + 1] = feature_matrix(part["features"])
        written = []
        for slide in sorted(set(unit.columns["group"])):
            of_slide = np.flatnonzero(slides == slide)
            of_slide = of_slide[np.lexsort((ids[of_slide, 2], ids[of_slide, 1]))]
            path = folder / slide / "features.npy"
            both = np.concatenate([ids[of_slide].astype(np.float32), values[of_slide]], axis=1)
            with files.replacing(path) as partial, partial.open("wb") as file:
                np.save(file, both, allow_pickle=False)
            written.append(path)
    finally:
        everything.unlink(missing_ok=True)
    return written


def _require_all(unit: Unit, part: pa.Table) -> None:
    bad = part.filter(pc.not_equal(part["status"], manifest.OK))["row"].to_pylist()
    if bad:
        raise SlideError(
            f"{unit.columns['path'][bad[0]]}: cannot be read, nor {len(bad) - 1} others near it; plism-benchmark "
            "compares the same tiles of all slides: mend them, or leave them out of every slide"
        )


BY_NAME: Mapping[str, Format] = {
    "parquet": Format(_anything, _write_parquet),
    "trident-h5": Format(_slides_only("trident-h5"), _write_h5),
    "clam": Format(_slides_only("clam"), _write_clam),
    "eva": Format(_check_eva, _write_eva, _finish_eva),
    "plism": Format(_check_plism, _write_plism),
}
