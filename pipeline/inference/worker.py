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
from pipeline.inference.encoding import Kept, Sink
from pipeline.inference.engine import Channel, Engine, Outcome, Part
from pipeline.inference.facts import EncoderFacts, attention_recipe, token_recipe
from pipeline.inference.loaded import EncoderSpec, OnDevice, compiled, load_on_device
from pipeline.inference.task import Task, Together
from pipeline.runtime import devices, work
from pipeline.views.policy import Policy
from stores.errors import FeatureError
from stores.format import manifest
from stores.io.files import first_line


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
class TogetherWorker:
    """Does the tasks of one encoder or several over the same views: each block is read and rendered once."""

    stages: tuple[tuple[WorkerEncoder, Stage], ...]
    """What `pipeline.inference.task.Together` numbers; encoders of one job."""
    threads: int | None
    readers: str
    processes: int | None
    """How many processes share a machine's CPUs, see `pipeline.runtime.work.threads_of`."""

    def do(self, item: Together, advance: work.Advance) -> list[Outcome]:
        """Do the tasks of one block; an outcome for each, which says why it failed where others did not.

        Where all fail, an error is raised: the block is tried again, by another worker where there is one.
        """
        key = ("engine", tuple(encoder.spec for encoder, _ in self.stages))
        engine: Engine = work.station(self.stages[0][0].job, key, self._engine)
        parts = [Part(number, task, self.stages[number][1].sink(task)) for number, task in item.tasks]
        patches = self.stages[parts[0].channel][1].patches(item.first)
        outcomes = engine.run_all(parts, patches, advance)
        failed = [i for i, outcome in enumerate(outcomes) if outcome.failure is not None]
        if len(failed) == len(parts):
            raise _one_error([outcome.failure for outcome in outcomes if outcome.failure is not None])
        if failed:
            again = engine.run_all([parts[i] for i in failed], patches, advance)
            for i, outcome in zip(failed, again, strict=True):
                if outcome.failure is not None:
                    outcome.failure = work.portable(outcome.failure)
                outcomes[i] = outcome
        return outcomes

    def _engine(self) -> Engine:
        loaded = [(encoder.loaded(), stage) for encoder, stage in self.stages]
        channels = [Channel(encoder, stage.kept(encoder)) for encoder, stage in loaded]
        return Engine(channels, work.threads_of(self.threads, self.processes), self.readers)


def _one_error(errors: Sequence[Exception]) -> Exception:
    """What is raised when each of the encoders failed."""
    texts = dict.fromkeys(first_line(error) for error in errors)
    return errors[0] if len(texts) == 1 else FeatureError("; ".join(texts))
