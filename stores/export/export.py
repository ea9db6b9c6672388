"""A copy of a store for others: under pseudonyms, smaller for a slow line, or both; or in few large files.

A copy under pseudonyms has features, pixels if wanted, coordinates, drawn parameters, splits, vendor, sizes and mpp.
It has keyed hashes for slide, patient, file and fingerprint. Left out are slides that could not be used (their reasons
hold paths), the user's own columns, pictures (a thumbnail may show a label), README and checksums, and whatever is not
in the lists of `allowed`. A self-check reads the copy by the same lists, and searches it for the old names, before it
is published. Features and pixels themselves can still identify a patient.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from stores.errors import OptionError, StoreError
from stores.export import pack, recode
from stores.export.allowed import VENDORS, check_recipe, free_texts, public_options
from stores.export.deidentify import (
    chunks_within,
    copy_metadata,
    own_columns,
    public_rows,
    renamed,
    without_path,
    write_manifest,
)
from stores.export.leak_check import Originals, check_columns, check_export, check_texts
from stores.export.pseudonyms import Pseudonyms, check_mapping, write_mapping
from stores.format import arrays, layout, manifest, recipe
from stores.format.chunks import require_loose
from stores.format.index import renew_index
from stores.format.int8 import INT8, KINDS, Cost
from stores.format.layout import read_options
from stores.format.metadata import GROUP
from stores.io import files
from stores.io.location import StoreLike
from stores.io.progress import SILENT, Reporter
from stores.io.staging import REQUEST, copy_file, staged
from stores.io.text import counted, first_of, human_bytes

_RECODED = re.compile(r"features\.zarr/[^/]+/(?:(?:features|tokens)/.*|zarr\.json)")
_ATTENTION = re.compile(r"features\.zarr/[^/]+/attention/.*")
_TOKENS = re.compile(r"features\.zarr/[^/]+/(?:tokens|positions)/.*")


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """What to export."""

    compact: str | None = None
    """``lossless``, ``int8`` or None."""
    pseudonyms: Pseudonyms | None = None
    keep_columns: tuple[str, ...] = ()
    """Columns of the user's own to keep under pseudonyms."""
    pixels: bool = True
    tokens: bool = True
    attention: bool = True
    mapping: Path | None = None
    """CSV of originals and pseudonyms to write for the lab itself."""
    form: str | None = None
    """``packed``: chunks in few large files; ``loose``: a file for each again; None keeps the form."""


@dataclass(slots=True)
class Exported:
    """What an export made."""

    store: str
    """Folder of the copy."""
    slides: int = 0
    patches: int = 0
    files: int = 0
    bytes: int = 0
    left_out: list[str] = field(default_factory=list)
    """Files of the source that no store has."""
    compact: dict[str, Any] | None = None
    """The measured error of an int8 copy."""
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; the names that were replaced are not in it."""
        return asdict(self)

    def lines(self) -> list[str]:
        """The same to read."""
        lines = [
            f"{self.store}: {counted(self.slides, 'slide')}, {counted(self.patches, 'patch', 'patches')}; "
            f"{counted(self.files, 'file')}, {human_bytes(self.bytes)}"
        ]
        if self.compact:
            error = self.compact
            lines.append(
                f"int8: relative error {error['relative_error']:.2%} on average, "
                f"{error['max_relative_error']:.2%} at most"
            )
            if "nn10_overlap" in error:
                lines.append(f"      {error['nn10_overlap']:.1%} of the 10 nearest neighbours stay the same")
        lines += [f"note: {text}" for text in self.notes]
        return lines + first_of("left out, not a file of the format", self.left_out)


@dataclass(frozen=True, slots=True)
class _Plan:
    """A request that was checked against its store."""

    store: StoreLike
    out: Path
    options: ExportOptions
    recipe: recipe.Recipe
    rows: list[dict[str, Any]]
    """Slides of the export, under their original names."""
    listing: Mapping[str, int]
    names: Pseudonyms | None
    originals: Originals

    @property
    def total(self) -> int:
        """How often `write` advances by one: a slide written, a slide checked."""
        return len(self.rows) * (1 if self.names is None else 2)


def export(store: StoreLike, out: Path, options: ExportOptions, report: Reporter = SILENT) -> Exported:
    """Write an export. Call it again after an interruption: it continues.

    Parameters
    ----------
    report : Reporter
        Advances by one for a slide written and for a slide checked.

    Raises
    ------
    OptionError
        When options contradict each other, the store, or what an export may hold.
    CorruptStore
        When a committed row of the source is not finite, or a file is not what it should be.
    StoreError
        When the self-check finds an original name; nothing is published then.
    """
    plan = _plan(store, out, options)
    report.start("export", plan.total)
    return _write(plan, report)


def _plan(store: StoreLike, out: Path, options: ExportOptions) -> _Plan:
    stored = recipe.load(store)
    _check_options(store, stored, out, options)
    every = manifest.read_slides(store)
    if not every:
        raise StoreError(f"{store}: has no slides yet; run `g2l tile` first")
    originals = Originals(every)
    rows, names = every, None
    if options.pseudonyms is not None:
        rows = [row for row in every if row["status"] == manifest.OK]
        names = options.pseudonyms.fresh()
        names.rows(rows)  # finds collisions now
        stored = without_path(stored)
        check_recipe(stored, store)
        check_columns(rows, options.keep_columns, originals)
        check_texts(store, stored, rows, originals)
        if options.mapping is not None:
            check_mapping(options.mapping, names.mapping(), store, out)
    if not options.tokens:
        stored = replace(stored, tokens=None)
    if not options.attention:
        stored = replace(stored, attention=None)
    return _Plan(store, out, options, stored, rows, layout.list_files(store), names, originals)


def _check_options(store: StoreLike, stored: recipe.Recipe, out: Path, options: ExportOptions) -> None:
    changes = options.pseudonyms is not None or options.compact is not None
    if options.form is None and not changes:
        raise OptionError(
            "export: give --pseudonymise KEYFILE, --compact lossless or int8, or both; or --packed, or --loose"
        )
    if options.form is not None and changes:
        raise OptionError(
            f"--{options.form}: not together with --pseudonymise or --compact; export with these first, and that copy "
            f"with --{options.form}"
        )
    if options.compact not in (None, *KINDS):
        raise OptionError(f"--compact {options.compact}: allowed is {' or '.join(KINDS)}")
    if options.pseudonyms is None:
        for flag, given in (("--keep-column", options.keep_columns), ("--mapping", options.mapping)):
            if given:
                raise OptionError(f"{flag}: only with --pseudonymise; without it every column and name stays")
    if isinstance(store, Path) and out.resolve().is_relative_to(store.resolve()):
        raise OptionError(f"--out {out}: inside the store {store}; choose a place beside it")
    if options.compact is not None:
        recipe.require_complete(stored, store)
    if options.compact == INT8 and stored.tokens is not None and options.tokens:
        raise OptionError(
            f"--compact int8: keeps no tokens, and {store} has {stored.tokens.count} a view; add --no-tokens, or use "
            "--compact lossless"
        )
    if options.compact is not None and stored.compact is not None:
        raise OptionError(
            f"--compact {options.compact}: {store} is a compact copy already ({stored.compact.get('kind')}); "
            "compact the store that it was made from"
        )


def _write(export: _Plan, report: Reporter) -> Exported:
    with staged(export.out, _request(export)) as stage:
        cost = None
        if export.options.compact == INT8:
            cost = Cost(_rows_of_seed_0(export))
        of_slide = layout.by_slide(export.listing)
        for row in export.rows:
            _write_slide(export, row["slide_id"], of_slide.get(row["slide_id"], []), stage, cost)
            report.advance(1, row["slide_id"])
        layout.require_unchanged(export.store, export.listing)
        written = export.recipe if cost is None else replace(export.recipe, compact=cost.to_json())
        _write_rest(export, written, stage)
        problem = renew_index(stage)
        size = {name: n for name, n in layout.list_files(stage).items() if name != REQUEST}
        if export.names is not None:
            _check(export.names, export, stage, list(size), report)
            if export.options.mapping is not None:
                write_mapping(export.options.mapping, export.names.mapping())
    return Exported(
        str(export.out),
        slides=len(export.rows),
        patches=sum(row["n_patches"] for row in export.rows),
        files=len(size),
        bytes=sum(size.values()),
        left_out=[f"{export.store}/{name}" for name in export.listing if layout.classify(name) is None],
        compact=None if cost is None else cost.to_json(),
        notes=[*_notes(export), *([] if problem is None else [problem])],
    )


def _request(export: _Plan) -> dict[str, Any]:
    """Everything that decides the bytes of the export. The listing notices a source that was changed since."""
    local = export.store if isinstance(export.store, Path) else None
    times = {name: (local / name).stat().st_mtime_ns for name in export.listing} if local else {}
    listing = json.dumps([(name, n, times.get(name)) for name, n in sorted(export.listing.items())]).encode()
    return {
        "command": "export",
        "store": str(export.store),
        "listing": hashlib.sha256(listing).hexdigest(),
        "recipe": export.recipe.digest(),
        "key_id": export.names and export.names.key_id,
        "compact": export.options.compact,
        "pixels": export.options.pixels,
        "tokens": export.options.tokens,
        **({} if export.options.form is None else {"form": export.options.form}),
        **({} if export.options.attention else {"attention": False}),
        "keep_columns": sorted(export.options.keep_columns),
    }


def _rows_of_seed_0(export: _Plan) -> int:
    blocks = (b for row in export.rows for b in recode.committed_blocks(export.store, row["slide_id"]))
    return sum(len(block.rows) for block in blocks if block.seed == 0)


def _write_slide(export: _Plan, slide_id: str, names: Sequence[str], stage: Path, cost: Cost | None) -> None:
    new_id = slide_id if export.names is None else export.names.of("slide", slide_id)
    kinds = {"patches", "commit", "features"} | ({"pixels"} if export.options.pixels else set())
    if export.names is None:
        kinds.add("picture")
    recoding = export.options.compact is not None
    blocks = recode.committed_blocks(export.store, slide_id) if recoding else []
    if recoding and not blocks:
        kinds.discard("features")
    if export.options.form is None:
        metadata = (layout.array_of(name) for name in names if name.endswith(layout.METADATA))
        for array in filter(None, metadata):
            require_loose(arrays.read_metadata(export.store, array), f"{export.store}/{array}")
    within = set() if export.names is None else chunks_within(export.store, names)
    of_arrays: list[str] = []
    for name in names:
        known = layout.classify(name)
        if known is None or known.kind not in kinds or (recoding and _RECODED.fullmatch(name)):
            continue
        if not export.options.tokens and _TOKENS.fullmatch(name):
            continue
        if not export.options.attention and _ATTENTION.fullmatch(name):
            continue
        if export.options.form is not None and known.kind in ("features", "pixels"):
            of_arrays.append(name)
            continue
        if export.names is None:
            copy_file(export.store, name, export.listing[name], stage)
        elif name.endswith(layout.METADATA):
            copy_metadata(export.store, name, stage / renamed(name, new_id))
        elif name in within:
            copy_file(export.store, name, export.listing[name], stage, renamed(name, new_id))
    if export.options.form is not None:
        pack.write_arrays(export.store, export.listing, of_arrays, stage, export.options.form)
    if export.names is not None:
        write_manifest(export.store, slide_id, stage, new_id, export.names)
    if blocks:
        recode.write_groups(stage, new_id)
        if cost is not None:
            recode.write_int8(export.store, slide_id, blocks, stage, new_id, cost)
        else:
            recode.write_lossless(export.store, slide_id, blocks, stage, new_id)
            if export.recipe.tokens is not None:
                recode.write_lossless_tokens(
                    export.store, slide_id, blocks, stage, new_id, export.recipe.tokens
                )


def _write_rest(export: _Plan, written: recipe.Recipe, stage: Path) -> None:
    """Write what belongs to no slide: groups, slides table, options; the recipe last."""
    for root in (layout.FEATURES, layout.PIXELS):
        if (stage / root).is_dir():
            files.write_json(stage / layout.metadata_file(root), GROUP)
    before = read_options(export.store, "export")
    about = {
        "pseudonymised": export.names is not None or before.get("pseudonymised") is True,
        "key_id": export.names.key_id if export.names is not None else before.get("key_id"),
        "compact": export.options.compact
        or (before.get("compact") if before.get("compact") in KINDS else None),
        "pixels": export.options.pixels,
        "keep_columns": sorted(export.options.keep_columns),
    }
    files.write_json(stage / layout.options_file("export"), about)
    if export.names is None:
        name = layout.SLIDES
        copy_file(export.store, name, export.listing[name], stage)
    else:
        rows = public_rows(export.rows, _hidden(export))
        manifest.write_slides(stage, export.names.rows(rows))
    for name in sorted(export.listing):
        known = layout.classify(name)
        command = Path(name).stem
        if known is None or known.kind != "options" or command == "export":
            continue
        options = read_options(export.store, command)
        if "pixels" in options:
            options["pixels"] = options["pixels"] is True and export.options.pixels
        if "tokens" in options and not export.options.tokens:
            options["tokens"] = None
        if "attention" in options:
            options["attention"] = options["attention"] is True and export.options.attention
        shown = options if export.names is None else public_options(command, options)
        if shown is not None:
            files.write_json(stage / name, shown)
    recipe.save(stage, written)


def _hidden(export: _Plan) -> list[str]:
    if export.names is None:
        return []
    return [column for column in own_columns(export.rows) if column not in export.options.keep_columns]


def _check(issued: Pseudonyms, export: _Plan, stage: Path, names: Sequence[str], report: Reporter) -> None:
    open_slides = {issued.of("slide", row["slide_id"]) for row in export.rows}

    def checked(name: str) -> None:
        known = layout.classify(name)
        if known is not None and known.slide_id in open_slides:
            open_slides.discard(known.slide_id)
            report.advance(1, f"self-check: {known.slide_id}")

    check_export(stage, names, issued.given(), export.originals, export.options.keep_columns, checked)


def _notes(export: _Plan) -> list[str]:
    if export.names is None:
        return []
    extracted = public_options("extract-teacher", read_options(export.store, "extract-teacher")) or {}
    notes = [
        f"under pseudonyms of key {export.names.key_id}; searched for every original name, none found",
        f"these texts leave as they are, read them: {', '.join(free_texts(export.recipe, extracted))}",
        "features and pixels are those of the patients, and can identify them; share them as you may share the slides",
    ]
    unusable = len(manifest.read_slides(export.store)) - len(export.rows)
    if unusable:
        notes.append(f"{counted(unusable, 'unusable slide is', 'unusable slides are')} left out, reasons too")
    if hidden := _hidden(export):
        notes.append(f"columns left out: {', '.join(hidden)}; --keep-column keeps one")
    if vendors := sorted({row["vendor"] for row in export.rows if row["vendor"]} - VENDORS):
        notes.append(f"vendors that are not known leave as unknown: {', '.join(vendors)}")
    before, now = recipe.load(export.store).teacher, export.recipe.teacher
    if before is not None and now is not None and before.name != now.name:
        notes.append(
            f"the teacher was named by a path; it leaves as {now.name}, which makes it another recipe"
        )
    return notes
