"""``plan``: what a store will hold and cost, before anything runs.

Patches are counted by the very code of ``tile``, on thumbnails, and nothing is written. Sizes and numbers of files
follow from the layout of a store; only what compression makes of manifest and pixels is an estimate, and is called one.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.encoders.presets import PRESETS
from pipeline.extract.options import PlanOptions
from pipeline.runtime.cluster import open_cluster
from pipeline.runtime.options import IN_PROCESS
from pipeline.runtime.progress import Reporter
from pipeline.slides.find import find_slides
from pipeline.slides.registry import open_slide
from pipeline.slides.slide import plan_read, require_square
from pipeline.tile.grid import find_patches, patch_recipe
from pipeline.tile.groups import group_tiles, require_no_slide_options, table_of
from pipeline.tile.options import TileOptions
from pipeline.tile.slides_csv import given_of
from pipeline.tile.splits import Splits
from pipeline.tiles.table import are_tiles, list_tiles
from stores.errors import OptionError, SlideError
from stores.format import features, manifest, tokens
from stores.io.location import StoreLike
from stores.io.text import first_of, human_bytes, unusable_lines

MANIFEST_BYTES_PER_VIEW = 44
"""Commit records and patches of the demo's store, 968 patches under 4 seeds: 44.0 B a view."""
PIXELS_SHARE = 0.87
"""zstd leaves 0.83 of a patch's bytes on CMU-1-Small-Region and 0.91 on a dense TCGA slide."""
_CHECKSUM_BYTES = 4
_GROUP_FILES = 1  # the zarr.json of features.zarr, or of pixels.zarr
_SLIDE_FILES = 7  # zarr.json of group, features, coords, stats; the chunk of coords; patches; picture
_TOKEN_FILES = 2  # zarr.json of tokens and positions
_ATTENTION_FILES = 1  # its zarr.json
_MEASURED_BATCHES = 5


@dataclass(frozen=True, slots=True)
class SlidePlan:
    """What is planned for one slide."""

    slide_id: str
    patches: int
    split: str
    patient_id: str


@dataclass(frozen=True, slots=True)
class TokenPlan:
    """Which patch tokens are planned."""

    count: int
    """How many of each view."""
    dim: int | None
    """Length of a token; None when it cannot be known."""


@dataclass(slots=True)
class Plan:
    """Everything that ``plan`` says."""

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
        total = _GROUP_FILES
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
    def hours(self) -> float | None:
        """Hours on the device whose speed is given."""
        return self.views / self.views_per_s / 3600 if self.views_per_s else None

    @property
    def some_failed(self) -> bool:
        """Whether some slide or tile could not be used."""
        return bool(self.unusable or self.refused)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        dim = self.dim
        return {
            "slides": len(self.slides),
            "patients": len({slide.patient_id for slide in self.slides}),
            "patches": self.patches,
            "patches_by_slide": {slide.slide_id: slide.patches for slide in self.slides},
            "patches_by_split": dict(sorted(self.splits.items())),
            "seeds": self.seeds,
            "views": self.views,
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
            "unusable": self.unusable,
        } | ({"refused_tiles": self.refused} if self.refused else {})

    def lines(self) -> list[str]:
        """The same as text."""
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
            f"views     {self.views:,} under {self.seeds} seeds",
        ]
        if "val" not in self.splits:
            said.append("          no validation split: give splits in --slides-csv, or take more patients")
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
        return [*said, *unusable_lines(self.unusable), *first_of("tile not used", self.refused)]


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
        Slide files and folders; or a store that is tiled, whose patches are known.

    Raises
    ------
    OptionError
        When an option is not allowed, or the feature length of the teacher cannot be known.
    """
    options.validate()
    tile_options.validate()
    dim = _dim(options)
    grid = _attention_grid(str(options.teacher)) if options.attention else None
    refused: list[str] = []
    if not isinstance(inputs, list):
        slides, unusable = _tiled(inputs)
    elif are_tiles(inputs, tile_options.tiles):
        slides, unusable, refused = _count_tiles(inputs, tile_options, report)
    else:
        slides, unusable = _count(inputs, tile_options, report)
    speed, source = options.views_per_s, "as given"
    if options.measure:
        speed, dim, source = _measure(options)
    kept = tile_options.patch if options.pixels else None
    of_view = None if options.tokens is None else TokenPlan(options.tokens, _token_dim(options, dim))
    result = Plan(
        slides,
        unusable,
        options.seeds,
        dim,
        kept,
        speed,
        source if speed else "",
        of_view,
        refused=refused,
        attention=grid,
    )
    for slide in slides:
        result.splits[slide.split] = result.splits.get(slide.split, 0) + slide.patches
    return result


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


def _tiled(store: StoreLike) -> tuple[list[SlidePlan], dict[str, str]]:
    """The slides of a store that is tiled already."""
    rows = manifest.read_slides(store)
    usable = [row for row in rows if row["status"] == manifest.OK]
    slides = [SlidePlan(r["slide_id"], r["n_patches"], r["split"], r["patient_id"]) for r in usable]
    return slides, {r["slide_id"]: r["reason"] for r in rows if r["status"] != manifest.OK}


def _count(
    inputs: Sequence[Path], options: TileOptions, report: Reporter
) -> tuple[list[SlidePlan], dict[str, str]]:
    paths = find_slides(inputs, report=report)
    given = given_of(options, paths, report=report)
    _, rule = patch_recipe(options)
    found: dict[str, int] = {}
    unusable: dict[str, str] = {}
    report.start("plan", len(paths))
    for slide_id, path in paths.items():
        try:
            with open_slide(path) as file:
                info = file.inspect(slide_id, *given.mpp.get(slide_id, (None, "")))
                if not options.square_pixels:
                    require_square(info)
                read = plan_read(info, options.mpp, options.patch)
                grid = find_patches(file, info, read, rule, options)
            if len(grid.patches):
                found[slide_id] = len(grid.patches)
            else:
                unusable[slide_id] = f"no patch of it has {options.min_tissue:.0%} tissue"
        except SlideError as error:
            unusable[slide_id] = str(error)
        report.advance(detail=slide_id)
    splits = Splits({}, given, found, options.val)
    slides = [SlidePlan(i, count, splits.of(i), splits.patients[i]) for i, count in found.items()]
    return slides, unusable


def _count_tiles(
    inputs: Sequence[Path], options: TileOptions, report: Reporter
) -> tuple[list[SlidePlan], dict[str, str], list[str]]:
    """Groups, those without a patch with their reasons, and a line for each tile that cannot be used."""
    require_no_slide_options(options)
    listed = list_tiles(inputs, options.root, options.column)
    with open_cluster(IN_PROCESS, "plan", report) as workers:
        grouped = group_tiles(workers, listed, options, {}, {}, report)
    found, unusable = [], {}
    for _, group in sorted(grouped.groups.items()):
        row = table_of(grouped, group, options).row
        if row["n_patches"]:
            found.append(SlidePlan(group.slide_id, row["n_patches"], group.split, group.patient_id))
        else:
            unusable[group.slide_id] = row["reason"]
    return found, unusable, grouped.refused


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
