"""An encoder in the processes where the work is: each loads it once and uses it for every task.

What a planning process sends to its workers is a bound method of one of these small frozen dataclasses. They travel
with every task; the costly things that they name are kept by the process (`pipeline.runtime.work.station`).
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from pipeline.inference.arithmetic import Arithmetic, ViewToRead, compare, read_views
from pipeline.inference.engine import Engine, Kept, Outcome, Sink
from pipeline.inference.facts import EncoderFacts, attention_recipe, token_recipe
from pipeline.inference.loaded import EncoderSpec, OnDevice, compiled, load_on_device
from pipeline.inference.task import Task
from pipeline.runtime import devices, work
from pipeline.views.policy import Policy
from stores.format import manifest


@dataclass(frozen=True, slots=True)
class WorkerEncoder:
    """An encoder that each process of a job loads when it first needs it."""

    job: str
    spec: EncoderSpec

    def loaded(self) -> OnDevice:
        """The encoder of this process; a local worker takes a GPU of its own where there are several."""

        plain = dataclasses.replace(self.spec, dtype="auto", compile=False)

        def load() -> OnDevice:
            return load_on_device(work.with_number(plain, torch.cuda.device_count()))

        def as_asked() -> OnDevice:
            found: OnDevice = work.station(self.job, ("encoder", plain), load)
            found = found.computing_in(self.spec.dtype)
            return compiled(found, self.spec.with_tokens) if self.spec.compile else found

        # weights are float32 in every arithmetic, so that a process has them once
        asked: OnDevice = work.station(self.job, ("encoder as asked", self.spec), as_asked)
        return asked

    def compare(self, policy: Policy, wanted: Sequence[ViewToRead], threads: int | None) -> Arithmetic | None:
        """Compare the half precisions of this process's device with float32; None where it has none."""
        loaded = self.loaded()
        candidates = devices.half_precisions(loaded.device)
        if not candidates:
            return None
        return compare(loaded, read_views(policy, wanted, work.threads_of(threads, None)), candidates)

    def describe(self, tokens: int | None = None, attention: bool = False) -> EncoderFacts:
        """Load the encoder where the work will be, and say what it is.

        `tokens` and `attention` are those of `token_recipe` and `attention_recipe`.
        """
        loaded = self.loaded()
        return EncoderFacts.of(loaded, token_recipe(loaded, tokens), attention_recipe(loaded, attention))


class Stage(Protocol):
    """What a stage makes of blocks of patches. Small and picklable, as it travels with every task."""

    def kept(self, encoder: OnDevice) -> Kept:
        """What is kept of the encoder's work; raises when encoder or software are not those of the result."""

    def patches(self, task: Task) -> manifest.Patches:
        """The patches of the whole slide of a task."""

    def sink(self, task: Task) -> Sink:
        """What writes the results of a task."""


@dataclass(frozen=True, slots=True)
class BlockWorker:
    """Does the tasks of a stage: reads, encodes and writes one block after the other."""

    encoder: WorkerEncoder
    stage: Stage
    threads: int | None
    readers: str
    processes: int | None
    """How many processes share a machine's CPUs, see `pipeline.runtime.work.threads_of`."""

    def do(self, task: Task, advance: work.Advance) -> Outcome:
        """Do a task from reading to its commit record; this is the `work.Work` that is sent to the workers."""
        engine: Engine = work.station(self.encoder.job, ("engine", self.encoder.spec), self._engine)
        return engine.run(task, self.stage.patches(task), self.stage.sink(task), advance)

    def _engine(self) -> Engine:
        encoder = self.encoder.loaded()
        threads = work.threads_of(self.threads, self.processes)
        return Engine(encoder, self.stage.kept(encoder), threads, self.readers)
