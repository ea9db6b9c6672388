"""The options of every stage as frozen dataclasses, shared by command line, config file and written JSON.

A field is the option ``--name-with-dashes``, the key in ``--config FILE.yaml`` and the key in ``options/*.json``.
Its metadata carry the help text. This module imports nothing heavy, so that ``--help`` stays quick.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from pipeline.distill import loss_spec
from stores.errors import OptionError


def option(default: Any, text: str, choices: Sequence[str] | None = None) -> Any:
    """A dataclass field with a help text, and the allowed values where they are a list."""
    return field(default=default, metadata={"help": text, "choices": choices})


def to_json(options: Any) -> dict[str, Any]:
    """Options as plain JSON types; paths become text."""
    return {key: _plain(value) for key, value in asdict(options).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def from_json(kind: Any, value: Mapping[str, Any]) -> Any:
    """Options from parsed JSON or YAML: what `to_json` wrote; unknown keys are an OptionError."""
    known = {f.name: f.type for f in fields(kind)}
    for key in value:
        if key not in known:
            raise OptionError(f"option {key!r}: not one of {', '.join(known)}")
    return kind(**{key: _typed(known[key], item) for key, item in value.items()})


def _typed(kind: Any, item: Any) -> Any:
    if isinstance(item, list | tuple):
        inner = next((t for t in (Path, int) if t.__name__ in str(kind)), str)
        try:
            return tuple(inner(x) for x in item)
        except (TypeError, ValueError):
            raise OptionError(f"{item}: a list of {inner.__name__} is expected") from None
    return Path(item) if item is not None and "Path" in str(kind) else item


def require(condition: bool, name: str, value: object, allowed: str) -> None:
    """Raise OptionError ``--name VALUE: allowed ...`` unless `condition` holds."""
    if not condition:
        raise OptionError(f"--{name.replace('_', '-')} {value}: allowed is {allowed}")


@dataclass(frozen=True, slots=True)
class TileOptions:
    """Stage zero: tissue, patch grid, splits."""

    mpp: float = option(0.5, "Target resolution in micrometres per pixel.")
    patch: int = option(256, "Side of a patch in pixels at that resolution.")
    min_tissue: float = option(0.5, "Smallest share of tissue in a patch, 0 to 1.")
    max_patches: int | None = option(None, "Keep at most this many patches a slide, drawn by position.")
    val: float = option(0.1, "Share of patients in the validation split, when the CSV gives none.")
    slides_csv: Path | None = option(
        None, "CSV with slide_id and any of mpp, patient_id, split, and columns of your own."
    )
    slide_mpp: tuple[str, ...] = option((), "Level-0 mpp of one slide, as ID=0.25; may be repeated.")
    masks: Path | None = option(
        None, "Folder with a tissue mask (ID.png, ID.tif) or annotation (ID.geojson) for every slide."
    )

    def validate(self) -> None:
        """Raise OptionError that names the first value that is not allowed."""
        require(0.05 <= self.mpp <= 5, "mpp", self.mpp, "0.05 to 5")
        require(32 <= self.patch <= 4096, "patch", self.patch, "32 to 4096")
        require(0 < self.min_tissue <= 1, "min_tissue", self.min_tissue, "above 0, up to 1")
        require(
            self.max_patches is None or self.max_patches > 0, "max_patches", self.max_patches, "1 or more"
        )
        require(0 <= self.val < 1, "val", self.val, "0 up to, not including, 1")


@dataclass(frozen=True, slots=True)
class ExtractOptions:
    """Stage one: the teacher over every view of every patch."""

    teacher: str = option("", "Preset, timm name, hf-hub:owner/name, folder, or module:function.")
    seeds: int = option(4, "Views per patch: the centre crop and seeds 1, 2, ...")
    policy: str = option("g2l", "Augmentation: g2l, none, hed, or a YAML file of your own.")
    weights: Path | None = option(None, "Checkpoint file or folder, instead of the published weights.")
    random_weights: int | None = option(None, "Seed of random weights, for trials without a download.")
    batch_size: int | None = option(None, "Views per forward pass; 256 on a GPU, 16 on a CPU.")
    device: str = option("auto", "auto, cpu, cuda, cuda:N or mps.")
    dtype: str = option("auto", "Arithmetic of the forward pass.", ("auto", "float32", "bfloat16", "float16"))
    threads: int | None = option(None, "Workers that read and render; the number of CPUs.")
    readers: str = option(
        "auto",
        "What reads and renders: threads, or processes, which leave Python to the device; processes beside a GPU.",
        ("auto", "threads", "processes"),
    )
    compile: bool = option(
        False, "Compile the encoder first (torch.compile): half a minute and more, then faster."
    )
    pixels: bool = option(False, "Keep the patches' pixels, for labs without the slides.")
    tokens: int | None = option(
        None, "Keep so many patch tokens of each view, at drawn positions; all of a view's 16x16 are 786 KB."
    )
    limit: int | None = option(None, "Stop after this many patches in total, for trials.")

    def validate(self) -> None:
        """Raise OptionError that names the first value that is not allowed."""
        require(
            bool(self.teacher), "teacher", "(missing)", "a preset (see `g2l models`) or a model of your own"
        )
        require(1 <= self.seeds <= 1000, "seeds", self.seeds, "1 to 1000")
        for name in ("limit", "tokens"):
            value = getattr(self, name)
            require(value is None or value >= 1, name, value, "1 or more")
        _validate_machine(self)
        _validate_weights(self)


FORMATS = ("parquet", "trident-h5", "clam", "eva", "plism")


@dataclass(frozen=True, slots=True)
class EmbedOptions:
    """Deployment: any encoder over slides or tiles."""

    encoder: str = option(
        "", "Preset, timm name, hf-hub:owner/name, a run's student folder, or module:function."
    )
    format: str = option("parquet", "Who reads the embeddings.", FORMATS)
    pooling: str | None = option(
        None, "cls, or cls+mean of the patch tokens; the encoder's own.", ("cls", "cls+mean")
    )
    weights: Path | None = option(None, "Checkpoint file or folder, instead of the published weights.")
    random_weights: int | None = option(None, "Seed of random weights: the untrained encoder.")
    batch_size: int | None = option(None, "Views per forward pass; 256 on a GPU, 16 on a CPU.")
    device: str = option("auto", "auto, cpu, cuda, cuda:N or mps.")
    dtype: str = option("auto", "Arithmetic of the forward pass.", ("auto", "float32", "bfloat16", "float16"))
    threads: int | None = option(None, "Workers that read and render; the number of CPUs.")
    readers: str = option(
        "auto",
        "What reads and renders: threads, or processes, which leave Python to the device; processes beside a GPU.",
        ("auto", "threads", "processes"),
    )
    compile: bool = option(
        False, "Compile the encoder first (torch.compile): half a minute and more, then faster."
    )
    column: tuple[str, ...] = option(
        (), "Of a CSV of tiles: what a column is, as path=tile or label=density; may be repeated."
    )
    root: Path | None = option(None, "Folder that the paths in a CSV of tiles start from; the CSV's own.")
    fit: str = option(
        "resize",
        "Tiles of another size than the encoder takes: shorter side resized and centre cropped, or only cropped.",
        ("resize", "crop"),
    )

    def validate(self) -> None:
        """Raise OptionError that names the first value that is not allowed."""
        require(
            bool(self.encoder), "encoder", "(missing)", "a preset (see `g2l models`) or a model of your own"
        )
        require(self.format in FORMATS, "format", self.format, ", ".join(FORMATS))
        _validate_machine(self)
        _validate_weights(self)


@dataclass(frozen=True, slots=True)
class ClusterOptions:
    """Where work runs. Changes no byte of a result on a CPU, hence stands in no recipe."""

    workers: int | None = option(None, "Run in so many processes on this machine.")
    scheduler: str | None = option(None, "Run on the workers of this dask scheduler, as tcp://host:8786.")

    def validate(self) -> None:
        """Raise OptionError that names the first value that is not allowed."""
        require(self.workers is None or self.workers >= 1, "workers", self.workers, "1 or more")
        if self.workers is not None and self.scheduler is not None:
            raise OptionError("--workers and --scheduler: give one of them")


IN_PROCESS = ClusterOptions()


@dataclass(frozen=True, slots=True)
class DistillOptions:
    """Stage two: the student against the store."""

    student: str = option("", "Preset, timm name, hf-hub:owner/name, folder, or module:function.")
    slides: tuple[Path, ...] = option((), "Slide files or folders; not needed when the store has pixels.")
    weights: Path | None = option(None, "Checkpoint to start from, instead of the published weights.")
    random_weights: int | None = option(None, "Seed of random weights, to train from scratch.")
    loss: str = option(
        "log-sum",
        "Terms and weights, as log-sum:1,ibot:0.5. Of log-sum, mse, l1, smooth-l1, cosine, relational, dino, ibot, "
        "token-cosine, koleo; dino+ibot is H0-mini's.",
    )
    alpha: float = option(4.0, "Exponent of the log-sum loss.")
    prototypes: Path | None = option(None, "Folder of `g2l prototypes`, for dino and ibot.")
    head: str = option(
        "dino",
        "The student's for dino and ibot: DINO's, with prototypes that are learned, or linear onto the teacher's.",
        ("dino", "prototypes"),
    )
    head_hidden: int = option(2048, "Width of DINO's head.")
    head_bottleneck: int = option(256, "Length of the vector before its prototypes.")
    student_temp: float = option(0.1, "Temperature of the student's assignments.")
    teacher_temp: float = option(0.04, "Temperature of the teacher's assignments.")
    assign: str = option(
        "centre",
        "Balance of the teacher's assignments: mean similarities off, Sinkhorn in a batch, none.",
        ("centre", "sinkhorn", "none"),
    )
    teacher_norm: str = option(
        "batch",
        "Normalisation of the targets: by batch, by the store's statistics, none.",
        ("batch", "store", "none"),
    )
    pooling: str | None = option(
        None, "Of the student: cls, or cls+mean of the patch tokens; its own.", ("cls", "cls+mean")
    )
    ema: float | None = option(None, "Keep a moving average of the student too, with this momentum (0.996).")
    seeds: int | None = option(None, "Train on seeds 0 to N-1; all that the store has.")
    batch_size: int = option(32, "Views per step and process.")
    steps: int | None = option(None, "Training steps; overrides --epochs.")
    epochs: float = option(10.0, "Passes over all training views (the paper does not say how many).")
    lr: float = option(1e-4, "Learning rate at the start; cosine annealing to 0.")
    weight_decay: float = option(0.05, "Weight decay at the start; cosine annealing to 0.")
    warmup_steps: int = option(0, "Steps of linear warm-up of the learning rate.")
    early_stop: str = option(
        "in-a-row",
        "Stop when the loss exceeded the mean of its last 100 values more than 10 times: in a row, in total, or never.",
        ("in-a-row", "cumulative", "off"),
    )
    val_every: int = option(500, "Steps between validations; also before the first and after the last step.")
    val_views: int = option(1024, "Views of the held-out split in a validation, seed 0.")
    checkpoint_every: int = option(200, "Steps between checkpoints.")
    check_views: str = option(
        "sample", "Compare rebuilt views with the manifest's checksums.", ("sample", "all", "none")
    )
    views_per_read: int = option(1, "Seeds rendered from one decoding of a patch.")
    window: int | None = option(
        None,
        "Views mixed in memory (150 KB each), over all processes; 64 for each view of a step, at least 2048.",
    )
    batch_stats: str = option(
        "sync",
        "With several processes: batch normalisation and loss over the batches of all, or of each its own.",
        ("sync", "local"),
    )
    seed: int = option(0, "Seed of the order of views and of the projector.")
    device: str = option("auto", "auto, cpu, cuda, cuda:N or mps.")
    dtype: str = option("auto", "Arithmetic of the student.", ("auto", "float32", "bfloat16"))
    threads: int | None = option(None, "Workers that read and render; the number of CPUs.")
    readers: str = option(
        "auto",
        "What reads and renders: threads, or processes, which leave Python to the device; processes beside a GPU.",
        ("auto", "threads", "processes"),
    )
    tensorboard: bool = option(False, "Write TensorBoard events beside the JSON lines.")

    def validate(self) -> None:
        """Raise OptionError that names the first value that is not allowed."""
        require(
            bool(self.student), "student", "(missing)", "a preset (see `g2l models`) or a model of your own"
        )
        for name in ("batch_size", "val_views"):
            value = getattr(self, name)
            require(value >= 2, name, value, "2 or more (batch normalisation needs two views)")
        for name in ("val_every", "checkpoint_every", "views_per_read"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        for name in ("steps", "seeds", "window"):
            value = getattr(self, name)
            require(value is None or value >= 1, name, value, "1 or more")
        for name in ("alpha", "lr", "epochs", "student_temp", "teacher_temp"):
            require(getattr(self, name) > 0, name, getattr(self, name), "above 0")
        for name in ("head_hidden", "head_bottleneck"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        require(self.ema is None or 0 < self.ema < 1, "ema", self.ema, "above 0, below 1")
        wants = [term for term in loss_spec.parse(self.loss) if term in loss_spec.PROTOTYPE_TERMS]
        if wants and self.prototypes is None:
            raise OptionError(
                f"--loss {self.loss}: {wants[0]} needs --prototypes; `g2l prototypes` makes them"
            )
        for name in ("weight_decay", "warmup_steps", "seed"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        _validate_machine(self)
        _validate_weights(self)


@dataclass(frozen=True, slots=True)
class PrototypeOptions:
    """Prototypes of the teacher's features and tokens."""

    k: int = option(4096, "Prototypes of the features, and as many of the tokens.")
    seeds: int | None = option(None, "Fit on seeds 0 to N-1; all that the store has.")
    epochs: int = option(3, "Passes over the views of the training split.")
    window: int = option(4096, "Views of a minibatch.")
    tokens_per_view: int = option(16, "At most so many of a view's tokens in a minibatch.")
    seed: int = option(0, "Seed of the order of views and of the start.")
    device: str = option("auto", "auto, cpu, cuda, cuda:N or mps.")
    threads: int | None = option(None, "Threads that compute; the number of CPUs.")

    def validate(self) -> None:
        """Raise OptionError that names the first value that is not allowed."""
        require(2 <= self.k <= 1 << 20, "k", self.k, f"2 to {1 << 20}")
        for name in ("epochs", "window", "tokens_per_view"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        require(self.seed >= 0, "seed", self.seed, "0 or more")
        for name in ("seeds", "threads"):
            value = getattr(self, name)
            require(value is None or value >= 1, name, value, "1 or more")


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """What ``plan`` reckons with; the tile options decide the patches."""

    teacher: str | None = option(None, "The teacher: its feature length, and with --measure its speed.")
    seeds: int = option(4, "Views per patch: the centre crop and seeds 1, 2, ...")
    pixels: bool = option(False, "Reckon with the patches' pixels too.")
    tokens: int | None = option(None, "Reckon with so many patch tokens of each view too.")
    dim: int | None = option(None, "Feature length of a teacher that is not known by name.")
    views_per_s: float | None = option(None, "Measured speed of the teacher, in views per second.")
    measure: bool = option(False, "Load the teacher and measure its speed on this machine.")
    weights: Path | None = option(None, "Checkpoint file or folder, instead of the published weights.")
    random_weights: int | None = option(None, "Seed of random weights: speed does not depend on them.")
    batch_size: int | None = option(None, "Views per forward pass; 256 on a GPU, 16 on a CPU.")
    device: str = option("auto", "auto, cpu, cuda, cuda:N or mps.")
    dtype: str = option("auto", "Arithmetic of the forward pass.", ("auto", "float32", "bfloat16", "float16"))

    def validate(self) -> None:
        """Raise OptionError that names the first value that is not allowed."""
        require(1 <= self.seeds <= 1000, "seeds", self.seeds, "1 to 1000")
        for name in ("dim", "tokens"):
            value = getattr(self, name)
            require(value is None or value >= 1, name, value, "1 or more")
        speed = self.views_per_s
        require(speed is None or speed > 0, "views_per_s", speed, "above 0")
        if self.measure and self.teacher is None:
            raise OptionError("--measure: needs --teacher, whose speed is measured")
        if self.measure and speed is not None:
            raise OptionError("--measure and --views-per-s: give one of them")


@dataclass(frozen=True, slots=True)
class VerifyOptions:
    """How deep ``store verify`` looks."""

    slides: tuple[Path, ...] = option(
        (), "Slide files or folders: re-read patches and render views from them."
    )
    views: bool = option(False, "Render views from the store's own pixels where no slide is given.")
    teacher: str | None = option(None, "Recompute features with this encoder; never taken from the store.")
    weights: Path | None = option(None, "Checkpoint file or folder, instead of the published weights.")
    random_weights: int | None = option(None, "Seed of random weights, for trials without a download.")
    sample: int = option(32, "Patches of each slide whose views and features are recomputed.")
    every: bool = option(False, "Recompute the views and features of every patch instead.")
    min_cosine: float = option(0.999, "Smallest cosine of a recomputed feature to the stored one.")
    partial: bool = option(False, "The store is unfinished: views that were never extracted are not wrong.")
    repair: bool = option(False, "Recompute what is broken; needs --slides and --teacher.")
    batch_size: int | None = option(None, "Views per forward pass; 256 on a GPU, 16 on a CPU.")
    device: str = option("auto", "auto, cpu, cuda, cuda:N or mps.")
    dtype: str = option("auto", "Arithmetic of the forward pass.", ("auto", "float32", "bfloat16", "float16"))
    threads: int | None = option(None, "Threads that read and render; the number of CPUs.")

    def validate(self) -> None:
        """Raise OptionError that names the first value that is not allowed."""
        require(self.sample >= 1, "sample", self.sample, "1 or more")
        require(0 < self.min_cosine <= 1, "min_cosine", self.min_cosine, "above 0, up to 1")
        if self.repair and not (self.slides and self.teacher):
            raise OptionError("--repair: needs --slides and --teacher, to recompute what is broken")
        if self.teacher is None and (self.weights is not None or self.random_weights is not None):
            raise OptionError("--weights and --random-weights: are the teacher's; give --teacher too")
        _validate_machine(self)
        _validate_weights(self)


def _validate_machine(options: ExtractOptions | EmbedOptions | DistillOptions | VerifyOptions) -> None:
    for name in ("batch_size", "threads"):
        value = getattr(options, name)
        require(value is None or value >= 1, name, value, "1 or more")


def _validate_weights(options: ExtractOptions | EmbedOptions | DistillOptions | VerifyOptions) -> None:
    if options.weights is not None and options.random_weights is not None:
        raise OptionError("--weights and --random-weights: give one of them")
    if options.weights is not None and not options.weights.exists():
        raise OptionError(f"--weights {options.weights}: no such file or folder")
