"""Options of ``distill``; imports nothing heavy."""

from dataclasses import dataclass
from pathlib import Path

from pipeline.distill import loss_spec
from pipeline.runtime.options import option, require, require_machine, require_weights
from stores.errors import OptionError


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
        require_machine(self)
        require_weights(self)
