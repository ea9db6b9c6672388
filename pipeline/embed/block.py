"""One block of ``embed``, from reading to its part; runs in the workers. A process has one `Station` for all blocks."""

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from pipeline.embed import parts
from pipeline.embed.options import EmbedOptions
from pipeline.inference.engine import Encoded, Outcome, Station
from pipeline.inference.facts import TeacherFacts, facts_of
from pipeline.inference.loaded import OnDevice, compiled, load_on_device
from pipeline.inference.task import Task
from pipeline.runtime import work
from pipeline.views.policy import Policy
from stores.errors import FeatureError
from stores.format import manifest

TILING = "tiling"
"""The folder with the manifest of tiled slides."""


@dataclass(frozen=True, slots=True)
class Setup:
    """What a worker needs to know beside its task."""

    job: str
    out: Path
    """Absolute."""
    options: EmbedOptions
    patch_px: int
    crop_px: int
    tiles: bool
    processes: int | None


def describe_encoder(job: str, options: EmbedOptions) -> TeacherFacts:
    return facts_of(_encoder(job, options))


@dataclass(frozen=True, slots=True)
class _Loaded:
    encoder: OnDevice

    def close(self) -> None: ...


def _encoder(job: str, options: EmbedOptions) -> OnDevice:
    def load() -> _Loaded:
        chosen = work.with_number(options, torch.cuda.device_count())
        names = ("weights", "random_weights", "device", "dtype", "batch_size", "pooling")
        found = load_on_device(chosen.encoder, **{name: getattr(chosen, name) for name in names})
        return _Loaded(compiled(found) if chosen.compile else found)

    loaded: _Loaded = work.station(job, ("encoder", options), load)
    return loaded.encoder


def _encode(encoder: OnDevice, batch: npt.NDArray[np.uint8], positions: None) -> Encoded:
    """Features of views, float32 (B, dim)."""
    values: npt.NDArray[np.float32] = encoder.launch(batch).cpu().numpy()
    if not np.isfinite(values).all():
        raise FeatureError(
            f"the encoder returned {values[~np.isfinite(values)][0]}: try --dtype float32, or check the weights"
        )
    return Encoded(values)


def embed_block(setup: Setup, task: Task, advance: work.Advance) -> Outcome:
    """Do a task from reading to its part; the work of `embed`."""
    station: Station = work.station(setup.job, ("embed", setup), functools.partial(_open_station, setup))
    if setup.tiles:
        zeros = np.zeros(task.n_patches, np.int32)
        patches = manifest.Patches(zeros, zeros, np.ones(task.n_patches, np.float32))
    else:
        patches = manifest.read_patches(setup.out / TILING, task.source.slide_id)
    return station.run(task, patches, functools.partial(parts.write_part, setup.out, task), advance)


def _open_station(setup: Setup) -> Station:
    encoder, options = _encoder(setup.job, setup.options), setup.options
    policy = Policy("none", patch_px=setup.patch_px, crop_px=setup.crop_px)
    threads = work.threads_of(options.threads, setup.processes)
    encode = functools.partial(_encode, encoder)
    return Station(encoder, encode, np.float32, policy, False, threads, options.readers)
