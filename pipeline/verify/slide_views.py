"""One slide in ``store verify``: its views rendered again, their features computed again, both compared."""

import contextlib
import dataclasses
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipeline.data.committed import BlockCache, CommittedBlock, read_commit
from pipeline.runtime import work
from pipeline.slides.pool import PatchPool
from pipeline.slides.sources import Reader, Source, StoreSource
from pipeline.tiles.places import Place
from pipeline.verify.draws import sample_rows
from pipeline.verify.options import VerifyOptions
from pipeline.verify.tolerance import allowed, distance
from pipeline.views.policy import Policy
from pipeline.views.render import render, view_crc32
from stores.errors import G2LError, RecipeMismatch, SlideError, StoreError
from stores.format import layout, manifest, pixels, recipe
from stores.io import files
from stores.io.location import StoreLike
from stores.io.text import counted
from stores.verify.findings import Finding
from stores.verify.structure import Structure

if TYPE_CHECKING:  # torch, which a look at the structure does not need
    from pipeline.inference.loaded import EncoderSpec, OnDevice

_OTHER_PIXELS = "the stored pixels are not the slide's"
_OTHER_VIEW = "another view than the teacher saw (crc32 differs)"


@dataclass(slots=True)
class Verified:
    """What ``store verify`` did and found."""

    structure: Structure
    views_checked: int = 0
    features_checked: int = 0
    cosine_min: float | None = None
    relative_error_max: float | None = None
    """Largest relative error of a recomputed feature, see `pipeline.verify.tolerance.distance`."""
    declared: bool = False
    """Whether the features were imported, so that the teacher is what was declared."""
    notes: list[str] = field(default_factory=list)
    repaired: list[str] = field(default_factory=list)

    @property
    def findings(self) -> list[Finding]:
        return self.structure.findings

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            **self.structure.to_json(),
            "views_checked": self.views_checked,
            "features_checked": self.features_checked,
            "cosine_min": self.cosine_min,
            "relative_error_max": self.relative_error_max,
            "declared": self.declared,
            "notes": self.notes,
            "repaired": self.repaired,
        }

    def lines(self) -> list[str]:
        """The same to read."""
        lines = [*(f"repaired: {text}" for text in self.repaired), *self.structure.lines()]
        if self.views_checked:
            lines.append(f"views: {self.views_checked} rendered again and compared")
        if self.features_checked:
            lines.append(
                f"teacher: {self.features_checked} features computed again; smallest cosine {self.cosine_min:.6f}, "
                f"largest relative error {self.relative_error_max:.2e}"
            )
        if self.declared:
            lines.append(self._declared_line())
        lines += [f"note: {text}" for text in self.notes]
        lines += [f"wrong: {finding}" for finding in self.findings]
        count = f"{len(self.findings)} wrong" if self.findings else "nothing is wrong"
        return [*lines, f"{self.structure.store}: {count}"]

    def _declared_line(self) -> str:
        if not self.features_checked:
            return (
                "the teacher is declared, not proven: the features were imported; give --slides and --teacher"
            )
        if any(finding.kind == "teacher" for finding in self.findings):
            return "declared, and the teacher that was given is not the one, or not with these views"
        return f"declared, and a sample of {counted(self.features_checked, 'view')} agrees"

    def take_in(self, part: "Verified") -> None:
        """Add what was found on one slide."""
        self.findings.extend(part.findings)
        self.notes += part.notes
        self.views_checked += part.views_checked
        self.features_checked += part.features_checked
        if part.cosine_min is not None:
            self.cosine_min = min(part.cosine_min, 1.0 if self.cosine_min is None else self.cosine_min)
            both = part.relative_error_max or 0.0, self.relative_error_max or 0.0
            self.relative_error_max = max(both)


@dataclass(frozen=True, slots=True)
class SlideToLook:
    """A slide whose views and features are made again."""

    row: dict[str, Any]
    place: Place | None
    broken: list[Finding]
    """Faults of its commit records."""

    def __str__(self) -> str:
        return str(self.row["slide_id"])


@dataclass(frozen=True, slots=True)
class SlideLooker:
    """Makes views and features of slides again; small, as it travels to the workers with every slide."""

    job: str
    store: StoreLike
    stored: recipe.CompleteRecipe
    options: VerifyOptions
    processes: int | None
    """How many processes share a machine's CPUs, see `pipeline.runtime.work.threads_of`."""

    def teacher(self) -> "OnDevice | None":
        """The teacher of this process, or None without one; RecipeMismatch when it is not the store's."""
        if self.options.teacher is None:
            return None
        from pipeline.inference.worker import WorkerEncoder

        teacher = WorkerEncoder(self.job, spec_of(self.options, self.stored)).loaded()
        require_teacher_of(self.stored, teacher, self.options)
        return teacher

    def require_teacher(self) -> None:
        """Load the teacher where the work will be, so that a wrong one is noticed before any slide is read."""
        self.teacher()

    def look(self, slide: SlideToLook, advance: work.Advance) -> Verified:
        """Render views of one slide again and compare, and with a teacher their features."""
        result, slide_id = Verified(Structure()), str(slide)
        source: Source | None = None
        if slide.place is not None:
            try:
                source = slide.place.source(slide.row, self.stored)
            except SlideError as error:
                result.findings.append(Finding(slide.place.name, str(error), "view", slide_id))
        elif pixels.has_pixels(self.store, slide_id):
            source = StoreSource(slide_id, self.store)
        if source is None:
            result.notes.append(
                f"slide {slide_id}: views not checked: neither the slide nor its pixels are there"
            )
        else:
            policy = Policy.from_json(self.stored.policy)
            teacher = self.teacher()
            own = self.stored.teacher.dtype if teacher is None else teacher.identity.dtype
            bounds = self.options.min_cosine, self.options.max_relative_error or allowed(self.stored, own)
            tokens = self.stored.tokens
            check = _SlideViews(
                self.store,
                slide,
                source,
                policy,
                self.options,
                result,
                tokens,
                bounds,
                self.stored.attention,
            )
            check.run(self._pool(), teacher)
        advance(1)
        return result

    def _pool(self) -> PatchPool:
        threads = work.threads_of(self.options.threads, self.processes)
        pool: PatchPool = work.station(self.job, ("pool", threads), lambda: PatchPool(threads))
        return pool


def spec_of(options: VerifyOptions, stored: recipe.CompleteRecipe) -> "EncoderSpec":
    """The teacher that the user names, for views of the store's size."""
    from pipeline.inference.loaded import EncoderSpec
    from pipeline.runtime.devices import choose_device, dtype_name, half_precisions

    spec = EncoderSpec.of(str(options.teacher), options, view_px=stored.teacher.image_px)
    if options.dtype == "auto":  # that of the store, where the device has it
        own = stored.teacher.dtype
        has_it = own in map(dtype_name, half_precisions(choose_device(options.device)))
        spec = dataclasses.replace(spec, dtype=own if has_it or own == "float32" else "auto")
    if stored.declared is not None and stored.teacher.pooling in ("cls", "cls+mean"):
        # a tool may keep less than the preset
        return dataclasses.replace(spec, pooling=stored.teacher.pooling)
    return spec


def require_teacher_of(stored: recipe.CompleteRecipe, teacher: "OnDevice", options: VerifyOptions) -> None:
    """Raise RecipeMismatch when a teacher is not the one of the store; what was not declared of it can be anything."""
    unsaid = {} if stored.declared is None else {"weights_sha256": recipe.UNKNOWN, "pooling": "forward"}
    for name in ("weights_sha256", "pooling", "mean", "std", "image_px", "shrink", "class_tokens", "dim"):
        old, new = getattr(stored.teacher, name), getattr(teacher.identity, name)
        if old != new and unsaid.get(name) != old:
            raise RecipeMismatch(
                f"--teacher {options.teacher}: its {name} is {new!r}, the store was made with {old!r}; "
                "give the same encoder and weights"
            )


@dataclass(frozen=True, slots=True)
class _Rendered:
    """The views of one row, made again."""

    views: npt.NDArray[np.uint8]
    crcs: list[int]
    patch: npt.NDArray[np.uint8] | None
    error: str = ""


@dataclass(frozen=True, slots=True)
class _SlideViews:
    """The comparison of one slide's views and features with new ones."""

    store: StoreLike
    slide: SlideToLook
    source: Source
    policy: Policy
    options: VerifyOptions
    result: Verified
    tokens: recipe.Tokens | None
    bounds: tuple[float, float]
    """Least cosine and largest relative error of a feature, see `pipeline.verify.tolerance`."""
    attention: recipe.Attention | None = None

    @property
    def slide_id(self) -> str:
        return str(self.slide.row["slide_id"])

    def run(self, pool: PatchPool, teacher: "OnDevice | None") -> None:
        kept = _kept_pixels(self.store, self.slide_id) if not isinstance(self.source, StoreSource) else None
        try:
            records = list(manifest.commits(self.store, self.slide_id))
        except StoreError:
            return
        broken = {finding.file for finding in self.slide.broken}
        for commit in records:
            if commit.file in broken:
                continue
            try:
                block = read_commit(commit)
                ok = manifest.ok_rows(commit.read(["row", "seed", "status"]), commit.seeds.start)
            except StoreError:
                continue  # structure has named it
            place = self.slide.row["n_patches"], self.slide_id, commit.block
            chosen = sample_rows(ok, *place, self.options.sample)
            self._commit(pool, commit, block, chosen.tolist(), kept, teacher)

    def _commit(
        self,
        pool: PatchPool,
        commit: manifest.Commit,
        block: CommittedBlock,
        rows: list[int],
        kept: Any,
        teacher: "OnDevice | None",
    ) -> None:
        wrong: dict[tuple[int, str], list[int]] = {}
        cache = BlockCache(self.store, self.tokens, attention=self.attention)
        made: list[tuple[int, int, npt.NDArray[np.uint8]]] = []
        jobs: list[tuple[int, Future[_Rendered]]] = [
            (row, pool.submit(self.source, render_stored, block, commit.seeds, row, self.policy))
            for row in rows
        ]
        for row, job in jobs:
            try:
                got = job.result()
            except G2LError as error:  # the slide or the array could not be opened
                wrong.setdefault((commit.seeds.start, files.first_line(error)), []).append(row)
                continue
            if got.error:
                wrong.setdefault((commit.seeds.start, got.error), []).append(row)
                continue
            with contextlib.suppress(StoreError):  # a chunk that cannot be read, structure has named
                if (
                    kept is not None
                    and got.patch is not None
                    and not np.array_equal(kept.read(row, 0, 0), got.patch)
                ):
                    wrong.setdefault((commit.seeds.start, _OTHER_PIXELS), []).append(row)
            for i, seed in enumerate(commit.seeds):
                at = block.at(row, seed)
                self.result.views_checked += 1
                if got.crcs[i] != int(block.columns["crc"][at]):
                    wrong.setdefault((seed, _OTHER_VIEW), []).append(row)
                made.append((seed, row, got.views[i]))
        file = commit.file
        for (seed, problem), at_rows in sorted(wrong.items()):
            kind = "pixels" if problem == _OTHER_PIXELS else "view"
            text = f"{len(at_rows)} of {counted(len(rows), 'view')}: {problem}"
            self._add(file, text, kind, commit.block, seed, at_rows)
        if teacher is not None and made:
            self._features(commit, made, teacher, cache)

    def _add(self, file: str, problem: str, kind: str, block: int, seed: int, rows: list[int]) -> None:
        span = range(min(rows), max(rows) + 1)
        self.result.findings.append(
            Finding(file, problem, kind, self.slide_id, block, range(seed, seed + 1), span)
        )

    def _features(
        self,
        commit: manifest.Commit,
        made: list[tuple[int, int, npt.NDArray[np.uint8]]],
        teacher: "OnDevice",
        cache: BlockCache,
    ) -> None:
        far: dict[tuple[str, int], list[tuple[float, float, int]]] = {}
        least, most = self.bounds
        for batch in _batches(made, teacher.batch_size):
            stored: list[tuple[npt.NDArray[Any], ...]] = []  # features, tokens, positions, attention
            kept: list[tuple[int, int, npt.NDArray[np.uint8]]] = []
            for seed, row, view in batch:
                with contextlib.suppress(StoreError):  # what cannot be read, structure has named
                    at = np.array([row], np.int32)
                    stored.append(tuple(cache.stored(commit, at, seed)))
                    kept.append((seed, row, view))
            if not kept:
                continue
            stacked = np.stack([view for _, _, view in kept])
            positions = np.concatenate([positions for _, _, positions, _ in stored])
            fresh_tokens = fresh_attention = None
            if self.attention is not None:
                every = teacher.launch_attention(stacked, positions)
                fresh, fresh_tokens, fresh_attention = (values.cpu().numpy() for values in every)
            elif positions.shape[1]:
                both = teacher.launch_tokens(stacked, positions)
                fresh, fresh_tokens = (values.cpu().numpy() for values in both)
            else:
                fresh = teacher.launch(stacked).cpu().numpy()
            for i, (seed, row, _) in enumerate(kept):
                self.result.features_checked += 1
                self._compare("features", stored[i][0], fresh[i : i + 1], seed, row, far)
                if fresh_attention is not None:
                    self._compare("attention", stored[i][3], fresh_attention[i : i + 1], seed, row, far)
                if fresh_tokens is not None and positions.shape[1]:
                    self._compare("tokens", stored[i][1][0], fresh_tokens[i], seed, row, far)
        for (leaf, seed), pairs in sorted(far.items()):
            error, cosine, row = max(pairs)
            what = leaf if leaf == "features" else f"views have {leaf} that"
            problem = (
                f"{len(pairs)} {what} are not the teacher's: the worst is row {row}, relative error {error:.3g} "
                f"(allowed {most:.3g}), cosine {cosine:.6f} (allowed from {least:.6g})"
            )
            file = layout.feature_array(self.slide_id, leaf)
            self._add(file, problem, "teacher", commit.block, seed, [row for _, _, row in pairs])

    def _compare(
        self,
        leaf: str,
        stored: npt.NDArray[np.float16],
        fresh: npt.NDArray[np.float32],
        seed: int,
        row: int,
        far: dict[tuple[str, int], list[tuple[float, float, int]]],
    ) -> None:
        """Vectors (n, dim) of one view; the worst of them counts."""
        cosine, error = distance(stored, fresh)
        result, (least, most) = self.result, self.bounds
        result.cosine_min = min(cosine, 1.0 if result.cosine_min is None else result.cosine_min)
        result.relative_error_max = max(error, result.relative_error_max or 0.0)
        if not (cosine >= least and error <= most):
            far.setdefault((leaf, seed), []).append((error, cosine, row))


def _kept_pixels(store: StoreLike, slide_id: str) -> Reader | None:
    try:
        return StoreSource(slide_id, store).open() if pixels.has_pixels(store, slide_id) else None
    except StoreError:
        return None  # structure has named it


def _batches(items: list[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def render_stored(reader: Reader, block: CommittedBlock, seeds: range, row: int, policy: Policy) -> _Rendered:
    """Read a patch and render it with the stored parameters of each seed."""
    out = np.empty((len(seeds), policy.crop_px, policy.crop_px, 3), np.uint8)
    first = block.at(row, seeds.start)
    try:
        patch = reader.read(row, int(block.columns["x_px0"][first]), int(block.columns["y_px0"][first]))
        for i, seed in enumerate(seeds):
            out[i] = render(patch, block.params(block.at(row, seed)), policy)
    except (G2LError, ValueError) as error:
        return _Rendered(out, [], None, files.first_line(error))
    return _Rendered(out, [view_crc32(view) for view in out], patch)
