"""Options of the protocols; imports nothing heavy."""

from dataclasses import dataclass
from pathlib import Path

from pipeline.runtime.options import option, require

_GROUP = (
    "Column of what belongs together: slide, image or patient; group or slide_id where there is one, none."
)
_LABELS = "CSV with further columns, by slide_id (with x_px0, y_px0) or path."
_REPLICATES = "Bootstrap replicates for the 95 % intervals."
_SHUFFLE = "Control: labels shuffled over the samples; figures should be those of chance."


@dataclass(frozen=True, slots=True)
class KnnOptions:
    """k nearest neighbours."""

    label: str = option("label", "Column of classes.")
    group: str | None = option(None, _GROUP)
    labels: Path | None = option(None, _LABELS)
    k: tuple[int, ...] = option(
        (5, 10, 20), "Neighbours that vote; may be repeated (the paper does not say its k)."
    )
    by: str = option(
        "auto",
        "Who votes: the train split on val and test, everybody outside one's group; split where there is one.",
        ("auto", "split", "leave-out"),
    )
    shuffle_labels: bool = option(False, _SHUFFLE)
    seed: int = option(0, "Seed of the bootstrap and the shuffle.")
    replicates: int = option(1000, _REPLICATES)
    device: str = option("cpu", "Where similarities are computed: cpu, cuda.")

    def validate(self) -> None:
        """Raise OptionError that names the first value that is not allowed."""
        require(bool(self.k) and min(self.k) >= 1, "k", ", ".join(map(str, self.k)), "1 or more")
        require(self.replicates >= 0, "replicates", self.replicates, "0 or more")


@dataclass(frozen=True, slots=True)
class LinearOptions:
    """Linear probes."""

    label: str = option("label", "Column of classes.")
    group: str | None = option(None, _GROUP)
    labels: Path | None = option(None, _LABELS)
    head: str = option(
        "logistic",
        "Logistic regression with C chosen on validation, or eva's linear head.",
        ("logistic", "eva"),
    )
    by: str = option(
        "auto",
        "The split column, or cross-validation by group; split where there is one.",
        ("auto", "split", "folds"),
    )
    folds: int = option(5, "Folds of the cross-validation.")
    patience: int = option(400, "eva: epochs without a better validation.")
    runs: int = option(5, "eva: runs.")
    steps: int = option(12_500, "eva: steps at most.")
    shuffle_labels: bool = option(False, _SHUFFLE)
    seed: int = option(0, "Seed of folds, heads, bootstrap and shuffle.")
    replicates: int = option(1000, _REPLICATES)

    def validate(self) -> None:
        """Raise OptionError that names the first value that is not allowed."""
        require(self.folds >= 3, "folds", self.folds, "3 or more: one tests, one chooses, the others train")
        for name in ("patience", "runs", "steps"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        require(self.replicates >= 0, "replicates", self.replicates, "0 or more")


@dataclass(frozen=True, slots=True)
class CkaOptions:
    """Linear CKA."""

    batch: int | None = option(None, "Unbiased form, averaged over batches of so many samples.")
    seed: int = option(0, "Seed of the batches.")

    def validate(self) -> None:
        """Raise OptionError that names the first value that is not allowed."""
        require(self.batch is None or self.batch >= 4, "batch", self.batch, "4 or more")


@dataclass(frozen=True, slots=True)
class RobustnessOptions:
    """Robustness index."""

    label: str = option("label", "Column of biological classes.")
    site: str = option("site", "Column of centres, scanners or stainings.")
    group: str | None = option(None, _GROUP)
    labels: Path | None = option(None, _LABELS)
    k: tuple[int, ...] = option(
        (3, 5, 10, 20), "Neighbours; may be repeated. The default is the paper's list."
    )
    queries: int | None = option(None, "Look at the neighbours of so many samples only.")
    shuffle_labels: bool = option(False, _SHUFFLE)
    seed: int = option(0, "Seed of queries, bootstrap and shuffle.")
    replicates: int = option(1000, _REPLICATES)
    device: str = option("cpu", "Where similarities are computed: cpu, cuda.")

    def validate(self) -> None:
        """Raise OptionError that names the first value that is not allowed."""
        require(bool(self.k) and min(self.k) >= 1, "k", ", ".join(map(str, self.k)), "1 or more")
        require(self.queries is None or self.queries >= 1, "queries", self.queries, "1 or more")
        require(self.replicates >= 0, "replicates", self.replicates, "0 or more")


@dataclass(frozen=True, slots=True)
class PlismOptions:
    """PLISM."""

    k: tuple[int, ...] = option((1, 3, 5, 10), "Of top-k accuracy; may be repeated.")
    n_tiles: int | None = option(None, "Tiles of each slide, drawn; all. The benchmark's default is 8139.")
    tiles: Path | None = option(
        None, "A .npy file of row numbers instead, such as the benchmark's own lists."
    )
    seed: int = option(0, "Seed of the tiles that are drawn.")
    device: str = option("cpu", "Where similarities are computed: cpu, cuda.")

    def validate(self) -> None:
        """Raise OptionError that names the first value that is not allowed."""
        require(bool(self.k) and min(self.k) >= 1, "k", ", ".join(map(str, self.k)), "1 or more")
        require(self.n_tiles is None or self.n_tiles >= 6, "n_tiles", self.n_tiles, "6 or more")


@dataclass(frozen=True, slots=True)
class HestOptions:
    """HEST."""

    genes: Path | None = option(None, "CSV of log1p expression: what names a sample, and a column a gene.")
    fold: str = option("patient_id", "Column of what is left out together.")
    components: int = option(256, "Numbers that PCA leaves.")

    def validate(self) -> None:
        """Raise OptionError that names the first value that is not allowed."""
        require(self.genes is not None, "genes", "(missing)", "a CSV of expression")
        require(self.components >= 1, "components", self.components, "1 or more")


@dataclass(frozen=True, slots=True)
class SlideOptions:
    """Slide level."""

    label: str = option("label", "Column of classes, one a slide.")
    group: str = option("patient_id", "Column of patients: none is in two folds.")
    labels: Path | None = option(None, _LABELS)
    pool: str = option(
        "mean", "Mean pooling with a logistic regression, or gated attention.", ("mean", "abmil")
    )
    folds: int = option(5, "Folds of the cross-validation.")
    epochs: int = option(30, "abmil: epochs at most.")
    shuffle_labels: bool = option(False, _SHUFFLE)
    seed: int = option(0, "Seed of folds, training, bootstrap and shuffle.")
    replicates: int = option(1000, _REPLICATES)

    def validate(self) -> None:
        """Raise OptionError that names the first value that is not allowed."""
        require(self.folds >= 3, "folds", self.folds, "3 or more: one tests, one chooses, the others train")
        require(self.epochs >= 1, "epochs", self.epochs, "1 or more")
        require(self.replicates >= 0, "replicates", self.replicates, "0 or more")
