"""``plan``: what the stores of one or several teachers will hold and cost, before anything runs.

Patches are counted once (`pipeline.extract.count`), and nothing is written. Sizes and numbers of files follow from the
layout of a store; only what compression makes of manifest and pixels is an estimate, and is called one.
"""

import dataclasses
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.encoders.presets import PRESETS
from pipeline.extract.count import Counted, SlidePlan, count
from pipeline.extract.options import DEFAULT_SEEDS, PlanOptions
from pipeline.extract.tasks import done_of, index_of, missing_seeds
from pipeline.inference.task import Tally
from pipeline.runtime.progress import Reporter
from pipeline.runtime.resume import begun_otherwise
from pipeline.tile.options import TileOptions
from stores.errors import OptionError, StoreError
from stores.format import features, layout, manifest, recipe, tokens
from stores.io.location import StoreLike
from stores.io.text import first_of, human_bytes, unusable_lines

MANIFEST_BYTES_PER_VIEW = 44
"""Commit records and patches of the demo's store, 968 patches under 4 seeds: 44.0 B a view."""
PIXELS_SHARE = 0.87
"""zstd leaves 0.83 of a patch's bytes on CMU-1-Small-Region and 0.91 on a dense TCGA slide."""
_CHECKSUM_BYTES = 4
_INDEX_FILES = 1  # manifest/index.parquet
_GROUP_FILES = 1  # the zarr.json of features.zarr, or of pixels.zarr
_SLIDE_FILES = 7  # zarr.json of group, features, coords, stats; the chunk of coords; patches; picture
_TOKEN_FILES = 2  # zarr.json of tokens and positions
_ATTENTION_FILES = 1  # its zarr.json
_MEASURED_BATCHES = 5


@dataclass(frozen=True, slots=True)
class TokenPlan:
    """Which patch tokens are planned."""

    count: int
    """How many of each view."""
    dim: int | None
    """Length of a token; None when it cannot be known."""


@dataclass(frozen=True, slots=True)
class Begun:
    """The store that a plan is for, new or begun."""

    store: Path
    views: int
    """Those of the plan that it has."""


@dataclass(slots=True)
class Plan:
    """Everything that ``plan`` says of one teacher."""

    slides: list[SlidePlan]
    unusable: dict[str, str]
    seeds: int
    dim: int | None
    pixels_px: int | None
    """Side of the patches that are kept; None when they are not."""
    views_per_s: float | None
    speed_source: str
    tokens: TokenPlan | None = None
    splits: dict[str, int] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)
    """A line for each tile that cannot be used; empty for slides."""
    attention: int | None = None
    """Side of the grid of patches whose attention is planned; None for none."""
    begun: Begun | None = None
    """None where no store is named."""

    @property
    def patches(self) -> int:
        return sum(slide.patches for slide in self.slides)

    @property
    def views(self) -> int:
        return self.patches * self.seeds

    def feature_bytes(self, dim: int) -> int:
        """Bytes of the chunks of features, coords and statistics: exact."""
        total = 0
        for slide in self.slides:
            blocks = features.n_blocks(slide.patches)
            chunk = features.block_rows(slide.patches) * dim * 2 + _CHECKSUM_BYTES
            stats = 2 * dim * 8 + _CHECKSUM_BYTES
            total += self.seeds * blocks * (chunk + stats) + slide.patches * 8 + _CHECKSUM_BYTES
        return total

    def token_bytes(self, planned: TokenPlan) -> int:
        """Bytes of the chunks of tokens and positions: exact, when their length is known."""
        total, count, dim = 0, planned.count, planned.dim or 0
        for slide in self.slides if dim else ():
            rows = tokens.chunk_rows(slide.patches, count, dim)
            chunks, blocks = -(-slide.patches // rows), features.n_blocks(slide.patches)
            positions = features.block_rows(slide.patches) * count * 4 + _CHECKSUM_BYTES
            total += chunks * (rows * count * dim * 2 + _CHECKSUM_BYTES) + blocks * positions
        return total * self.seeds

    @property
    def attention_bytes(self) -> int:
        """Bytes of the chunks of attention: exact."""
        total, count = 0, (self.attention or 0) ** 2
        for slide in self.slides if count else ():
            chunk = features.block_rows(slide.patches) * count * 2 + _CHECKSUM_BYTES
            total += features.n_blocks(slide.patches) * chunk
        return total * self.seeds

    @property
    def files(self) -> int:
        """Files of the finished store, less recipe, options and slides table: exact for one run of extract-teacher."""
        total = _INDEX_FILES + _GROUP_FILES
        for slide in self.slides:
            blocks = features.n_blocks(slide.patches)
            total += _SLIDE_FILES + blocks * (2 * self.seeds + 1)
            if self.tokens is not None and self.tokens.dim:
                rows = tokens.chunk_rows(slide.patches, self.tokens.count, self.tokens.dim)
                total += _TOKEN_FILES + self.seeds * (blocks - (-slide.patches // rows))
            if self.attention is not None:
                total += _ATTENTION_FILES + self.seeds * blocks
            if self.pixels_px is not None:
                total += 1 + -(-slide.patches // features.ROW_QUANTUM)
        return total + (_GROUP_FILES if self.pixels_px is not None else 0)

    @property
    def pixel_bytes(self) -> int:
        """Bytes of the kept patches: an estimate."""
        side = self.pixels_px or 0
        return int(self.patches * side * side * 3 * PIXELS_SHARE)

    @property
    def total_bytes(self) -> int | None:
        """Bytes of the store, those that are estimates too; None when a length is not known."""
        if not self.dim or (self.tokens is not None and not self.tokens.dim):
            return None
        of_tokens = 0 if self.tokens is None else self.token_bytes(self.tokens)
        arrays = self.feature_bytes(self.dim) + of_tokens + self.attention_bytes
        return arrays + self.views * MANIFEST_BYTES_PER_VIEW + self.pixel_bytes

    @property
    def left(self) -> int:
        """Views that are to do: all, unless a store has some of them."""
        return self.views - (0 if self.begun is None else self.begun.views)

    @property
    def left_bytes(self) -> int | None:
        """Bytes of the views that are to do: an estimate."""
        total = self.total_bytes
        return None if total is None else round(total * self.left / max(self.views, 1))

    @property
    def hours(self) -> float | None:
        """Hours for all views on the device whose speed is given."""
        return self.views / self.views_per_s / 3600 if self.views_per_s else None

    @property
    def left_hours(self) -> float | None:
        """Hours for the views that are to do."""
        return self.left / self.views_per_s / 3600 if self.views_per_s else None

    @property
    def some_failed(self) -> bool:
        """Whether some slide or tile could not be used."""
        return bool(self.unusable or self.refused)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return self.counted_json() | self.teacher_json() | self.failed_json()

    def counted_json(self) -> dict[str, Any]:
        """Patches and views, which are those of every teacher."""
        return {
            "slides": len(self.slides),
            "patients": len({slide.patient_id for slide in self.slides}),
            "patches": self.patches,
            "patches_by_slide": {slide.slide_id: slide.patches for slide in self.slides},
            "patches_by_split": dict(sorted(self.splits.items())),
            "seeds": self.seeds,
            "views": self.views,
        }

    def teacher_json(self) -> dict[str, Any]:
        """Bytes, files and hours of the teacher."""
        dim, begun = self.dim, {}
        if self.begun is not None:
            begun = {
                "store": str(self.begun.store),
                "views_done": self.begun.views,
                "views_left": self.left,
                "left_bytes_estimate": self.left_bytes,
                "left_hours": self.left_hours,
            }
        return {
            "dim": dim,
            "feature_bytes": self.feature_bytes(dim) if dim else None,
            "tokens": self.tokens.count if self.tokens else None,
            "token_bytes": self.token_bytes(self.tokens) if self.tokens and self.tokens.dim else None,
            **({"attention_bytes": self.attention_bytes} if self.attention else {}),
            "manifest_bytes_estimate": self.views * MANIFEST_BYTES_PER_VIEW,
            "pixel_bytes_estimate": self.pixel_bytes,
            "files": self.files,
            "views_per_s": self.views_per_s,
            "speed_source": self.speed_source,
            "hours": self.hours,
            **begun,
        }

    def failed_json(self) -> dict[str, Any]:
        """What cannot be used."""
        return {"unusable": self.unusable} | ({"refused_tiles": self.refused} if self.refused else {})

    def lines(self) -> list[str]:
        """The same as text."""
        return [*self.counted_lines(), *self.teacher_lines(), *self.failed_lines()]

    def counted_lines(self, further: str = "") -> list[str]:
        """Patches and views; `further` follows the number of views."""
        most = sorted(self.slides, key=lambda slide: -slide.patches)[:10]
        width = max([len(slide.slide_id) for slide in most] or [0])
        said = [f"{slide.slide_id:<{width}} {slide.patches:>9,} patches  {slide.split}" for slide in most]
        if len(self.slides) > len(most):
            rest = self.patches - sum(slide.patches for slide in most)
            said.append(f"{f'and {len(self.slides) - len(most)} more':<{width}} {rest:>9,}")
        splits = ", ".join(f"{name} {count:,}" for name, count in sorted(self.splits.items())) or "none"
        said += [
            f"slides    {len(self.slides)} usable, {len(self.unusable)} not",
            f"patches   {self.patches:,} ({splits})",
            f"views     {self.views:,} under {self.seeds} seeds{further}",
        ]
        if "val" not in self.splits:
            said.append("          no validation split: give splits in --slides-csv, or take more patients")
        return said

    def teacher_lines(self) -> list[str]:
        """Bytes, files and time, and what is to do where a store is named."""
        said = []
        if self.dim:
            exact = self.feature_bytes(self.dim)
            rows = human_bytes(self.views * MANIFEST_BYTES_PER_VIEW)
            parts = [f"features {human_bytes(exact)}", f"manifest about {rows}"]
            if self.tokens is not None:
                of_tokens = self.token_bytes(self.tokens)
                a_view = of_tokens / max(self.views, 1)
                parts.append(f"tokens {human_bytes(of_tokens)} ({human_bytes(a_view)} a view)")
            if self.attention is not None:
                parts.append(f"attention {human_bytes(self.attention_bytes)}")
            if self.pixels_px is not None:
                parts.append(f"pixels about {human_bytes(self.pixel_bytes)}")
            said.append(f"bytes     {', '.join(parts)}")
            said.append(f"files     {self.files:,}")
        else:
            said.append("bytes     give --teacher or --dim")
        if self.hours is not None:
            said.append(
                f"time      {self.hours:.2g} hours at {self.views_per_s:.1f} views/s ({self.speed_source})"
            )
        else:
            said.append(
                "time      unknown: give the teacher's speed with --views-per-s, or --measure it "
                "(H-optimus-0: about 630 views/s on an H200)"
            )
        if self.begun is not None:
            said.append(f"left      {self._left()}")
        return said

    def _left(self) -> str:
        assert self.begun is not None
        if not self.left:
            return f"nothing: {self.begun.store} has all of them"
        parts = [f"{self.left:,} of {self.views:,} views, for {self.begun.store}"]
        parts += [] if self.left_bytes is None else [f"about {human_bytes(self.left_bytes)}"]
        parts += [] if self.left_hours is None else [f"{self.left_hours:.2g} hours"]
        return ", ".join(parts)

    def failed_lines(self) -> list[str]:
        """What cannot be used, and why."""
        return [*unusable_lines(self.unusable), *first_of("tile not used", self.refused)]


@dataclass(frozen=True, slots=True)
class PlannedTogether:
    """What ``plan`` says of several teachers that see the same views."""

    plans: dict[str, Plan]
    """By the name of each teacher, or its place where two have one name."""

    @property
    def first(self) -> Plan:
        """That of the first teacher: patches and views are those of all."""
        return next(iter(self.plans.values()))

    @property
    def some_failed(self) -> bool:
        """Whether some slide or tile could not be used."""
        return self.first.some_failed

    @property
    def total_bytes(self) -> int | None:
        """Bytes of all stores; None when those of one are not known. Those that are to do, and hours, likewise."""
        return _sum(plan.total_bytes for plan in self.plans.values())

    @property
    def left(self) -> int:
        """Views that are to be encoded, each once for each teacher that lacks it."""
        return sum(plan.left for plan in self.plans.values())

    @property
    def left_bytes(self) -> int | None:
        return _sum(plan.left_bytes for plan in self.plans.values())

    @property
    def hours(self) -> float | None:
        return _sum(plan.hours for plan in self.plans.values())

    @property
    def left_hours(self) -> float | None:
        return _sum(plan.left_hours for plan in self.plans.values())

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        names = ("total_bytes", "files", "hours", "left", "left_bytes", "left_hours")
        return {
            **self.first.counted_json(),
            "teachers": {name: plan.teacher_json() for name, plan in self.plans.items()},
            "together": {name: getattr(self, name) for name in names},
            **self.first.failed_json(),
        }

    @property
    def files(self) -> int:
        """Files of all stores."""
        return sum(plan.files for plan in self.plans.values())

    def lines(self) -> list[str]:
        """The same as text."""
        n_teachers = len(self.plans)
        said = self.first.counted_lines(f", each rendered once for {n_teachers} teachers")
        for name, plan in self.plans.items():
            said += [f"{name}:", *(f"  {line}" for line in plan.teacher_lines())]
        size, hours = self.total_bytes, self.hours
        parts = [
            "bytes unknown" if size is None else f"about {human_bytes(size)}",
            f"{self.files:,} files",
            "time unknown" if hours is None else f"{hours:.2g} hours",
        ]
        said.append(f"together  {', '.join(parts)}")
        if any(plan.begun is not None for plan in self.plans.values()):
            to_do = [f"{self.left:,} views to encode"]
            to_do += [] if self.left_bytes is None else [f"about {human_bytes(self.left_bytes)}"]
            to_do += [] if self.left_hours is None else [f"{self.left_hours:.2g} hours"]
            said.append(f"left      {', '.join(to_do)}")
        return [*said, *self.first.failed_lines()]


def _sum(values: Iterable[Any]) -> Any:
    """The sum; None where one is not known."""
    found = list(values)
    return None if None in found else sum(found)


def plan(
    inputs: list[Path] | StoreLike,
    options: PlanOptions,
    tile_options: TileOptions,
    report: Reporter,
) -> Plan:
    """Count patches by a quick tissue pass and calculate sizes, files and hours.

    Parameters
    ----------
    inputs
        Slide files and folders; or a store that is tiled, whose patches are known, and whose seeds are taken over where
        it has views.

    Raises
    ------
    OptionError
        When an option is not allowed, or the feature length of the teacher cannot be known.
    """
    (found,) = plan_together(inputs, {"": options}, tile_options, report).plans.values()
    return found


def plan_together(
    inputs: list[Path] | StoreLike,
    asked: Mapping[str, PlanOptions],
    tile_options: TileOptions,
    report: Reporter,
) -> PlannedTogether:
    """As `plan`, for several teachers, whose patches are counted once.

    Parameters
    ----------
    asked
        The options of each teacher by name; they differ in none of `pipeline.extract.options.SHARED`.

    Raises
    ------
    OptionError
        As `plan`; also when a store that is begun holds something else than is planned for it.
    RecipeMismatch, StoreError
        When such a store is cut otherwise.
    """
    lengths = []
    for options in asked.values():  # before patches are counted, which takes minutes
        options.validate()
        if options.store is not None:
            options = _as_begun(options, options.store)
        grid = _attention_grid(str(options.teacher)) if options.attention else None
        lengths.append((_dim(options), grid))
    tile_options.validate()
    patches = count(inputs, tile_options, report)
    found = {}
    for (name, options), (dim, grid) in zip(asked.items(), lengths, strict=True):
        found[name] = _of_teacher(patches, options, dim, grid, tile_options.patch, report)
    return PlannedTogether(found)


def _of_teacher(
    patches: Counted, options: PlanOptions, dim: int | None, grid: int | None, patch_px: int, report: Reporter
) -> Plan:
    speed, source = options.views_per_s, "as given"
    if options.measure:
        speed, dim, source = _measure(options)
    seeds = options.seeds or patches.seeds or DEFAULT_SEEDS
    result = Plan(
        patches.slides,
        patches.unusable,
        seeds,
        dim,
        patch_px if options.pixels else None,
        speed,
        source if speed else "",
        None if options.tokens is None else TokenPlan(options.tokens, _token_dim(options, dim)),
        refused=patches.refused,
        attention=grid,
        begun=None if options.store is None else _begun(options.store, patches, seeds, report),
    )
    for slide in patches.slides:
        result.splits[slide.split] = result.splits.get(slide.split, 0) + slide.patches
    return result


def _as_begun(options: PlanOptions, store: Path) -> PlanOptions:
    """The options, with the feature length of a store that has features; OptionError when it was begun otherwise."""
    if not (store / layout.RECIPE).exists():
        return options
    stored = recipe.load(store)
    if stored.teacher is None:
        return options
    preset = PRESETS.get(options.teacher or "")
    there = {
        "teacher": stored.teacher.name,
        "dim": stored.teacher.dim,
        "tokens": None if stored.tokens is None else stored.tokens.count,
        "attention": stored.attention is not None,
        "pixels": layout.read_options(store, "extract-teacher").get("pixels", options.pixels),
    }
    asked = {name: getattr(options, name) for name in there}
    asked["teacher"] = there["teacher"] if preset is None else preset.name
    asked["dim"] = options.dim or (there["dim"] if preset is None else preset.dim)
    for name, value in asked.items():
        if value != there[name]:
            raise begun_otherwise(store, name, value, there[name], "--store")
    return dataclasses.replace(options, dim=stored.teacher.dim)


def _begun(store: Path, patches: Counted, seeds: int, report: Reporter) -> Begun:
    """Which of the planned views a store has."""
    if not (store / layout.RECIPE).exists():
        return Begun(store, 0)
    tiled = recipe.load(store)
    if patches.patch is not None:
        recipe.require_same(tiled, dataclasses.replace(tiled, patch=patches.patch), str(store))
    there = {
        row["slide_id"]: row["n_patches"]
        for row in manifest.read_slides(store)
        if row["status"] == manifest.OK
    }
    report.start(f"plan: views in {store.name}", len(patches.slides))
    done, index = 0, index_of(store)
    for slide in patches.slides:
        name, n_patches = slide.slide_id, there.get(slide.slide_id, slide.patches)
        if n_patches != slide.patches:
            raise StoreError(
                f"slide {name}: has {n_patches:,} patches in {store}, and {slide.patches:,} are planned; plan with the "
                "options that it was tiled with, or from the store itself"
            )
        records = done_of(store, name, index) if name in there else {}
        for block in range(features.n_blocks(n_patches) if name in there else 0):
            rows = features.block_range(n_patches, block)
            missing = missing_seeds(records.get(block, ()), rows, seeds, Tally())
            lacks = {seed for part in missing for seed in part if seed < seeds}
            done += len(rows) * (seeds - len(lacks))
        report.advance(detail=name)
    return Begun(store, done)


def _dim(options: PlanOptions) -> int | None:
    if options.dim is not None or options.teacher is None:
        return options.dim
    if options.teacher in PRESETS:
        return PRESETS[options.teacher].dim
    if options.measure:
        return None  # the loaded encoder will say
    raise OptionError(
        f"--teacher {options.teacher}: its feature length is not known without loading it; known are "
        f"{', '.join(PRESETS)}; give --dim, or --measure"
    )


def _token_dim(options: PlanOptions, dim: int | None) -> int | None:
    """A token is as long as the class token; a preset that joins two vectors says so."""
    preset = PRESETS.get(options.teacher or "")
    return dim // 2 if dim and preset is not None and preset.pooling == "cls+mean" else dim


def _attention_grid(teacher: str) -> int:
    """Side of the teacher's grid of patches; it is built without weights or memory."""
    from pipeline.encoders.attention import require_attention
    from pipeline.encoders.encoder import token_grid
    from pipeline.encoders.load import without_memory

    encoder = without_memory(teacher)
    if encoder is None:
        raise OptionError(
            f"--attention: the patches of {teacher} are not known without loading it; give a name of "
            "`g2l models` or of timm as --teacher"
        )
    require_attention(encoder)
    return token_grid(encoder)[0]


def _measure(options: PlanOptions) -> tuple[float, int, str]:
    """Views per second of the teacher, its feature length, and where that was measured."""
    from pipeline.extract.teacher import collect
    from pipeline.inference.loaded import EncoderSpec, load_on_device

    teacher = load_on_device(EncoderSpec.of(str(options.teacher), options))
    side = teacher.identity.image_px
    views = np.random.default_rng(0).integers(0, 256, (teacher.batch_size, side, side, 3), dtype=np.uint8)
    collect(teacher.launch(views), teacher.dtype)  # the first pass compiles and allocates
    began = time.monotonic()
    for _ in range(_MEASURED_BATCHES):
        collect(teacher.launch(views), teacher.dtype)
    speed = _MEASURED_BATCHES * teacher.batch_size / (time.monotonic() - began)
    where = f"measured here: {teacher.device}, {teacher.identity.dtype}, batch {teacher.batch_size}"
    return speed, teacher.identity.dim, where
