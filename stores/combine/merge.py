"""``store merge``: the union of stores by slide.

The files of a slide depend on no other slide, so they are copied; the slides table is written again. What several
stores have of one slide is compared before anything is written (`stores.combine.reconcile`).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stores.combine.copy_slide import Choice, Shared, Source, copy_slide
from stores.combine.reconcile import choose
from stores.errors import OptionError, RecipeMismatch, StoreError
from stores.format import layout, manifest, recipe, terms, tiles
from stores.format.index import read_index, renew_index
from stores.format.splits import count_splits, split_warnings
from stores.io import files
from stores.io.location import StoreLike
from stores.io.progress import SILENT, Reporter
from stores.io.staging import REQUEST, staged

_EXTRACTED = layout.options_file("extract-teacher")
_MADE_BY = (layout.options_file("tile"), _EXTRACTED)


def merge(
    stores: Sequence[StoreLike], out: Path, allow_duplicates: bool = False, report: Reporter = SILENT
) -> Shared:
    """Write the union of stores by slide. Call it again after an interruption: it continues.

    A slide of several stores is copied once. What they all have of it must be equal; seeds, blocks, pixels and own
    columns that only one store has are added. A slide that failed in one store and is usable in another is usable.

    Parameters
    ----------
    allow_duplicates : bool
        Accept the same slide file under two ids.
    report : Reporter
        Advances by slide.

    Raises
    ------
    RecipeMismatch
        When the recipes differ: names the stores, the field and both values.
    StoreError
        When the stores contradict each other: names the slide, what differs, and both values.
    OptionError
        When there are fewer than two stores, or `out` exists.
    """
    if len(stores) < 2:
        raise OptionError("merge: give two stores or more")
    sources = [Source(store) for store in stores]
    for other in sources[1:]:
        _require_same_recipe(sources[0], other)
    names = sorted({name for source in sources for name in source.rows})
    report.start("merge", len(names))
    choices = {name: choose(name, sources) for name in names}
    _require_one_split(choices, sources)
    if not allow_duplicates:
        _require_distinct(choices, sources)
    if sources[0].recipe.patch.grid == tiles.GRID:
        _require_distinct_tiles(choices, sources, allow_duplicates)
    request = {"command": "merge", "stores": [[str(s), s.identity()] for s in sources]}
    result = begin(out, sources)
    with staged(out, request) as stage:
        for slide_id, choice in choices.items():
            copy_slide(slide_id, choice, None, stage, result)
            report.advance(1, slide_id)
        for name in _MADE_BY:
            having = [source for source in sources if name in source.listed]
            for source in having[:1]:
                source.copy([name], stage, result)
        _join_terms(stage, sources)
        files.write_json(stage / layout.options_file("merge"), {"sources": result.sources})
        rows = [choice.row for choice in choices.values()]
        finish(stage, sources[0].recipe, rows, result)
        result.warnings += split_warnings(count_splits(rows))
    return result


def _join_terms(stage: Path, sources: Sequence[Source]) -> None:
    """Record the terms that any of the stores knows, so that a merge does not lose a licence."""
    path, teacher = stage / _EXTRACTED, sources[0].recipe.teacher
    if teacher is None or not path.is_file():
        return
    having = [source.store for source in sources if _EXTRACTED in source.listed]
    known = terms.union(*(terms.of_store(store, teacher.name) for store in having))
    if known != terms.of_store(stage, teacher.name):
        files.write_json(path, layout.read_options(stage, "extract-teacher") | terms.recorded(known))


def begin(out: Path, sources: Sequence[Source]) -> Shared:
    """The result before anything is copied: the sources, and what is not copied from them."""
    result = Shared(str(out), sources=[source.about() for source in sources])
    for source in sources:
        result.left_out += [f"{source}/{name}" for name in source.unknown]
        if layout.CHECKSUMS in source.listed:
            result.notes.append(f"{source} is sealed, its copy is not: `g2l store seal` seals it")
        cards = [name for name in (layout.README, layout.CROISSANT) if name in source.listed]
        if cards:
            result.notes.append(f"{source}: {' and '.join(cards)} not copied, they describe the whole store")
    return result


def finish(stage: Path, stored: recipe.Recipe, rows: Sequence[Mapping[str, Any]], result: Shared) -> None:
    """Write slides table, recipe and index of a new store, and count what is in it."""
    manifest.write_slides(stage, rows)
    recipe.save(stage, stored)
    result.slides = len(rows)
    result.patches = sum(row["n_patches"] for row in rows)
    listed = layout.list_files(stage)
    problem = renew_index(stage, listed)
    index = None if problem else read_index(stage)
    if problem is not None:
        result.notes.append(problem)
    if index is not None:
        listed[layout.INDEX] = (stage / layout.INDEX).stat().st_size
        counts = index.count_views({row["slide_id"]: row for row in rows})
    else:
        counts = manifest.count_views(stage).to_pylist()
    result.bytes = sum(size for name, size in listed.items() if name != REQUEST)
    committed = sum(count["views"] for count in counts)
    result.recipe_digest = stored.digest() if stored.complete else None
    result.seeds = sorted({count["seed"] for count in counts})
    result.views = sum(count["views"] for count in counts if count["status"] == manifest.OK)
    result.complete = committed / (result.patches * len(result.seeds)) if committed else 0.0


def _require_same_recipe(first: Source, other: Source) -> None:
    found = recipe.differences(first.recipe, other.recipe)
    if found:
        name, a, b = found[0]
        more = f" (and {len(found) - 1} more: {', '.join(n for n, _, _ in found[1:])})" if found[1:] else ""
        raise RecipeMismatch(
            f"recipe.{name}: {first} has {a!r:.200}, {other} has {b!r:.200}{more}; only stores of one recipe can be "
            f"merged, these are {first.recipe.digest()[:12]} and {other.recipe.digest()[:12]}"
        )


def _usable(choices: Mapping[str, Choice]) -> list[tuple[str, dict[str, Any]]]:
    return [(name, c.row) for name, c in choices.items() if c.row["status"] == manifest.OK]


def _together(a: str, b: str, sources: Sequence[Source]) -> bool:
    """Whether one of the stores has both slides, usable: then the merge is not what brings them together."""
    return any(
        all(name in s.rows and s.rows[name]["status"] == manifest.OK for name in (a, b)) for s in sources
    )


def _require_one_split(choices: Mapping[str, Choice], sources: Sequence[Source]) -> None:
    """Two stores may have put one patient into different splits: training would see what it is validated on."""
    seen: dict[str, dict[str, str]] = {}
    for slide_id, row in _usable(choices):
        of_patient = seen.setdefault(row["patient_id"], {})
        for split, other in of_patient.items():
            if split != row["split"] and not _together(slide_id, other, sources):
                raise StoreError(
                    f"patient {row['patient_id']}: slide {other} is in {split}, slide {slide_id} in {row['split']}; a "
                    "patient in two splits leaks into validation: tile one store again with the other's splits, or "
                    "leave one of the slides out with `g2l store subset`"
                )
        of_patient.setdefault(row["split"], slide_id)


def _require_distinct_tiles(
    choices: Mapping[str, Choice], sources: Sequence[Source], allow_duplicates: bool
) -> None:
    """Two stores may have put one tile into different groups, and these into different splits."""
    seen: dict[str, str] = {}
    for slide_id, row in _usable(choices):
        found = manifest.read_patches(choices[slide_id].base.store, slide_id).tile
        for tile in () if found is None else np.unique(found).tolist():
            other = seen.setdefault(tile, slide_id)
            same_split = choices[other].row["split"] == row["split"]
            if (
                other != slide_id
                and not (allow_duplicates and same_split)
                and not _together(slide_id, other, sources)
            ):
                remedy = ", or take both with --allow-duplicates" if same_split else ""
                raise StoreError(
                    f"groups {other} ({choices[other].row['split']}) and {slide_id} ({row['split']}) have a tile in "
                    f"common, {tile}: leave one out with `g2l store subset`{remedy}"
                )


def _require_distinct(choices: Mapping[str, Choice], sources: Sequence[Source]) -> None:
    seen: dict[str, str] = {}
    for slide_id, row in _usable(choices):
        other = seen.setdefault(row["fingerprint"] or f"slide {slide_id}", slide_id)
        if other != slide_id and not _together(slide_id, other, sources):
            raise StoreError(
                f"slides {other} and {slide_id}: one file under two names (fingerprint {row['fingerprint']:.16}); "
                "leave one out with `g2l store subset`, or take both with --allow-duplicates"
            )
