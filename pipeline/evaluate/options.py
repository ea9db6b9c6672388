"""Options of the protocols; imports nothing heavy."""

from dataclasses import dataclass
from pathlib import Path

from pipeline.runtime.options import option, require, require_choices, require_one_or_more
from stores.errors import OptionError

_CLASSES = "Column of the classes."


@dataclass(frozen=True, kw_only=True)
class LabelOptions:
    """Samples with classes: where the classes are, and how sure the figures are."""

    label: str = option("label", _CLASSES, metavar="COLUMN")
    labels: Path | None = option(
        None, "CSV of further columns, joined by slide_id (with x_px0, y_px0) or path.", metavar="FILE"
    )
    shuffle_labels: bool = option(
        False,
        "Control: shuffle the labels of whole groups (of samples where there are no groups). "
        "The figures should be those of chance.",
    )
    seed: int = option(0, "Seed of everything that is drawn at random.", metavar="SEED")
    replicates: int = option(1000, "Bootstrap replicates for the 95 % intervals.")

    def validate(self) -> None:
        """Raise OptionError that names the first value that is not allowed."""
        require_choices(self)
        require(self.replicates >= 0, "replicates", self.replicates, "0 or more")


@dataclass(frozen=True, kw_only=True)
class GroupOptions:
    """Which samples belong together."""

    group: str | None = option(
        None,
        "Column of the slide, image or patient. Samples with the same value never vote for each other.",
        metavar="COLUMN",
        shown="group, else slide_id; none switches it off",
    )


@dataclass(frozen=True, kw_only=True)
class SimilarityOptions:
    """Where similarities are computed."""

    device: str = option("cpu", "Where similarities are computed: cpu or cuda.", metavar="DEVICE")


def _require_neighbours(k: tuple[int, ...]) -> None:
    require(bool(k) and min(k) >= 1, "k", ", ".join(map(str, k)), "1 or more")


def _require_folds(folds: int) -> None:
    require(folds >= 3, "folds", folds, "3 or more: one tests, one chooses, the others train")


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """Which encoder the others are compared with."""

    compare_to: str | None = option(
        None,
        "Encoder that all others are compared with, by paired differences.",
        metavar="NAME",
        shown="teacher, else the encoder that a cka task names, else the first",
    )
    margin: float | None = option(
        None,
        "How much worse than that encoder is still as good, in units of the figures: adds a verdict.",
        metavar="X",
        shown="no verdict",
    )

    def validate(self) -> None:
        """Raise OptionError that names the first value that is not allowed."""
        require(self.margin is None or 0 < self.margin < float("inf"), "margin", self.margin, "above 0")


@dataclass(frozen=True, kw_only=True)
class KnnOptions(SimilarityOptions, LabelOptions, GroupOptions):
    """k nearest neighbours."""

    k: tuple[int, ...] = option(
        (5, 10, 20), "Neighbours that vote. May be repeated. The paper does not give its k."
    )
    by: str = option(
        "auto",
        "Who votes. split: the train split, on val and test. leave-out: all samples of other groups.",
        choices=("auto", "split", "leave-out"),
        shown="auto: split where there is such a column",
    )

    def validate(self) -> None:
        """Raise OptionError that names the first value that is not allowed."""
        _require_neighbours(self.k)
        LabelOptions.validate(self)


@dataclass(frozen=True, kw_only=True)
class LinearOptions(LabelOptions):
    """Linear probes."""

    group: str | None = option(
        None,
        "Column of the slide, image or patient. Samples with the same value are in the same fold.",
        metavar="COLUMN",
        shown="group, else slide_id; none switches it off",
    )
    head: str = option(
        "logistic",
        "Logistic regression with C chosen on validation, or eva's linear head.",
        choices=("logistic", "eva"),
    )
    by: str = option(
        "auto",
        "split: the split column says what trains and what tests. folds: cross-validation by group.",
        choices=("auto", "split", "folds"),
        shown="auto: split where there is such a column",
    )
    folds: int = option(5, "Folds of the cross-validation.")
    patience: int | None = option(
        None,
        "With --head eva: epochs without a better validation.",
        shown="eva's: a fifth of the epochs that 12,500 steps make, BACH 1250, PatchCamelyon 3",
    )
    runs: int = option(5, "With --head eva: runs.")
    steps: int = option(12_500, "With --head eva: largest number of steps.")

    def validate(self) -> None:
        """Raise OptionError that names the first value that is not allowed."""
        _require_folds(self.folds)
        require_one_or_more(self, "patience", "runs", "steps")
        LabelOptions.validate(self)


@dataclass(frozen=True, kw_only=True)
class CkaOptions:
    """Linear CKA."""

    batch: int | None = option(
        None,
        "Average the unbiased form over batches of N samples, instead of both forms over all.",
        shown="both forms over all samples",
    )
    seed: int = option(0, "Seed of the batches.", metavar="SEED")

    def validate(self) -> None:
        """Raise OptionError that names the first value that is not allowed."""
        require(self.batch is None or self.batch >= 4, "batch", self.batch, "4 or more")


@dataclass(frozen=True, kw_only=True)
class RobustnessOptions(SimilarityOptions, LabelOptions, GroupOptions):
    """Robustness index."""

    label: str = option("label", "Column of the biological classes.", metavar="COLUMN")
    site: str = option("site", "Column of the centres, scanners or stainings.", metavar="COLUMN")
    k: tuple[int, ...] = option(
        (3, 5, 10, 20), "Neighbours to look at. May be repeated. The default is the paper's list."
    )
    queries: int | None = option(None, "Look at the neighbours of N samples only.", shown="of all samples")
    preset: str | None = option(
        None,
        "PathoROB's own protocol of one of its data sets: sets k, group, label, site and, for TCGA, pairs.",
        choices=("pathorob-camelyon", "pathorob-tcga", "pathorob-tolkach-esca"),
    )

    def validate(self) -> None:
        """Raise OptionError that names the first value that is not allowed."""
        _require_neighbours(self.k)
        require_one_or_more(self, "queries")
        for name in ("k", "group", "queries") if self.preset is not None else ():
            if getattr(self, name) != getattr(type(self)(), name):
                raise OptionError(f"--preset {self.preset}: sets --{name} itself; leave it out")
        LabelOptions.validate(self)


@dataclass(frozen=True, kw_only=True)
class PairsOptions(SimilarityOptions):
    """Registered tiles of one's own."""

    pair: str = option("pair", "Column with one value for all tiles of a place.", metavar="COLUMN")
    site: str = option("site", "Column of the scanners or stainings.", metavar="COLUMN")
    k: tuple[int, ...] = option((1, 3, 5, 10), "The k of the top-k accuracy. May be repeated.")
    labels: Path | None = option(
        None, "CSV of further columns, joined by slide_id (with x_px0, y_px0) or path.", metavar="FILE"
    )
    group: str | None = option(
        None,
        "Column of the image or patient that a place belongs to: intervals draw these.",
        metavar="COLUMN",
        shown="intervals draw places",
    )
    seed: int = option(0, "Seed of everything that is drawn at random.", metavar="SEED")
    replicates: int = option(1000, "Bootstrap replicates for the 95 % intervals.")

    def validate(self) -> None:
        """Raise OptionError that names the first value that is not allowed."""
        _require_neighbours(self.k)
        require(self.replicates >= 0, "replicates", self.replicates, "0 or more")


@dataclass(frozen=True, kw_only=True)
class PlismOptions(SimilarityOptions):
    """PLISM."""

    k: tuple[int, ...] = option((1, 3, 5, 10), "The k of the top-k accuracy. May be repeated.")
    n_tiles: int | None = option(
        None, "Draw N tiles of each slide. The benchmark draws 8139.", shown="all tiles"
    )
    tiles: Path | None = option(
        None,
        "File of row numbers (.npy) instead of a draw, such as the benchmark's own lists.",
        metavar="FILE",
    )
    seed: int = option(0, "Seed of the draw.", metavar="SEED")

    def validate(self) -> None:
        """Raise OptionError that names the first value that is not allowed."""
        _require_neighbours(self.k)
        require(self.n_tiles is None or self.n_tiles >= 6, "n_tiles", self.n_tiles, "6 or more")


@dataclass(frozen=True, kw_only=True)
class HestOptions:
    """HEST."""

    genes: Path | None = option(
        None,
        "CSV of log1p expression: the columns that name a sample, and one column for each gene. Required.",
        metavar="FILE",
    )
    fold: str = option(
        "patient_id", "Column whose values are left out one after the other.", metavar="COLUMN"
    )
    components: int = option(256, "Components that PCA keeps.")

    def validate(self) -> None:
        """Raise OptionError that names the first value that is not allowed."""
        require(self.genes is not None, "genes", "(missing)", "a CSV of expression")
        require_one_or_more(self, "components")


@dataclass(frozen=True, kw_only=True)
class SlideOptions(LabelOptions):
    """Slide level."""

    label: str = option("label", "Column of the classes, one for each slide.", metavar="COLUMN")
    group: str = option("patient_id", "Column of the patients. No patient is in two folds.", metavar="COLUMN")
    pool: str = option(
        "mean",
        "Mean pooling with a logistic regression, or gated attention (abmil).",
        choices=("mean", "abmil"),
    )
    folds: int = option(5, "Folds of the cross-validation.")
    epochs: int = option(30, "With --pool abmil: largest number of epochs.")

    def validate(self) -> None:
        """Raise OptionError that names the first value that is not allowed."""
        _require_folds(self.folds)
        require_one_or_more(self, "epochs")
        LabelOptions.validate(self)
