"""``store verify``, structure: every part of a store is there, agrees with the others, and fits its checksums.

The store may come from another lab: whatever is wrong with it becomes a `Finding`, not an exception.
"""

import contextlib
import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stores.errors import StoreError
from stores.format import layout, manifest, recipe, tiles
from stores.format.committed import same_picture, same_pictures, slides_problems, tiles_in_two_splits
from stores.format.figures import Figures
from stores.format.index import Index, index_problems, read_index, sizes_of
from stores.format.layout import by_slide, classify
from stores.format.metadata import GROUP
from stores.io import files
from stores.io.location import StoreLike, read_file, walk
from stores.io.progress import SILENT, Reporter
from stores.io.text import counted, human_bytes
from stores.verify.checks import SlideFiles, SlideFindings, StoreCheck
from stores.verify.findings import Finding
from stores.verify.seal import check_digest, check_seal
from stores.verify.slide import check_slide


@dataclass(slots=True)
class Structure:
    """The result of reading every byte of a store."""

    store: str = ""
    findings: list[Finding] = field(default_factory=list)
    slides: int = 0
    views: int = 0
    bytes: int = 0
    sealed: bool = False

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "store": self.store,
            "ok": not self.findings,
            "findings": [finding.to_json() for finding in self.findings],
            "slides": self.slides,
            "views": self.views,
            "bytes": self.bytes,
            "sealed": self.sealed,
        }

    def lines(self) -> list[str]:
        """The same to read, without the findings."""
        sealed = "sealed, checksums compared" if self.sealed else "not sealed"
        return [
            f"structure: {counted(self.slides, 'slide')}, {counted(self.views, 'view')}, "
            f"{human_bytes(self.bytes)} read; {sealed}"
        ]


Each = Callable[[Callable[[SlideFiles], SlideFindings], Iterable[SlideFiles]], Iterable[SlideFindings]]


def verify_structure(
    store: StoreLike,
    partial: bool = False,
    report: Reporter = SILENT,
    each: Each = map,
    digest: str | None = None,
) -> Structure:
    """Read every byte of a store once (twice when it is sealed) and report what is wrong.

    Parameters
    ----------
    partial : bool
        Views that were never extracted are no finding: the store is known to be unfinished.
    report : Reporter
        Advances by byte.
    each
        Calls a function for every slide, as `map` does, in any order.
    digest : str, optional
        Of the seal that the store must carry.

    Raises
    ------
    StoreError
        When `store` is no store at all.
    """
    odd: list[Finding] = []
    listed = _list(store, odd)
    if not any(name.split("/")[0] in (layout.RECIPE, layout.MANIFEST, layout.FEATURES) for name in listed):
        wanted = ", ".join(f"no {name}" for name in (layout.RECIPE, layout.MANIFEST, layout.FEATURES))
        raise StoreError(f"{store}: {wanted}: this is not a store")
    report.start("verify structure", sum(listed.values()))
    state = StoreCheck(store, listed, {}, None, partial, found=odd)
    for file, check in (
        (layout.RECIPE, _check_recipe),
        (layout.SLIDES, _check_slides_table),
        (layout.MANIFEST, _check_names),
        (layout.METADATA, _check_groups),
    ):
        with state.unexpected(file):
            check(state)
    result = Structure(str(store), bytes=sum(listed.values()))
    mine = by_slide(listed)
    with state.unexpected(layout.VIEWS):
        state.n_seeds = _count_seeds(store, mine)
    slides = [
        SlideFiles(
            slide_id,
            state.slides.get(slide_id),
            {name: listed[name] for name in mine.get(slide_id, ())},
            state.stored,
            partial,
            state.n_seeds,
            layout.INDEX in listed,
        )
        for slide_id in sorted({*state.slides, *mine})
    ]
    done: dict[str, SlideFindings] = {}
    for found in each(functools.partial(check_slide, store), slides):
        done[found.slide_id] = found
        report.advance(sum(listed[name] for name in mine.get(found.slide_id, ())), found.slide_id)
    for slide_id in sorted(done):
        state.found += done[slide_id].findings
        result.views += done[slide_id].views
    with state.unexpected(layout.INDEX):
        _check_index(state, list(done.values()))
    result.slides = sum(row["status"] == manifest.OK for row in state.slides.values())
    result.sealed = layout.CHECKSUMS in listed
    state.found += check_digest(store, digest)
    state.found += check_seal(store, listed, report)
    result.findings = state.found
    return result


def _count_seeds(store: StoreLike, slide_ids: Iterable[str]) -> int:
    """Seeds that the store has according to its readable commit records."""
    n_seeds = 0
    for slide_id in slide_ids:
        for commit in manifest.commits(store, slide_id):
            if commit.seeds.stop > n_seeds:
                with contextlib.suppress(StoreError):  # a finding later on
                    commit.read(["row"])
                    n_seeds = commit.seeds.stop
    return n_seeds


def _list(store: StoreLike, odd: list[Finding]) -> dict[str, int]:
    if not isinstance(store, Path):
        return store.list_files()
    if not store.is_dir():
        raise StoreError(f"{store}: no such folder")

    def note(name: str, what: str) -> None:
        odd.append(Finding(name, f"is {what}; a store consists of plain files and folders", "stray"))

    return dict(walk(store, note))


def _check_recipe(state: StoreCheck) -> None:
    name = layout.RECIPE
    try:
        raw = read_file(state.store, name, layout.limit_bytes(name))
        if raw is None:
            return state.add(name, "is missing", "file")
        value = files.parse_json(raw.decode("utf-8"))
        state.stored = recipe.from_json(value, name)
    except ValueError as error:
        return state.add(name, f"is not readable JSON ({files.first_line(error)})", "file")
    except StoreError as error:
        return state.add(name, error, "file")
    if "digest" not in value:
        state.add(name, "carries no digest; `g2l store reindex` adds it", "file")
    elif raw.decode() != files.json_text(value):
        state.add(name, "is not written as a recipe is: edited by hand", "file")
    for problem in recipe.problems(state.stored):
        state.add(name, problem, "file")
    if not state.stored.complete:
        state.add(name, recipe.NO_FEATURES, "missing")


def _check_slides_table(state: StoreCheck) -> None:
    name = layout.SLIDES
    if name not in state.listed:
        return state.add(name, "is missing", "file")
    try:
        state.slides = {row["slide_id"]: row for row in manifest.read_slides(state.store)}
    except StoreError as error:
        return state.add(name, error, "file")
    patch = None if state.stored is None else state.stored.patch
    for slide_id, problem in slides_problems(list(state.slides.values()), patch):
        state.add(name, problem, "file", slide_id)
    for row, other in same_pictures(state.slides.values()):
        if row["split"] == other["split"]:
            state.add(name, same_picture(row, other), "file", row["slide_id"])
    if patch is not None and patch.grid == tiles.GRID:
        usable = [row for row in state.slides.values() if row["status"] == manifest.OK]
        for slide_id, problem in tiles_in_two_splits(state.store, usable):
            state.add(name, problem, "file", slide_id)


def _check_names(state: StoreCheck) -> None:
    """Files with unknown names, files of slides that are not listed, Parquet files without their own checksum."""
    known = layout.SLIDES in state.listed and not any(f.file == layout.SLIDES for f in state.found)
    strangers: dict[str, int] = {}
    for name in state.listed:
        what = classify(name)
        if state.listed[name] > layout.limit_bytes(name) and what is not None:
            problem = f"has {state.listed[name]} bytes; no file of this kind has more than {layout.limit_bytes(name)}"
            state.add(name, problem, "file", what.slide_id)
            continue
        if what is None:
            state.add(name, "is a stray file: no store has one of this name", "stray")
        elif known and what.slide_id is not None:
            row = state.slides.get(what.slide_id)
            if row is None or (row["status"] != manifest.OK and what.kind != "picture"):
                strangers[what.slide_id] = strangers.get(what.slide_id, 0) + 1
        if name.endswith(".parquet") and what is not None:
            raw = read_file(state.store, name, layout.limit_bytes(name))
            if raw and manifest.checksum_matches(raw) is None:
                state.add(name, "carries no checksum; `g2l store reindex` adds it", "file", what.slide_id)
    for slide_id, count in strangers.items():
        state.add(
            layout.SLIDES,
            f"does not list this slide as usable, but it has {count} files",
            "stray",
            slide_id,
        )


def _check_index(state: StoreCheck, slides: Sequence[SlideFindings]) -> None:
    """The index against what the slides' records and statistics were found to be.

    Whether it says the same is judged where nothing else is wrong: a lost file makes it wrong too, and was named.
    """
    try:
        index = read_index(state.store)
        if index is None:
            return
    except StoreError as error:
        return state.add(layout.INDEX, error, "index")
    if any(found.kind not in ("stray", "index") for found in state.found):
        return None
    of_slide = {of.slide_id: of.records for of in slides if of.records}
    figures = Figures()
    for of in slides:
        figures.take_in(of.figures)
    made = Index(of_slide, figures.to_json(state.store), *sizes_of(state.listed))
    for commit, problem in index_problems(index, made):
        text = f"{problem}; `g2l store reindex` writes it again"
        if commit is None:
            state.add(layout.INDEX, text, "index")
        else:
            place: dict[str, Any] = {"block": commit.block, "seeds": commit.seeds}
            state.add(layout.INDEX, text, "index", commit.slide_id, **place)


def _check_groups(state: StoreCheck) -> None:
    """The ``zarr.json`` of groups, and whether the options are JSON; both are small."""
    expected = {
        layout.metadata_file(name.split("/")[0])
        for name in state.listed
        if name.split("/")[0].endswith(".zarr")
    }
    for slide_id, row in state.slides.items():
        features = layout.metadata_file(layout.feature_array(slide_id, "features"))
        if row["status"] == manifest.OK and features in state.listed:
            expected.add(layout.metadata_file(layout.slide_group(slide_id)))
    for name in sorted(expected | {name for name in state.listed if name.startswith(f"{layout.OPTIONS}/")}):
        raw: bytes | None = None
        try:
            raw = read_file(state.store, name, layout.limit_bytes(name))
            value = None if raw is None else files.parse_json(raw.decode("utf-8"))
        except StoreError as error:  # a link, a pipe, or too large
            state.add(name, error, "file")
            continue
        except ValueError as error:
            value = files.first_line(error)
        known = classify(name)
        if name in expected and value != GROUP:
            problem = "is missing" if name not in state.listed else "is not that of a group"
            state.add(name, problem, "metadata", known.slide_id if known else None)
        elif not isinstance(value, dict):
            state.add(name, f"is not readable JSON ({value!r:.80})", "file")
