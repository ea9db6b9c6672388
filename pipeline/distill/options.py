"""Options of ``distill``; imports nothing heavy."""

from dataclasses import dataclass
from pathlib import Path

from pipeline.distill import loss_spec
from pipeline.runtime.options import (
    ENCODER,
    MACHINE,
    DeviceOptions,
    PoolingOptions,
    ReadingOptions,
    WeightsOptions,
    option,
    require,
    require_one_or_more,
)
from stores.errors import OptionError

_LOSS, _TRAINING, _CHECKS, _DATA = "Loss", "Training", "Validation and checkpoints", "Data"


@dataclass(frozen=True, kw_only=True)
class LossOptions:
    """What the student is compared with, and how."""

    loss: str = option(
        "log-sum",
        f"Terms and weights, such as log-sum:1,ibot:0.5. Terms: {', '.join(loss_spec.TERMS)}. "
        "dino+ibot is the loss of H0-mini; pair needs tiles with a column pair. With several stores these are the "
        "terms of each, or NAME=TERMS,NAME=TERMS gives each its own; the name is the last part of its path.",
        metavar="TERMS",
        heading=_LOSS,
    )
    alpha: float = option(4.0, "Exponent of log-sum and log-sum-corr.", heading=_LOSS)
    infonce_temp: float = option(0.1, "Temperature of infonce and pair.", heading=_LOSS)
    nested: str | None = option(
        None,
        "Also train the first K numbers of the embedding as embeddings of their own, such as 64,128,256 (Matryoshka).",
        metavar="K,K,..",
        heading=_LOSS,
    )
    prototypes: Path | None = option(
        None,
        "Folder that `g2l prototypes` wrote. dino and ibot need it. With several stores NAME=DIR,NAME=DIR gives each "
        "its own.",
        metavar="DIR",
        heading=_LOSS,
    )
    head_hidden: int = option(2048, "Width of the student's head for dino and ibot.", heading=_LOSS)
    head_bottleneck: int = option(
        256, "Length of the vector that this head compares with its prototypes.", heading=_LOSS
    )
    student_temp: float = option(0.1, "Temperature of the student's assignments.", heading=_LOSS)
    teacher_temp: float = option(0.04, "Temperature of the teacher's assignments.", heading=_LOSS)
    assign: str = option(
        "centre",
        "How the teacher's assignments are balanced: subtract the mean similarities, or Sinkhorn in each batch.",
        choices=("centre", "sinkhorn"),
        heading=_LOSS,
    )
    teacher_norm: str = option(
        "batch",
        "Normalisation of the targets: by batch, by the statistics of the store, or none.",
        choices=("batch", "store", "none"),
        heading=_LOSS,
    )

    def validate(self) -> None:
        """Raise OptionError that names the first value that is not allowed."""
        for name in ("alpha", "infonce_temp", "student_temp", "teacher_temp"):
            require(getattr(self, name) > 0, name, getattr(self, name), "above 0")
        require_one_or_more(self, "head_hidden", "head_bottleneck")
        every = loss_spec.parse_several(self.loss).values()
        if loss_spec.prefixes(self.nested) and not all(
            set(terms) & {*loss_spec.FEATURE_TERMS} for terms in every
        ):
            raise OptionError(
                f"--nested {self.nested}: --loss {self.loss} has no term of projected features, such as log-sum or mse"
            )
        wants = [term for terms in every for term in terms if term in loss_spec.PROTOTYPE_TERMS]
        if wants and self.prototypes is None:
            raise OptionError(
                f"--loss {self.loss}: {wants[0]} needs --prototypes; `g2l prototypes` makes them"
            )


@dataclass(frozen=True, kw_only=True)
class OptimiserOptions:
    """How the student is trained, and for how long."""

    ema: float | None = option(
        None,
        "Also keep a moving average of the student, with this momentum, such as 0.996.",
        metavar="MOMENTUM",
        heading=_TRAINING,
    )
    steps: int | None = option(None, "Training steps. Overrides --epochs.", heading=_TRAINING)
    epochs: float = option(
        10.0, "Passes over all training views. The paper does not give their number.", heading=_TRAINING
    )
    lr: float | None = option(
        None,
        "Learning rate at the start, or after the warm-up; cosine annealing to 0.",
        heading=_TRAINING,
        shown="1e-4 from weights, 2e-3 from scratch",
    )
    weight_decay: float = option(0.05, "Weight decay at the start; cosine annealing to 0.", heading=_TRAINING)
    warmup_steps: int | None = option(
        None,
        "Steps of linear warm-up of the learning rate.",
        heading=_TRAINING,
        shown="0 from weights; from scratch a tenth of the steps, at most 500",
    )
    clip_grad: float | None = option(
        None, "Shorten the gradient to this length when it is longer.", heading=_TRAINING
    )
    layer_decay: float | None = option(
        None,
        "Learning rate of each layer of the student, as a factor of that of the layer above it, such as 0.75.",
        heading=_TRAINING,
    )
    drop_path: float = option(
        0.0,
        "Share of the residual branches of the last block that a view skips in training; less in earlier blocks.",
        metavar="P",
        heading=_TRAINING,
    )
    freeze_layers: int = option(
        0, "Layers of the student that stay as they are, from the stem on: 1 is the stem.", heading=_TRAINING
    )
    freeze_steps: int = option(
        0, "Steps at the start in which only projector and heads learn.", heading=_TRAINING
    )
    early_stop: str | None = option(
        None,
        "off: never. g2l: the rule of G2L, which noise alone sets off after about 3,000 steps. held-out: when the mean "
        "CKA of the last validations is no better than that of as many before.",
        choices=("off", "g2l", "held-out"),
        older={"in-a-row": "g2l"},
        heading=_TRAINING,
        shown="off",
    )
    patience: int = option(10, "Validations whose mean --early-stop held-out compares.", heading=_TRAINING)
    min_gain: float = option(
        0.0, "What a mean CKA has to be above the one before it, for held-out.", heading=_TRAINING
    )
    batch_stats: str = option(
        "sync",
        "With several processes: compute batch normalisation and loss over all their batches, or in each process.",
        choices=("sync", "local"),
        heading=_TRAINING,
    )
    seed: int = option(
        0, "Seed of the order of views and of the projector.", metavar="SEED", heading=_TRAINING
    )

    def validate(self) -> None:
        """Raise OptionError that names the first value that is not allowed."""
        require_one_or_more(self, "steps", "patience")
        for name in ("lr", "epochs", "clip_grad"):
            value = getattr(self, name)
            require(value is None or value > 0, name, value, "above 0")
        require(self.ema is None or 0 < self.ema < 1, "ema", self.ema, "above 0, below 1")
        require(
            self.layer_decay is None or 0 < self.layer_decay <= 1,
            "layer_decay",
            self.layer_decay,
            "above 0, up to 1",
        )
        require(0 <= self.drop_path < 1, "drop_path", self.drop_path, "0 or more, below 1")
        for name in ("weight_decay", "warmup_steps", "seed", "freeze_layers", "freeze_steps", "min_gain"):
            value = getattr(self, name)
            require(value is None or value >= 0, name, value, "0 or more")


@dataclass(frozen=True, kw_only=True)
class DistillOptions(
    ReadingOptions, DeviceOptions, OptimiserOptions, LossOptions, PoolingOptions, WeightsOptions
):
    """Stage two: the student against the store."""

    student: str = option(
        "",
        "Preset, timm name, hf-hub:owner/name, folder, or module:function.",
        metavar="ENCODER",
        heading=ENCODER,
    )
    student_px: int | None = option(
        None,
        "Side of what the student sees: means of squares of the view, such as 112 of 224 px, a quarter of the cost.",
        metavar="PX",
        heading=ENCODER,
        shown="that of the view",
    )
    student_tokens: str = option(
        "shared",
        "With several stores: one class token, or a class token for each teacher; the embedding is then all of them, "
        "one after another.",
        choices=("shared", "per-teacher"),
        heading=ENCODER,
    )
    slides: tuple[Path, ...] = option(
        (),
        "Slide file or folder. Not needed when the store has pixels. May be repeated.",
        metavar="PATH",
        heading=_DATA,
    )
    seeds: int | None = option(
        None, "Train on seeds 0 to N-1.", heading=_DATA, shown="all seeds of the store"
    )
    batch_size: int = option(32, "Views of a step, in each process.", heading=_TRAINING)
    val_every: int = option(
        500,
        "Steps between validations. There is one before the first and after the last step.",
        heading=_CHECKS,
    )
    val_views: int = option(
        1024,
        "Views of the validation split in a validation, all of seed 0, and as many of the training split for the "
        "explained variance.",
        heading=_CHECKS,
    )
    checkpoint_every: int = option(200, "Steps between checkpoints.", heading=_CHECKS)
    check_views: str = option(
        "sample",
        "Which rebuilt views are compared with the checksums of the store.",
        choices=("sample", "all", "none"),
        heading=_DATA,
    )
    views_per_read: int = option(1, "Seeds rendered from one decoding of a patch.", heading=_DATA)
    join: str = option(
        "common",
        "With several stores: the views that all have, or that any has. A missing target has no part in the loss.",
        choices=("common", "any"),
        heading=_DATA,
    )
    qc_max: tuple[str, ...] = option(
        (),
        "Train and validate without patches whose value in a column qc_NAME of the store is higher, or is not known, "
        "such as fold=0.1. May be repeated.",
        metavar="NAME=VALUE",
        heading=_DATA,
    )
    qc_min: tuple[str, ...] = option(
        (), "The same for lower values. May be repeated.", metavar="NAME=VALUE", heading=_DATA
    )
    teacher_drop: float = option(
        0.0,
        "With several stores: let each view go of a teacher with this probability, but not of the one whose loss is "
        "highest.",
        metavar="P",
        heading=_LOSS,
    )
    balance: str = option(
        "none",
        "What an epoch shows equally often: each view once (none), or as many views of each slide or patient.",
        choices=("none", "slide", "patient"),
        heading=_DATA,
    )
    window: int | None = option(
        None,
        "Views mixed in memory, over all processes (150 KB each).",
        heading=_DATA,
        shown="8192, or 64 for each view of a step if that is more; half of it, a quarter, ... if memory is short or "
        "the training",
    )
    checkpointing: bool = option(
        False,
        "Compute activations again when the gradient needs them, instead of keeping them. Changes no bit.",
        heading=MACHINE,
    )
    micro_batch: int | None = option(
        None,
        "Compute a step in parts of N views, for one more forward pass. The loss still sees the whole batch.",
        heading=MACHINE,
        shown="the whole batch",
    )
    compile: bool = option(
        False,
        "Compile the student (torch.compile): the first step takes a minute or more, then they are faster on a GPU.",
        heading=MACHINE,
    )
    channels_last: bool = option(
        False,
        "Keep images with their channels last: many CNNs train faster, by rounding another student.",
        heading=MACHINE,
    )
    dtype: str = option(
        "auto",
        "Arithmetic of the student.",
        choices=("auto", "float32", "bfloat16", "float16"),
        heading=MACHINE,
    )
    tensorboard: bool = option(False, "Also write TensorBoard events.", heading=_CHECKS)

    def validate(self) -> None:
        """Raise OptionError that names the first value that is not allowed."""
        require(
            bool(self.student), "student", "(missing)", "a preset (see `g2l models`) or a model of your own"
        )
        for name in ("batch_size", "val_views"):
            value = getattr(self, name)
            require(value >= 2, name, value, "2 or more (batch normalisation needs two views)")
        require(0 <= self.teacher_drop < 1, "teacher_drop", self.teacher_drop, "0 or more, below 1")
        require_one_or_more(
            self,
            "val_every",
            "checkpoint_every",
            "views_per_read",
            "seeds",
            "window",
            "student_px",
            "micro_batch",
        )
        if self.pooling == "cls-average":
            raise OptionError(
                "--pooling cls-average: a student is trained with all its class tokens; take their mean where it is "
                "used (embed --pooling cls-average)"
            )
        if self.nested is not None and self.student_tokens != "shared":
            raise OptionError(
                f"--nested {self.nested}: with --student-tokens per-teacher the first numbers of the embedding are "
                "those of the first teacher; leave one of the two out"
            )
        from stores.format.qc import parse_limits  # imports tables

        parse_limits(self.qc_max, self.qc_min)
        LossOptions.validate(self)
        if self.compile and any(
            "attention" in terms for terms in loss_spec.parse_several(self.loss).values()
        ):
            raise OptionError(
                f"--compile: --loss {self.loss} has attention, which is read from within the model; leave one of "
                "them out"
            )
        OptimiserOptions.validate(self)
        ReadingOptions.validate(self)
        WeightsOptions.validate(self)


OF_MEMORY = (
    "batch_size",
    "dtype",
    "student_px",
    "student_tokens",
    "loss",
    "nested",
    "prototypes",
    "head_hidden",
    "head_bottleneck",
    "ema",
    "freeze_layers",
)
"""What decides the memory of a step, and can be planned with: ``plan --student``."""
