"""One of the stores that a run of ``extract-teacher`` writes: its teacher, its recipe, and what is to do."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.encoders.encoder import other_size
from pipeline.extract.block import StoreStage
from pipeline.extract.options import ExtractOptions
from pipeline.extract.original import Original
from pipeline.extract.plan import MANIFEST_BYTES_PER_VIEW
from pipeline.extract.result import Extracted
from pipeline.extract.tasks import views_to_compare
from pipeline.inference.arithmetic import Arithmetic
from pipeline.inference.facts import EncoderFacts, reader_identity
from pipeline.inference.loaded import EncoderSpec
from pipeline.inference.task import Task
from pipeline.inference.worker import WorkerEncoder
from pipeline.runtime.options import to_json
from pipeline.runtime.resume import begun_otherwise
from pipeline.runtime.work import Cluster
from pipeline.views.policy import Policy
from stores.errors import OptionError
from stores.format import arithmetic, layout, recipe, terms
from stores.format.layout import read_options
from stores.io import files


@dataclass(slots=True)
class StoreRun:
    """A store that is written, from the loading of its teacher on."""

    store: Path
    options: ExtractOptions
    """With absolute paths, since workers may stand in another folder."""
    encoder: WorkerEncoder
    teacher: EncoderFacts
    summary: Extracted
    reason: str
    """Why the teacher has its arithmetic, where that is settled before anything is measured."""
    measured: Arithmetic | None = None
    tasks: list[Task] = field(default_factory=list)
    """What is to do, in order of slide, block and seeds."""

    @classmethod
    def load(cls, store: Path, options: ExtractOptions, workers: Cluster, policy: Policy) -> "StoreRun":
        """Load the teacher where the work will be.

        It is for views of the policy where it takes them, see `require_fitting`.
        """
        weights = None if options.weights is None else options.weights.absolute()
        options = dataclasses.replace(options, weights=weights)
        spec, reason = _spec(store, options, policy)
        encoder = WorkerEncoder(workers.job, spec)
        teacher = workers.call(encoder.describe, options.tokens, options.attention)
        return cls(store, options, encoder, teacher, Extracted(store=store), reason)

    @property
    def image_px(self) -> int:
        """Side of the views that the teacher takes."""
        return self.teacher.identity.image_px

    def require_fitting(self, policy: Policy, asked: str, first: bool) -> None:
        """Raise OptionError when the teacher does not take the views of a policy.

        Parameters
        ----------
        asked
            What decided the policy, for the message.
        first : bool
            Whether the teacher is the first of the run.
        """
        name = self.teacher.identity.name
        if self.image_px > policy.patch_px:
            raise OptionError(
                f"--patch {policy.patch_px}: patches of {policy.patch_px} px, but {name} takes "
                f"{self.image_px} px: give a larger --patch (smaller tiles get a margin with --pad), or "
                f"another teacher{other_size(self.teacher.resizable, policy.patch_px)}"
            )
        if self.image_px != policy.crop_px:
            remedy = "" if first else "; run it apart, or name it first: the first teacher decides the size"
            raise OptionError(
                f"{asked}: views of {policy.crop_px} px, but {name} takes {self.image_px} px"
                f"{other_size(self.teacher.resizable, policy.crop_px)}{remedy}"
            )

    def choose_arithmetic(self, workers: Cluster, policy: Policy) -> None:
        """Settle the arithmetic of ``--dtype auto``, measured on the views that are to do."""
        options, spec = self.options, self.encoder.spec
        if spec.dtype == "auto":
            views = views_to_compare(self.store, self.tasks)
            self.measured = workers.call(self.encoder.compare, policy, views, options.threads)
            self.reason = self.teacher.dtype_reason if self.measured is None else self.measured.reason
            dtype = self.teacher.identity.dtype if self.measured is None else self.measured.chosen
            # by name, so that workers on other devices compute in it too
            spec = dataclasses.replace(spec, dtype=dtype, compile=options.compile)
            self.encoder = WorkerEncoder(workers.job, spec)
            self.teacher = workers.call(self.encoder.describe, options.tokens, options.attention)
        if self.reason:
            self.teacher = dataclasses.replace(self.teacher, dtype_reason=self.reason)

    def wanted_recipe(self, policy: Policy) -> recipe.CompleteRecipe:
        """The recipe of what this run computes.

        Raises
        ------
        RecipeMismatch, OptionError
            When the store was begun otherwise.
        """
        stored = recipe.load(self.store)
        parts = stored.patch, self.teacher.identity, policy.to_json(), reader_identity()
        wanted = recipe.CompleteRecipe(*parts, tokens=self.teacher.tokens, attention=self.teacher.attention)
        if not stored.complete:
            return wanted
        recipe.require_same(stored, wanted, str(self.store))
        begun = read_options(self.store, "extract-teacher").get("pixels", self.options.pixels)
        if begun != self.options.pixels:
            raise begun_otherwise(self.store, "pixels", self.options.pixels, begun, "--store")
        return recipe.require_complete(stored, self.store)

    def settle(self, wanted: recipe.CompleteRecipe, original: Original | None, asked: bool) -> None:
        """Complete the store's recipe, and record options, terms and the store whose views it has.

        Parameters
        ----------
        original
            That store; None for none.
        asked : bool
            Whether it was named with ``--like``; else what is recorded of another one stays.
        """
        path = self.store / layout.options_file("extract-teacher")
        about = {} if original is None else {"like": original.about()}
        if recipe.load(self.store).complete:
            said = read_options(self.store, "extract-teacher")
            now = said | about if asked else about | said
            if now != said:
                files.write_json(path, now)
            return
        measured = self.measured
        found = (
            {} if measured is None else arithmetic.recorded(measured.chosen, measured.views, measured.errors)
        )
        files.write_json(path, to_json(self.options) | terms.recorded(self.teacher.terms) | found | about)
        recipe.save(self.store, wanted)

    def stage(self, stored: recipe.CompleteRecipe) -> StoreStage:
        """What its workers keep and write."""
        options = self.options
        return StoreStage(self.store.absolute(), stored, options.pixels, options.tokens, options.attention)

    @property
    def n_views(self) -> int:
        """Views that are to do."""
        return sum(task.n_views for task in self.tasks)

    def bytes_to_do(self, patch_px: int) -> int:
        """Bytes that the views take that are to do."""
        teacher, n_views = self.teacher, self.n_views
        size = n_views * (2 * teacher.identity.dim + MANIFEST_BYTES_PER_VIEW)
        if teacher.tokens is not None:
            size += n_views * teacher.tokens.count * (2 * teacher.tokens.dim + 4)
        if teacher.attention is not None:
            size += n_views * 2 * teacher.attention.grid**2
        if self.options.pixels:
            size += sum(len(task.rows) for task in self.tasks if task.seeds.start == 0) * 3 * patch_px**2
        return size


def _spec(store: Path, options: ExtractOptions, policy: Policy) -> tuple[EncoderSpec, str]:
    """The teacher that is asked for, and why it has its arithmetic; that is open for a new store with `auto`."""
    spec = EncoderSpec.of(options.teacher, options, options.tokens is not None, view_px=policy.crop_px)
    if spec.dtype != "auto":
        return spec, ""
    stored = recipe.load(store).teacher if (store / layout.RECIPE).exists() else None
    if stored is not None and stored.dtype in recipe.DTYPES:
        return dataclasses.replace(spec, dtype=stored.dtype), "the store was begun with it"
    return dataclasses.replace(spec, compile=False), ""  # compiled when its arithmetic is known
