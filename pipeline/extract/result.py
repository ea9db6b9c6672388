"""What a run of ``extract-teacher`` did: to one store, or to several that saw the same views."""

import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.inference.task import Tally
from stores.info import store_info
from stores.io.text import counted, first_of, human_bytes


@dataclass(kw_only=True)
class IntoStore(Tally):
    """What a run did that adds views to a store, and what the store holds after it."""

    store: Path

    @functools.cached_property
    def held(self) -> dict[str, Any]:
        """What `store_info` says after the run. It reads every commit record, so it is asked once."""
        return store_info(self.store)

    def held_json(self) -> dict[str, Any]:
        """Which views the store has, and how many of them are new, as plain JSON types."""
        return {
            "store": str(self.store),
            "recipe_digest": self.held["recipe_digest"],
            "views": self.held["views"],
            "views_new": self.views,
            "views_before": self.views_before,
        }

    def held_line(self) -> str:
        """The same as text, less the recipe."""
        held = counted(self.held["views"], "view")
        return f"{held} in {self.store} ({self.views} new, {self.views_before} found done)"


@dataclass(kw_only=True)
class Extracted(IntoStore):
    """What a run of ``extract-teacher`` did, and what the store holds now."""

    refused: list[str] = field(default_factory=list)
    """A line for each tile of the list that could not be used; empty for slides."""
    like: str = ""
    """The store whose views were made again; empty without one."""
    compared: int = 0
    """Views of the store whose checksum is that of the other one."""

    @property
    def some_failed(self) -> bool:
        """Whether a slide, a tile, a block or a patch could not be done."""
        return super().some_failed or bool(self.refused)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            **self.held_json(),
            **{name: self.held[name] for name in ("complete", "bytes", "bytes_per_view")},
            **self.figures_json(),
            **({"refused_tiles": self.refused} if self.refused else {}),
            **({"like": self.like, "compared": self.compared} if self.like else {}),
        }

    def lines(self) -> list[str]:
        """The same as text."""
        said = self.said_lines()
        if self.views:
            size = human_bytes(self.held["bytes_per_view"])
            memory = human_bytes(self.figures["peak_rss_bytes"])
            said.insert(1, f"{self.speed()}; {size} a view, peak memory {memory}")
        return [*said, *self.failed_lines()]

    def said_lines(self) -> list[str]:
        """What the store holds, and what was compared."""
        digest = self.held["recipe_digest"][:12]
        lines = [f"{self.held_line()}, {self.held['complete']:.1%} of all patches; recipe {digest}"]
        if self.like:
            others = self.held["views"] - self.compared
            lines.append(
                f"{counted(self.compared, 'view has', 'views have')} the checksum of that in {self.like}; "
                f"{counted(others, 'view is', 'views are')} not there"
            )
        return lines

    def failed_lines(self) -> list[str]:
        """What could not be done, and why: patches, blocks, slides, tiles."""
        return [*super().failed_lines(), *first_of("tile not used", self.refused)]


@dataclass(slots=True)
class ExtractedTogether:
    """What a run did whose views were rendered once for several stores."""

    stores: list[Extracted]
    rendered: int = 0
    """Views that were rendered now, each for one store or more."""

    @property
    def some_failed(self) -> bool:
        """Whether a slide, a tile, a block or a patch could not be done for some store."""
        return any(store.some_failed for store in self.stores)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"rendered": self.rendered, "stores": [store.to_json() for store in self.stores]}

    def lines(self) -> list[str]:
        """The same as text."""
        lines = [line for store in self.stores for line in store.said_lines()]
        encoded = sum(store.views for store in self.stores)
        if encoded:
            first = next(store for store in self.stores if store.views)
            lines.append(
                f"{counted(self.rendered, 'view')} rendered, and encoded {counted(encoded, 'time')} by "
                f"{counted(len(self.stores), 'teacher')}: {self.rendered / first.seconds:.1f} a second, "
                f"{first.waiting()}; peak memory {human_bytes(first.figures['peak_rss_bytes'])}"
            )
        failed = [store.failed_lines() for store in self.stores]
        if all(text == failed[0] for text in failed):
            return lines + failed[0]
        for store, text in zip(self.stores, failed, strict=True):
            lines += [f"{store.store}:", *text] if text else []
        return lines
