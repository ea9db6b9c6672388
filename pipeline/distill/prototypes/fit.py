"""``g2l prototypes``: spherical k-means on the teacher's features and tokens of the training split, from the store.

The teacher's own DINO and iBOT heads are not published, so prototypes are fitted on the features and tokens of the
store. Vectors come in the order of a training, one window at a time. The state is written every few windows: a killed
run continues from it, and ends with the same bytes on a CPU.

``options.json``, ``log.jsonl``, ``state.safetensors`` (until it is finished), ``prototypes.safetensors``,
``prototypes.png``, ``prototypes.json`` (last: its presence says that the run is complete)
"""

import contextlib
import dataclasses
import math
import sys
import time
from collections.abc import Generator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch
from torch import Tensor
from torch.nn import functional

from pipeline.data.committed import BlockCache
from pipeline.data.split import find_views
from pipeline.data.statistics import statistics
from pipeline.distill.prototypes import files as prototype_files
from pipeline.distill.prototypes.kmeans import Chunks, SphericalKMeans
from pipeline.distill.prototypes.options import PrototypeOptions
from pipeline.distill.prototypes.picture import draw_prototypes
from pipeline.runtime import devices
from pipeline.runtime.interrupt import Interrupted, stop_on_signal
from pipeline.runtime.log import RunLog
from pipeline.runtime.options import to_json
from pipeline.runtime.progress import Reporter
from pipeline.runtime.resume import BEGUN, read_begun, require_same_options
from pipeline.runtime.work import threads_of
from stores import sampler
from stores.errors import DistillError, OptionError, StoreError
from stores.format.recipe import CompleteRecipe, load_complete
from stores.io import files
from stores.io.foreign import open_regular
from stores.io.location import StoreLike
from stores.io.lock import only_writer

STATE = "state.safetensors"
_STATE_EVERY = 20
_SAMPLE = 65_536
"""Number of vectors for the statistics of the tokens, the first prototypes, and the figures at the end."""
TEMPERATURES = (0.02, 0.04, 0.07, 0.1)
_FREE = frozenset(["device", "threads"])
Vectors = dict[str, npt.NDArray[np.float16]]


@dataclasses.dataclass(frozen=True, slots=True)
class Fitted:
    """Prototypes that were written."""

    out: Path
    about: Mapping[str, Any]
    """What ``prototypes.json`` holds."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return dict(self.about)

    def lines(self) -> list[str]:
        """The same as text."""
        lines = []
        for name, found in self.about["figures"].items():
            spread = ", ".join(f"{n:.1f} at {t}" for t, n in found["perplexity"].items())
            lines += [
                f"{name:<9} {found['used']} of {self.about['k']} prototypes used by {found['vectors']:,} vectors, as "
                f"evenly as {found['effective']:.0f} equal ones; mean cosine {found['mean_cosine']:.3f}",
                f"          prototypes over which a teacher's assignment is spread, by --teacher-temp: {spread}",
            ]
        return [*lines, f"prototypes: {self.out}", f"picture: {self.out / 'prototypes.png'}"]


def fit(store: StoreLike, out: Path, options: PrototypeOptions, report: Reporter) -> Fitted:
    """Fit prototypes and write them into `out`. A call that was interrupted can be repeated: it continues.

    Raises
    ------
    OptionError
        When `out` was begun with other options, or the store has fewer vectors than prototypes are requested.
    StoreError
        When the store has no features, or the training split has no views.
    """
    options.validate()
    stored = load_complete(store)
    if (out / prototype_files.ABOUT).exists():
        with only_writer(out):  # one that was killed in its last step left its state
            _begin(out, options, stored.digest())
            files.remove(out / STATE)
        report.note(f"{out} is complete; use another --out to fit again")
        return Fitted(out, files.read_object(out / prototype_files.ABOUT, inside=out))
    units = find_views(store, stored, "train", options.seeds)
    stream = sampler.Stream(units, options.seed, options.window)
    if stream.epoch_views < options.k:
        raise OptionError(
            f"--k {options.k}: the training split has {stream.epoch_views} views under its seeds; ask for fewer"
        )
    chunks = Chunks(threads_of(options.threads, None), devices.choose_device(options.device))
    with only_writer(out), RunLog(report, out / files.RUN_LOG) as log, contextlib.closing(chunks):
        _begin(out, options, stored.digest())
        work = _Fit(store, out, options, stored, stream, BlockCache(store, stored.tokens), chunks, log)
        return Fitted(out, work.run())


def _begin(out: Path, options: PrototypeOptions, digest: str) -> None:
    path = out / BEGUN
    begun = {"options": to_json(options), "store_recipe": digest, "stream": sampler.STREAM}
    if not path.exists():
        if not files.is_unused(out):
            raise OptionError(
                f"--out {out}: the folder is not empty and contains no prototypes; choose another"
            )
        files.write_json(path, begun)
        return
    old = read_begun(out)
    if old.get("store_recipe") != digest or old.get("stream") != sampler.STREAM:
        raise OptionError(f"--out {out}: begun on another store, or by another version; use another --out")
    require_same_options(out, options, _FREE)


@dataclasses.dataclass(slots=True)
class _Fit:
    store: StoreLike
    out: Path
    options: PrototypeOptions
    stored: CompleteRecipe
    stream: sampler.Stream
    cache: BlockCache
    chunks: Chunks
    report: Reporter
    mean: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    std: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    models: dict[str, SphericalKMeans] = dataclasses.field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        return self.chunks.device

    def run(self) -> dict[str, Any]:
        seen, seconds = self._restore()
        sample = self._sample()
        if not self.models:
            self._start(sample)
        total = self.options.epochs * self.stream.epoch_views
        self.report.start("prototypes", total, seen)
        began = time.monotonic()
        with stop_on_signal() as stop, contextlib.closing(self._windows(seen)) as windows:
            number = 0
            while seen < total:
                count, vectors = next(windows)
                cosines = {}
                for name, model in self.models.items():
                    x = self._unit(name, vectors[name])
                    cosines[name] = model.step(x)
                    if (seen + count) % self.stream.epoch_views == 0 and seen + count < total:
                        model.end_epoch(x)
                seen, number = seen + count, number + 1
                words = ", ".join(f"{name} {cosine:.3f}" for name, cosine in cosines.items())
                self.report.advance(count, f"mean cosine: {words}")
                if seen < total and (stop.requested or number % _STATE_EVERY == 0):
                    self._save(seen, seconds + time.monotonic() - began)
                if stop.requested and seen < total:
                    raise Interrupted(f"stopped after {seen} of {total} views, state written")
        return self._finish(sample, seconds + time.monotonic() - began)

    # vectors

    def _windows(self, start: int) -> Generator[tuple[int, Vectors]]:
        """Number of views and vectors of each window; the next one is read while one is in use."""
        plans = self.stream.windows(start)
        with ThreadPoolExecutor(1, thread_name_prefix="window") as ahead:
            coming: Future[tuple[int, Vectors]] = ahead.submit(self._read, next(plans))
            for plan in plans:
                current, coming = coming, ahead.submit(self._read, plan)
                yield current.result()

    def _read(self, plan: sampler.Window) -> tuple[int, Vectors]:
        held: dict[str, npt.NDArray[np.float16]] = {}
        for places, (targets, tokens, *_) in self.cache.parts(plan):
            parts = {"features": targets}
            if self.stored.tokens is not None:
                parts["tokens"] = self._taken(tokens, self.options.tokens_per_view)
            for name, values in parts.items():
                if name not in held:
                    held[name] = np.empty((plan.n_views, *values.shape[1:]), np.float16)
                held[name][places] = values
        return plan.n_views, {name: array.reshape(-1, array.shape[-1]) for name, array in held.items()}

    @staticmethod
    def _taken(tokens: npt.NDArray[np.float16], most: int) -> npt.NDArray[np.float16]:
        """At most `most` tokens of each view, from other places in each view, since they are sorted by place."""
        n_views, count = tokens.shape[:2]
        take = min(count, most)
        places = (np.arange(n_views)[:, None] + np.arange(take) * (count // take)) % count
        return np.take_along_axis(tokens, places[:, :, None], axis=1)

    def _sample(self) -> Vectors:
        """The first vectors of the stream, enough for the start and the figures at the end."""
        parts: dict[str, list[npt.NDArray[np.float16]]] = {}
        count = views = 0
        with contextlib.closing(self._windows(0)) as windows:
            while views < self.stream.epoch_views and count < max(_SAMPLE, 4 * self.options.k):
                n_views, vectors = next(windows)
                views, count = views + n_views, count + len(vectors["features"])
                for name, values in vectors.items():
                    one = self._taken(values.reshape(n_views, -1, values.shape[-1]), 1)
                    parts.setdefault(name, []).append(one[:, 0])
        return {name: np.concatenate(arrays) for name, arrays in parts.items()}

    def _unit(self, name: str, raw: npt.NDArray[np.float16]) -> Tensor:
        """Vectors as they are clustered, float32 (N, D): standardised, of norm 1."""
        mean, std = self.mean[name], self.std[name]

        def of(part: Tensor) -> Tensor:
            return functional.normalize((part.to(self.device).float() - mean) / std, dim=1)

        return torch.cat(self.chunks.map(of, torch.from_numpy(raw)))

    # state

    def _start(self, sample: Vectors) -> None:
        for name, raw in sample.items():
            if name == "features":
                mean, variance = statistics(self.store, self.stream.units)
            else:
                wide = raw.astype(np.float64)
                mean, variance = wide.mean(axis=0), wide.var(axis=0)
            self._normalise_by(name, mean, np.sqrt(variance))
            order = sampler.permutation(len(raw), self.options.seed, "prototypes", name)
            first = self._unit(name, raw[order[: self.options.k]])
            self.models[name] = SphericalKMeans.begin(first.clone(), self.chunks)

    def _normalise_by(self, name: str, mean: npt.NDArray[np.float64], std: npt.NDArray[np.float64]) -> None:
        std = np.where(std > 1e-6, std, 1.0)  # a constant dimension says nothing
        self.mean[name], self.std[name] = (torch.from_numpy(v).float().to(self.device) for v in (mean, std))

    def _save(self, seen: int, seconds: float) -> None:
        tensors = {
            f"{name}.{part}": getattr(model, part).cpu()
            for name, model in self.models.items()
            for part in ("prototypes", "counts", "used")
        }
        for name in self.models:
            tensors |= {f"{name}.mean": self.mean[name].cpu(), f"{name}.std": self.std[name].cpu()}
        about = {"seen": str(seen), "seconds": str(seconds)}
        with files.replacing(self.out / STATE) as partial:
            safetensors.torch.save_file(tensors, partial, metadata=about)

    def _restore(self) -> tuple[int, float]:
        """Views seen and seconds spent by an earlier run."""
        path = self.out / STATE
        if not path.exists():
            return 0, 0.0
        files.require_utf8(path)
        try:
            open_regular(path, sys.maxsize, inside=self.out).close()
            with safetensors.safe_open(path, "pt", device=str(self.device)) as file:
                about = file.metadata() or {}
                names = file.keys()  # it is no mapping
                tensors = {name: file.get_tensor(name) for name in names}
            for name in {key.partition(".")[0] for key in tensors}:
                self.mean[name], self.std[name] = tensors[f"{name}.mean"], tensors[f"{name}.std"]
                moved, counts, used = (tensors[f"{name}.{p}"] for p in ("prototypes", "counts", "used"))
                self.models[name] = SphericalKMeans(moved, counts, used, self.chunks)
            seen = int(about["seen"])
            seconds = float(about["seconds"])
        except (safetensors.SafetensorError, KeyError, ValueError, OSError, StoreError) as error:
            raise DistillError(
                f"{path}: damaged ({files.first_line(error)}); remove {self.out} and begin again"
            ) from None
        self.models = {name: self.models[name] for name in prototype_files.SPACES if name in self.models}
        self.report.note(f"continues after {seen} views")
        return seen, seconds

    # the end

    def _finish(self, sample: Vectors, seconds: float) -> dict[str, Any]:
        spaces: dict[str, prototype_files.Space] = {}
        figures: dict[str, Any] = {}
        shown: dict[str, tuple[npt.NDArray[Any], npt.NDArray[Any]]] = {}
        for name, model in self.models.items():
            x = self._unit(name, sample[name])
            centre, perplexity = _judge(model, x, self.chunks)
            index, cosine = model.nearest(x)
            usage = torch.bincount(index, minlength=self.options.k).cpu().numpy()
            parts = (self.mean[name], self.std[name], model.prototypes, centre)
            spaces[name] = prototype_files.Space(*(part.cpu().numpy() for part in parts))
            figures[name] = {
                "vectors": len(x),
                "mean_cosine": float(cosine.mean()),
                "used": int((usage > 0).sum()),
                "largest_share": float(usage.max() / usage.sum()),
                "effective": _effective(usage),
                "perplexity": perplexity,
            }
            shown[name] = usage, cosine.cpu().numpy()
        prototype_files.save(self.out, spaces)
        draw_prototypes(self.out / "prototypes.png", shown)
        about = {
            "k": self.options.k,
            "store_recipe": self.stored.digest(),
            "options": to_json(self.options),
            "views": self.options.epochs * self.stream.epoch_views,
            "seconds": seconds,
            "figures": figures,
        }
        files.write_json(self.out / prototype_files.ABOUT, about)
        (self.out / STATE).unlink(missing_ok=True)
        return about


def _judge(model: SphericalKMeans, x: Tensor, chunks: Chunks) -> tuple[Tensor, dict[str, float]]:
    """Mean cosine to each prototype, (K,), and over how many prototypes an assignment spreads, for each temperature."""

    def similarity(part: Tensor) -> Tensor:
        return part @ model.prototypes.T

    centre = torch.stack(chunks.map(lambda part: similarity(part).double().sum(dim=0), x)).sum(dim=0) / len(x)
    centre = centre.float()

    def entropies(part: Tensor) -> list[float]:
        centred = similarity(part) - centre
        found = []
        for temperature in TEMPERATURES:
            log_p = functional.log_softmax(centred / temperature, dim=1)
            found.append(float(-(log_p.exp() * log_p).sum()))
        return found

    totals = [math.fsum(column) for column in zip(*chunks.map(entropies, x), strict=True)]
    perplexity = {f"{t:g}": math.exp(total / len(x)) for t, total in zip(TEMPERATURES, totals, strict=True)}
    return centre, perplexity


def _effective(usage: npt.NDArray[np.int64]) -> float:
    """How many equally used prototypes have the same entropy."""
    share = usage[usage > 0] / usage.sum()
    return float(np.exp(-(share * np.log(share)).sum()))
