"""What the page shows of slides and patches: pictures, features of teacher and student, colours, neighbours.

Only some slides and some patches of each are shown, evenly spread; the page says of how many. Views are rebuilt from
the slides or the store's pixels and checked against the manifest, as in stage two.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
import torch

from pipeline.data.committed import BlockCache
from pipeline.data.sources import find_sources
from pipeline.encoders.apply import embed
from pipeline.encoders.encoder import Encoder, other_size
from pipeline.metrics.cka import Cka, cka, flattered
from pipeline.metrics.colours import as_rgb
from pipeline.metrics.neighbours import nearest
from pipeline.report.options import ReportOptions
from pipeline.runtime import devices
from pipeline.runtime.progress import Reporter
from pipeline.runtime.work import threads_of
from pipeline.slides.find import find_slides
from pipeline.slides.pool import PatchPool
from pipeline.slides.registry import open_slide
from pipeline.slides.sources import Source, inspect_again
from pipeline.slides.thumbnail import read_thumbnail
from pipeline.tile import tissue
from pipeline.tile.grid import THUMBNAIL_MPP
from pipeline.views.draw import ViewParams
from pipeline.views.patch_views import rebuild_row
from pipeline.views.policy import Policy
from stores.errors import EvaluationError, OptionError, SlideError
from stores.format import manifest, oblong, recipe, tiles
from stores.format.committed import read_records, usable_slides
from stores.io.location import StoreLike
from stores.io.ranges import spread
from stores.io.text import visible

NEIGHBOURS = 6
_THUMBNAIL_PX, TILE_PX = 900, 112
SPRITE_COLUMNS = 16
_JPEG_QUALITY = 80


@dataclass(frozen=True, slots=True)
class SlidePart:
    """A slide on the page."""

    slide_id: str
    split: str
    width_px0: int
    height_px0: int
    patch_px0: int
    patch_y_px0: int
    n_patches: int
    """Of the whole slide."""
    rows: list[int]
    """Of the patches that are shown."""
    x_px0: list[int]
    y_px0: list[int]
    thumbnail: bytes | None
    """JPEG; None without the slide file."""
    contour: list[list[list[int]]]
    """Outlines of the tissue, in level-0 pixels; empty without the slide file, or where a mask was given."""
    captions: list[str]
    """Of patches that were cut from tiles: name of the tile's file, and x and y inside it; empty for a slide."""
    sprite: bytes
    """JPEG of all shown patches, `SPRITE_COLUMNS` in a line."""
    quality: list[str] = field(default_factory=list)
    """What another tool says of each shown patch, in words; empty where it was never asked."""


@dataclass(frozen=True, slots=True)
class ShownView:
    """One patch under one seed."""

    slide_id: str
    row: int
    seed: int
    what: str
    """What was drawn, in words."""
    picture: bytes


@dataclass(slots=True)
class Gathered:
    """All that is shown of slides and patches."""

    slides: list[SlidePart] = field(default_factory=list)
    n_slides: int = 0
    """Usable slides of the store."""
    colours: dict[str, list[str]] = field(default_factory=dict)
    """By encoder (``teacher``, ``student``), a colour for each patch of all slides in order."""
    neighbours: dict[str, list[list[int]]] = field(default_factory=dict)
    """By encoder, the nearest patches of each patch, as numbers over all slides."""
    agreement: float | None = None
    """Share of neighbours that teacher and student have in common."""
    cka: Cka | None = None
    """Of teacher and student on the patches that are shown."""
    cka_before: Cka | None = None
    """The same of the student before its training."""
    views: list[ShownView] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def gather(
    store: StoreLike,
    student: Encoder | None,
    options: ReportOptions,
    report: Reporter,
    before: Encoder | None = None,
) -> Gathered:
    """Read, render and embed what is shown.

    Parameters
    ----------
    before
        The student as it was before its training, to be compared with the teacher too.

    Raises
    ------
    OptionError
        When the store keeps no pixels of a slide and it is not among ``--slides``.
    ViewMismatch
        When a view is not the one that the teacher saw.
    """
    stored = recipe.load_complete(store)
    policy = Policy.from_json(stored.policy)
    usable = list(usable_slides(store, stored.patch).values())
    result = Gathered(n_slides=len(usable))
    chosen = _spread(usable, options.max_slides)
    sources = find_sources(store, stored, {row["slide_id"] for row in chosen}, options.slides, report)
    of_tiles = stored.patch.grid == tiles.GRID
    paths = find_slides(options.slides, usable) if options.slides and not of_tiles else {}
    cache = BlockCache(store, policy=policy)
    targets, pictures = [], []
    report.start("report", len(chosen))
    with PatchPool(threads_of(options.threads, 1)) as pool:
        for row in chosen:
            shown = _Slide(
                store, stored, row, sources[row["slide_id"]], policy, cache, pool, options.max_patches
            )
            if not shown.places:
                result.notes.append(f"slide {row['slide_id']}: no view of seed 0 yet, left out")
                continue
            part, seen = shown.part(paths.get(row["slide_id"]), stored, result)
            result.slides.append(part)
            pictures.append(seen)
            targets.append(shown.targets())
            if len(pictures) <= options.views:
                result.views += shown.views()
            report.advance(1, row["slide_id"])
    if not result.slides:
        raise EvaluationError(f"{store}: no patch of seed 0 that could be read; nothing to show")
    teacher = np.concatenate(targets).astype(np.float32)
    shown_views = np.concatenate(pictures)
    _compare(result, teacher, shown_views, student, options)
    if before is not None and len(teacher) > 1:
        result.cka_before = cka(_features(before, shown_views, options), teacher)
    return result


def _spread(items: Sequence[Any], n: int) -> list[Any]:
    """At most `n` items, evenly spread."""
    return [items[i] for i in spread(len(items), n)]


class _Slide:
    """One slide of the store, as far as it is shown."""

    def __init__(
        self,
        store: StoreLike,
        stored: recipe.Recipe,
        row: Mapping[str, Any],
        source: Source,
        policy: Policy,
        cache: BlockCache,
        pool: PatchPool,
        max_patches: int,
    ) -> None:
        self._store, self._row, self._source, self._policy = store, row, source, policy
        self._cache, self._pool = cache, pool
        found: list[tuple[int, manifest.Commit]] = []
        self._seeds: dict[int, list[tuple[int, manifest.Commit]]] = {}
        for commit, table in read_records(store, row, stored.patch):
            ok = table.filter(pc.equal(table["status"], manifest.OK))
            for seed, number in zip(ok["seed"].to_pylist(), ok["row"].to_pylist(), strict=True):
                self._seeds.setdefault(number, []).append((seed, commit))
                if seed == 0:
                    found.append((number, commit))
        self.places = _spread(sorted(found, key=lambda item: item[0]), max_patches)

    def part(
        self, path: Path | None, stored: recipe.Recipe, result: Gathered
    ) -> tuple[SlidePart, npt.NDArray[np.uint8]]:
        """The slide, and the views of seed 0 of its patches, uint8 (n, crop_px, crop_px, 3)."""
        requests = [self._cache.commit(commit).request(number, {0: True}) for number, commit in self.places]
        jobs = [
            self._pool.submit(
                self._source,
                functools.partial(rebuild_row, self._policy),
                self._row["slide_id"],
                number,
                *request,
            )
            for (number, _), request in zip(self.places, requests, strict=True)
        ]
        seen = np.concatenate([job.result() for job in jobs])
        thumbnail, contour = (None, []) if path is None else self._picture(path, stored, result)
        row = self._row
        x_px0, y_px0 = [request[0] for request in requests], [request[1] for request in requests]
        size = row["width_px0"], row["height_px0"]
        captions: list[str] = []
        if stored.patch.grid == tiles.GRID:  # patches of tiles have no place in a picture: side by side
            captions = self._captions(x_px0, y_px0)
            x_px0, y_px0, size = _side_by_side(len(requests), row["patch_px0"])
            thumbnail = _mosaic(seen)
        return (
            SlidePart(
                row["slide_id"],
                row["split"],
                *size,
                *oblong.sides_px0(row),
                row["n_patches"],
                [number for number, _ in self.places],
                x_px0,
                y_px0,
                thumbnail,
                contour,
                captions,
                _sprite(seen),
                self._quality(),
            ),
            seen,
        )

    def _quality(self) -> list[str]:
        """The QC columns of each shown patch."""
        columns = manifest.read_patches(self._store, self._row["slide_id"]).qc
        return [
            ", ".join(
                f"{visible(name.removeprefix(manifest.QC))} "
                + ("not known" if np.isnan(values[number]) else f"{values[number]:.3g}")
                for name, values in columns.items()
            )
            for number, _ in self.places
            if columns
        ]

    def _captions(self, x_px0: Sequence[int], y_px0: Sequence[int]) -> list[str]:
        """Name of the tile and position in it of each shown patch; the tile's fingerprint in a store without names."""
        store, slide_id = self._store, self._row["slide_id"]
        named = manifest.TILE_FILE in manifest.read_patches(store, slide_id).further
        column = manifest.TILE_FILE if named else manifest.TILE
        names = manifest.read_further(store, slide_id, (column,))[0]
        return [
            f"{visible(names[number].as_py() or '')} at {x}, {y}"
            for (number, _), x, y in zip(self.places, x_px0, y_px0, strict=True)
        ]

    def _picture(
        self, path: Path, stored: recipe.Recipe, result: Gathered
    ) -> tuple[bytes | None, list[list[list[int]]]]:
        """Thumbnail and outline of the tissue."""
        row = self._row
        try:
            with open_slide(path, row["fingerprint"]) as file:
                info = inspect_again(file, row, path)
                thumbnail = read_thumbnail(file, info, THUMBNAIL_MPP)
        except SlideError as error:
            result.notes.append(str(error))
            return None, []
        contour: list[list[list[int]]] = []
        if stored.patch.tissue == tissue.CLASSICAL.to_json():
            mask = tissue.tissue_mask(thumbnail, thumbnail_mpp=info.width_px0 * info.mpp / thumbnail.shape[1])
            contour = _outlines(mask, info.width_px0, info.height_px0)
        scale = min(1.0, _THUMBNAIL_PX / max(thumbnail.shape[:2]))
        if scale < 1:
            size = max(1, round(thumbnail.shape[1] * scale)), max(1, round(thumbnail.shape[0] * scale))
            thumbnail = np.asarray(cv2.resize(thumbnail, size, interpolation=cv2.INTER_AREA), np.uint8)
        return _jpeg(thumbnail), contour

    def targets(self) -> npt.NDArray[np.float16]:
        """The teacher's features of the shown patches."""
        return np.concatenate(
            [self._cache.targets(commit, np.array([number], np.int32), 0) for number, commit in self.places]
        )

    def views(self) -> list[ShownView]:
        """The patch in the middle of the slide under every seed that it has."""
        number, _ = self.places[len(self.places) // 2]
        shown = []
        for seed, commit in sorted(self._seeds[number], key=lambda item: item[0]):
            x, y, wanted = self._cache.commit(commit).request(number, {seed: True})
            work = functools.partial(rebuild_row, self._policy)
            job = self._pool.submit(self._source, work, self._row["slide_id"], number, x, y, wanted)
            text = "centre crop, unchanged" if seed == 0 else _in_words(wanted[0].params)
            shown.append(ShownView(self._row["slide_id"], number, seed, text, _jpeg(job.result()[0])))
        return shown


def _in_words(params: ViewParams) -> str:
    """What a seed drew."""
    said = [f"crop at {params.crop_x_px},{params.crop_y_px}"]
    said += ["mirrored"] * params.hflip + ["upside down"] * params.vflip
    if params.jitter:
        said.append(
            f"brightness {params.brightness:.2f}, contrast {params.contrast:.2f}, "
            f"saturation {params.saturation:.2f}, hue {params.hue:+.3f}"
        )
    if params.stain:
        said.append(f"stains {params.stain_h:.2f}, {params.stain_e:.2f}, {params.stain_d:.2f}")
    if params.blur:
        said.append(f"blurred, sigma {params.sigma:.2f}")
    return "; ".join(said)


def _side_by_side(n: int, side: int) -> tuple[list[int], list[int], tuple[int, int]]:
    """x and y of `n` squares in lines of equal length, and width and height of the whole."""
    across = math.ceil(math.sqrt(n))
    x, y = [i % across * side for i in range(n)], [i // across * side for i in range(n)]
    return x, y, (across * side, -(-n // across) * side)


def _mosaic(pictures: npt.NDArray[np.uint8]) -> bytes:
    """The pictures in the places of `_side_by_side`."""
    side = max(8, min(96, _THUMBNAIL_PX // math.ceil(math.sqrt(len(pictures)))))
    x, y, (width, height) = _side_by_side(len(pictures), side)
    sheet = np.full((height, width, 3), 255, np.uint8)
    for left, top, picture in zip(x, y, pictures, strict=True):
        small = cv2.resize(picture, (side, side), interpolation=cv2.INTER_AREA)
        sheet[top : top + side, left : left + side] = small
    return _jpeg(sheet)


def _sprite(pictures: npt.NDArray[np.uint8]) -> bytes:
    lines = -(-len(pictures) // SPRITE_COLUMNS)
    sheet = np.full((lines * TILE_PX, min(len(pictures), SPRITE_COLUMNS) * TILE_PX, 3), 255, np.uint8)
    for i, picture in enumerate(pictures):
        top, left = i // SPRITE_COLUMNS * TILE_PX, i % SPRITE_COLUMNS * TILE_PX
        sheet[top : top + TILE_PX, left : left + TILE_PX] = cv2.resize(
            picture, (TILE_PX, TILE_PX), interpolation=cv2.INTER_AREA
        )
    return _jpeg(sheet)


def _jpeg(image: npt.NDArray[np.uint8]) -> bytes:
    quality = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]
    return bytes(cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), quality)[1].tobytes())


def _outlines(mask: npt.NDArray[np.bool_], width_px0: int, height_px0: int) -> list[list[list[int]]]:
    found, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    scale = np.array([width_px0 / mask.shape[1], height_px0 / mask.shape[0]])
    return [
        np.rint((outline[:, 0] + 0.5) * scale).astype(int).tolist() for outline in found if len(outline) > 2
    ]


def _compare(
    result: Gathered,
    teacher: npt.NDArray[np.float32],
    pictures: npt.NDArray[np.uint8],
    student: Encoder | None,
    options: ReportOptions,
) -> None:
    """Colours and neighbours under the teacher, and under the student where there is one."""
    features = {"teacher": teacher}
    if student is not None:
        features["student"] = _features(student, pictures, options)
    n = len(teacher)
    spaces = {name: _principal(x) for name, x in features.items()}
    if "student" in spaces:
        spaces["student"] = _turned(spaces["student"], spaces["teacher"])
    result.colours = {name: _colours(space) for name, space in spaces.items()}
    k = min(NEIGHBOURS, n - 1)
    if k < 1:
        return
    own = np.arange(n)
    found = {name: nearest(x, x, k, (own, own)) for name, x in features.items()}
    result.neighbours = {name: index.tolist() for name, index in found.items()}
    if "student" in found:
        shared = [len(set(a) & set(b)) for a, b in zip(*result.neighbours.values(), strict=True)]
        result.agreement = float(np.mean(shared)) / k
        result.cka = cka(features["student"], teacher)
        few = flattered(n, features["student"].shape[1], teacher.shape[1])
        result.notes += [] if few is None else [few]


def _features(
    student: Encoder, pictures: npt.NDArray[np.uint8], options: ReportOptions
) -> npt.NDArray[np.float32]:
    if not student.takes(pictures.shape[1]):
        raise OptionError(
            f"--student {student.name}: takes {student.image_px} px, the store's views have {pictures.shape[1]}"
            f"{other_size(student.resizable, pictures.shape[1])}"
        )
    device = devices.choose_device(options.device)
    dtype, _ = devices.choose_dtype("auto", device)
    return np.asarray(embed(student.to(device).eval(), pictures, 32, device, dtype).numpy(), np.float32)


def _principal(x: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """The first three principal components, (n, 3); zeros where there are fewer."""
    centred = torch.from_numpy(x.astype(np.float64) - x.mean(axis=0, dtype=np.float64))
    u, s, _ = torch.linalg.svd(centred, full_matrices=False)
    n = min(3, len(s))
    scores = np.zeros((len(x), 3))
    scores[:, :n] = (u[:, :n] * s[:n]).numpy()
    return scores


def _turned(student: npt.NDArray[np.float64], teacher: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The student's components turned (orthogonal Procrustes) so that like colours mean like things."""
    u, _, vt = np.linalg.svd(student.T @ teacher)
    return np.asarray(student @ (u @ vt))


def _colours(space: npt.NDArray[np.float64]) -> list[str]:
    """Three components as red, green and blue."""
    rgb = as_rgb(space)
    return [f"#{r:02x}{g:02x}{b:02x}" for r, g, b in rgb.tolist()]
