"""A copy of a store for others: under pseudonyms, smaller for a slow line, or both.

Under pseudonyms leave: features, pixels if wanted, coordinates, drawn parameters, splits, vendor, sizes and mpp, with
keyed hashes for slide, patient, file and fingerprint. Left out are slides that could not be used (their reasons hold
paths), the user's own columns, pictures (a thumbnail may show a label), README and checksums, and all options that are
not known to be free of names. A self-check reads everything again before the export is published.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stores import compact, features, files, layout, leaks, manifest, pseudonyms, recipe, recode
from stores.copying import REQUEST, copy_file, staged
from stores.errors import OptionError, StoreError
from stores.location import StoreLike
from stores.renamed import copy_metadata, own_columns, public_options, renamed, without_path, write_manifest

Advance = Callable[[int, str], None]
_RECODED = re.compile(r"features\.zarr/[^/]+/(?:features/.*|zarr\.json)")


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """What is asked for."""

    pseudonymise: Path | None = None
    """File of the key."""
    compact: str | None = None
    """``lossless`` or ``int8``."""
    pixels: bool = True
    keep_columns: tuple[str, ...] = ()
    """Columns of the user's own that may leave under pseudonyms."""
    mapping: Path | None = None
    """CSV of originals and pseudonyms to write for the lab itself."""


@dataclass(frozen=True, slots=True)
class Export:
    """A checked request: `plan` makes it, `write` carries it out."""

    store: StoreLike
    out: Path
    options: ExportOptions
    recipe: recipe.Recipe
    rows: list[dict[str, Any]]
    """Slides of the export, under their original names."""
    left_out: int
    """Slides that are not in it."""
    listing: Mapping[str, int]
    names: pseudonyms.Pseudonyms | None
    originals: leaks.Originals

    @property
    def total(self) -> int:
        """How often `write` advances by one: a slide written, a slide checked."""
        return len(self.rows) * (1 if self.names is None else 2)


def plan(store: StoreLike, out: Path, options: ExportOptions) -> Export:
    """Check a request against a store before anything is written.

    Raises
    ------
    OptionError
        When options contradict each other, the store, or what an export may hold.
    """
    stored = recipe.load(store)
    _check_options(store, stored, out, options)
    key = None if options.pseudonymise is None else pseudonyms.load_key(options.pseudonymise)
    every = manifest.read_slides(store)
    if not every:
        raise StoreError(f"{store}: has no slides yet; run `g2l tile` first")
    originals = leaks.Originals(every)
    rows, names = every, None
    if key is not None:
        rows = [row for row in every if row["status"] == manifest.OK]
        names = pseudonyms.Pseudonyms(key)
        names.rows(rows)  # finds collisions now
        stored = without_path(stored)
        _check_columns(rows, options.keep_columns, originals)
        _check_texts(store, stored, rows, originals)
        if options.mapping is not None:
            pseudonyms.check_mapping_path(options.mapping, names.mapping(), store, out)
    left_out = len(every) - len(rows)
    return Export(store, out, options, stored, rows, left_out, layout.list_files(store), names, originals)


def _check_options(store: StoreLike, stored: recipe.Recipe, out: Path, options: ExportOptions) -> None:
    if options.pseudonymise is None and options.compact is None:
        raise OptionError("store export: give --pseudonymise KEYFILE, --compact lossless or int8, or both")
    if options.compact not in (None, *compact.KINDS):
        raise OptionError(f"--compact {options.compact}: allowed is {' or '.join(compact.KINDS)}")
    if options.pseudonymise is None:
        for flag, given in (("--keep-column", options.keep_columns), ("--mapping", options.mapping)):
            if given:
                raise OptionError(f"{flag}: only with --pseudonymise; without it every column and name stays")
    if isinstance(store, Path) and out.resolve().is_relative_to(store.resolve()):
        raise OptionError(f"--out {out}: inside the store {store}; choose a place beside it")
    if options.compact is not None and not stored.complete:
        raise StoreError(f"{store}: has no teacher features yet; run `g2l extract-teacher` first")
    if options.compact is not None and stored.compact is not None:
        raise OptionError(
            f"--compact {options.compact}: {store} is a compact copy already ({stored.compact.get('kind')}); "
            "compact the store that it was made from"
        )


def _check_columns(
    rows: Sequence[Mapping[str, Any]], keep: Sequence[str], originals: leaks.Originals
) -> None:
    own = own_columns(rows)
    for column in keep:
        if column not in own:
            raise OptionError(
                f"--keep-column {column}: not one of the columns of your own ({', '.join(own) or 'none'})"
            )
        for row in rows:
            found = originals.in_text(row[column] or "", shortest=1)
            if found is not None:
                raise OptionError(f"--keep-column {column}: holds {found!r}, a name that must not leave")


def _check_texts(
    store: StoreLike, stored: recipe.Recipe, rows: Sequence[Mapping[str, Any]], originals: leaks.Originals
) -> None:
    """What is copied word by word is looked at before hours of copying, not only after."""
    texts = [*leaks.strings(stored.to_json()), *sorted({row["vendor"] or "" for row in rows})]
    for text in texts:
        found = originals.in_text(text)
        if found is not None:
            raise StoreError(
                f"{store}: {text!r:.80} in its recipe or vendors holds {found!r}, a name that must not leave"
            )


def write(export: Export, advance: Advance) -> dict[str, Any]:
    """Write the export; one that was interrupted goes on where it was. Returns the summary, as JSON types.

    Raises
    ------
    CorruptStore
        When a committed row of the source is not finite, or a file is not what it should be.
    StoreError
        When the self-check finds an original name.
    """
    with staged(export.out, _request(export)) as stage:
        cost = None
        if export.options.compact == compact.INT8:
            cost = compact.Cost(_rows_of_seed_0(export))
        of_slide = layout.by_slide(export.listing)
        for row in export.rows:
            _write_slide(export, row["slide_id"], of_slide.get(row["slide_id"], []), stage, cost)
            advance(1, row["slide_id"])
        written = export.recipe if cost is None else replace(export.recipe, compact=cost.to_json())
        _write_rest(export, written, stage)
        size = {name: n for name, n in layout.list_files(stage).items() if name != REQUEST}
        if export.names is not None:
            _check(export, stage, list(size), advance)
            if export.options.mapping is not None:
                pseudonyms.write_mapping(export.options.mapping, export.names.mapping())
    return _summary(export, written, size)


def _request(export: Export) -> dict[str, Any]:
    """All that decides the bytes; the listing stands for the source, which may have grown since an interruption."""
    listing = json.dumps(sorted(export.listing.items())).encode()
    return {
        "command": "store export",
        "store": str(export.store),
        "listing": hashlib.sha256(listing).hexdigest(),
        "recipe": export.recipe.digest(),
        "key_id": export.names and export.names.key_id,
        "compact": export.options.compact,
        "pixels": export.options.pixels,
        "keep_columns": sorted(export.options.keep_columns),
    }


def _rows_of_seed_0(export: Export) -> int:
    blocks = (b for row in export.rows for b in recode.committed_blocks(export.store, row["slide_id"]))
    return sum(len(block.rows) for block in blocks if block.seed == 0)


def _write_slide(
    export: Export, slide_id: str, names: Sequence[str], stage: Path, cost: compact.Cost | None
) -> None:
    new_id = slide_id if export.names is None else export.names.of("slide", slide_id)
    kinds = {"patches", "commit", "features"} | ({"pixels"} if export.options.pixels else set())
    if export.names is None:
        kinds.add("picture")
    recoding = export.options.compact is not None
    blocks = recode.committed_blocks(export.store, slide_id) if recoding else []
    if recoding and not blocks:
        kinds.discard("features")
    for name in names:
        known = layout.classify(name)
        if known is None or known.kind not in kinds or (recoding and _RECODED.fullmatch(name)):
            continue
        if export.names is None:
            copy_file(export.store, name, export.listing[name], stage)
        elif name.endswith("zarr.json"):
            copy_metadata(export.store, name, stage / renamed(name, new_id))
        elif known.kind in ("features", "pixels"):
            copy_file(export.store, name, export.listing[name], stage, renamed(name, new_id))
    if export.names is not None:
        write_manifest(export.store, slide_id, stage, new_id)
    if blocks:
        recode.write_groups(stage, new_id)
        if cost is not None:
            recode.write_int8(export.store, slide_id, blocks, stage, new_id, cost)
        else:
            recode.write_lossless(export.store, slide_id, blocks, stage, new_id)


def _write_rest(export: Export, written: recipe.Recipe, stage: Path) -> None:
    """What is of no slide: groups, slides table, options; the recipe last."""
    for root in ("features.zarr", "pixels.zarr"):
        if (stage / root).is_dir():
            files.write_json(stage / root / "zarr.json", recode.GROUP)
    before = files.read_options(export.store, "export")
    about = {
        "pseudonymised": export.names is not None or before.get("pseudonymised") is True,
        "key_id": export.names.key_id if export.names is not None else before.get("key_id"),
        "compact": export.options.compact or before.get("compact"),
        "pixels": export.options.pixels,
        "keep_columns": sorted(export.options.keep_columns),
    }
    files.write_json(stage / "options" / "export.json", about)
    if export.names is None:
        name = "manifest/slides.parquet"
        copy_file(export.store, name, export.listing[name], stage)
    else:
        hidden = _hidden(export)
        rows = [{k: v for k, v in row.items() if k not in hidden} for row in export.rows]
        manifest.write_slides(stage, [row | {"reason": ""} for row in export.names.rows(rows)])
    for name in sorted(export.listing):
        known = layout.classify(name)
        command = Path(name).stem
        if known is None or known.kind != "options" or command == "export":
            continue
        options = files.read_options(export.store, command)
        if "pixels" in options:
            options["pixels"] = options["pixels"] is True and export.options.pixels
        shown = options if export.names is None else public_options(command, options)
        if shown is not None:
            files.write_json(stage / name, shown)
    recipe.save(stage, written)


def _hidden(export: Export) -> list[str]:
    if export.names is None:
        return []
    return [column for column in own_columns(export.rows) if column not in export.options.keep_columns]


def _check(export: Export, stage: Path, names: Sequence[str], advance: Advance) -> None:
    assert export.names is not None
    open_slides = {export.names.of("slide", row["slide_id"]) for row in export.rows}

    def checked(name: str) -> None:
        known = layout.classify(name)
        if known is not None and known.slide_id in open_slides:
            open_slides.discard(known.slide_id)
            advance(1, f"self-check: {known.slide_id}")

    issued = export.names.given()
    leaks.check_export(stage, names, issued, export.originals, export.options.keep_columns, checked)


def _summary(export: Export, written: recipe.Recipe, size: Mapping[str, int]) -> dict[str, Any]:
    views = sum(row["views"] for row in manifest.count_views(export.out).to_pylist())
    in_features = sum(n for name, n in size.items() if name.startswith(f"{features.ROOT}/"))
    before = sum(n for name, n in export.listing.items() if name.startswith(f"{features.ROOT}/"))
    return {
        "store": str(export.store),
        "out": str(export.out),
        "recipe_digest": written.digest() if written.complete else None,
        "slides": len(export.rows),
        "slides_left_out": export.left_out,
        "views": views,
        "pseudonymised": export.names is not None,
        "key_id": export.names and export.names.key_id,
        "columns_left_out": _hidden(export),
        "compact": export.options.compact,
        "cost": None if export.options.compact != compact.INT8 else written.compact,
        "bytes": sum(size.values()),
        "bytes_per_view": in_features / views if views else None,
        "bytes_per_view_before": before / views if views else None,
    }
