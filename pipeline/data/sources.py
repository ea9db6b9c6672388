"""Find the pixels of a store's slides: its own, or the slide files that the user gives."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.slides import slide as slide_files
from pipeline.slides.sources import SlideSource, Source, StoreSource
from stores.errors import OptionError, SlideError
from stores.export import pseudonyms
from stores.format import manifest, pixels, recipe
from stores.io.location import StoreLike


def find_sources(
    store: StoreLike, stored: recipe.Recipe, slide_ids: set[str], given: Sequence[Path]
) -> dict[str, Source]:
    """Where the patches of each slide come from: the store's pixels, otherwise the slide file.

    Raises
    ------
    OptionError
        When a slide is in neither.
    SlideError
        When a slide file is not the one that the teacher saw.
    """
    paths = slide_files.find_slides(given) if given else {}
    rows: dict[str, dict[str, Any]] = {row["slide_id"]: row for row in manifest.read_slides(store)}
    sources: dict[str, Source] = {}
    for slide_id in sorted(slide_ids):
        if pixels.has_pixels(store, slide_id):
            sources[slide_id] = StoreSource(slide_id, store)
            continue
        if slide_id in rows and pseudonyms.is_keyed(rows[slide_id]["fingerprint"]):
            raise OptionError(
                f"slide {slide_id}: under a pseudonym, so that no slide file can be matched to it, and without pixels; "
                "ask for an export with pixels"
            )
        if slide_id not in paths:
            where = f"not found in {', '.join(map(str, given))}" if given else "give the slides with --slides"
            raise OptionError(f"slide {slide_id}: the store keeps no pixels of it; {where}")
        row = rows[slide_id]
        info = slide_files.inspect(slide_id, paths[slide_id], row["mpp"], row["mpp_source"])
        if info.fingerprint != row["fingerprint"]:
            raise SlideError(f"{paths[slide_id]}: not the file that the teacher saw (fingerprint differs)")
        plan = slide_files.plan_read(info, stored.patch.mpp, stored.patch.size_px)
        sources[slide_id] = SlideSource(slide_id, info.path, plan)
    return sources
