"""Find the pixels of a store's slides: its own, or the slide files that the user gives."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.slides.sources import Source, StoreSource
from pipeline.tiles.places import find_places
from stores.errors import OptionError
from stores.export import pseudonyms
from stores.format import manifest, pixels, recipe
from stores.io.location import StoreLike
from stores.io.progress import SILENT, Reporter


def find_sources(
    store: StoreLike,
    stored: recipe.Recipe,
    slide_ids: set[str],
    given: Sequence[Path],
    report: Reporter = SILENT,
) -> dict[str, Source]:
    """Where the patches of each slide come from: the store's pixels, otherwise the slide file.

    Raises
    ------
    OptionError
        When a slide is in neither.
    SlideError
        When a slide file does not open, or is not the one that was tiled.
    """
    rows: dict[str, dict[str, Any]] = {row["slide_id"]: row for row in manifest.read_slides(store)}
    places = find_places(store, stored.patch, rows.values(), given, report=report) if given else {}
    kept = pixels.slides_with_pixels(store)
    sources: dict[str, Source] = {}
    for slide_id in sorted(slide_ids):
        if slide_id in kept:
            sources[slide_id] = StoreSource(slide_id, store)
            continue
        if slide_id in rows and pseudonyms.is_keyed(rows[slide_id]["fingerprint"]):
            raise OptionError(
                f"slide {slide_id}: under a pseudonym, so that no slide file can be matched to it, and without pixels; "
                "ask for an export with pixels"
            )
        if slide_id not in places:
            where = f"not found in {', '.join(map(str, given))}" if given else "give the slides with --slides"
            raise OptionError(f"slide {slide_id}: the store keeps no pixels of it; {where}")
        sources[slide_id] = places[slide_id].source(rows[slide_id], stored)
    return sources
