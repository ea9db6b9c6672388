"""The protocols on embeddings with columns: choose samples, run, and say what came out as rows.

Every function takes embeddings and options and returns a `Result`; commands print it, ``evaluate all`` collects it.
"""

import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.evaluate import options as opts
from pipeline.evaluate import pathorob
from pipeline.evaluate.embeddings import Embeddings, joined, matched, read_table, sample_names, with_value
from pipeline.evaluate.eva_linear import eva_linear
from pipeline.evaluate.hest import hest
from pipeline.evaluate.linear import Fold, fold_of_splits, folds_by_group, logistic_probe
from pipeline.evaluate.pairs import run_pairs
from pipeline.evaluate.plism import plism
from pipeline.evaluate.result import Judged, Result, Row, row_of
from pipeline.evaluate.robustness import robustness
from pipeline.evaluate.shuffle import shuffle_note, shuffled
from pipeline.evaluate.slide_level import abmil_scores, bags_of, mean_pool_scores
from pipeline.metrics.checks import codes_of
from pipeline.metrics.cka import cka, flattered, minibatch_cka
from pipeline.metrics.classification import Classification
from pipeline.metrics.knn import knn_votes, leave_out
from pipeline.runtime.progress import Reporter
from stores.errors import EvaluationError, OptionError


@dataclass(frozen=True, slots=True)
class _Labelled:
    """Samples with codes of their classes and groups."""

    embeddings: Embeddings
    labels: npt.NDArray[np.int64]
    names: Sequence[str]
    groups: npt.NDArray[np.int64] | None
    group_name: str
    group_values: Sequence[str]

    def samples(self, rows: npt.NDArray[np.int64]) -> list[tuple[Hashable, str, str]]:
        """Name, label and group of samples, see `Judged`; without groups a sample is its own."""
        names = sample_names(self.embeddings)
        groups = names if self.groups is None else [self.group_values[i] for i in self.groups]
        return [(names[i], self.names[self.labels[i]], str(groups[i])) for i in rows.tolist()]


def _labelled(embeddings: Embeddings, options: Any, result: Result) -> _Labelled:
    """Join ``--labels``, leave out what has no label, and look up label and group."""
    embeddings = joined(embeddings, getattr(options, "labels", None), result.notes)
    embeddings = with_value(embeddings, options.label, "label", result.notes)
    result.samples = len(embeddings)
    labels, names = codes_of(options.label, embeddings.column(options.label, "label"), len(embeddings))
    name = options.group or next((n for n in ("group", "slide_id") if n in embeddings.columns), "none")
    groups = None
    values: list[str] = []
    if name != "none":
        groups, values = codes_of(name, embeddings.column(name, "group"), len(embeddings))
    if options.shuffle_labels:
        labels = _control(labels, groups, name, options.seed, result)
    return _Labelled(embeddings, labels, names, groups, name, values)


def _control(
    labels: npt.NDArray[np.int64], groups: npt.NDArray[np.int64] | None, name: str, seed: int, result: Result
) -> npt.NDArray[np.int64]:
    after = shuffled(labels, groups, np.random.default_rng([seed, 1]))
    result.notes.append(shuffle_note(labels, after, groups, name))
    return after


def _splits(data: _Labelled, by: str) -> list[str] | None:
    """The split of each sample, or None for cross-validation."""
    if by == "split" or (by == "auto" and "split" in data.embeddings.columns):
        splits = [str(value) for value in data.embeddings.column("split", "by split: column")]
        if by == "split" or len(set(splits)) > 1:
            return splits
    return None


def _group_note(data: _Labelled, text: str) -> str:
    return f"{text} by {data.group_name}" if data.groups is not None else f"{text} by sample"


def run_knn(embeddings: Embeddings, options: opts.KnnOptions) -> Result:
    """kNN accuracy for every k."""
    options.validate()
    result = Result("knn", embeddings.encoder, embeddings.source, len(embeddings), options)
    data = _labelled(embeddings, options, result)
    x, ks = data.embeddings.x, sorted(set(options.k))
    splits = _splits(data, options.by)
    if splits is None:
        own = leave_out(data.groups, len(x))
        rows = np.arange(len(x))
        votes = knn_votes(x, data.labels, x, ks, own, options.device)
        result.notes.append(_group_note(data, "no neighbour of one's own group; groups and intervals"))
    else:
        known = np.array([split == "train" for split in splits])
        rows = np.flatnonzero(~known)
        if not known.any() or not len(rows):
            raise EvaluationError(
                f"splits: {int(known.sum())} train samples and {len(rows)} others; both are needed"
            )
        votes = knn_votes(x[known], data.labels[known], x[rows], ks, None, options.device)
        result.samples = len(rows)
        result.notes.append(_group_note(data, f"{int(known.sum())} train samples vote; intervals"))
    groups = None if data.groups is None else data.groups[rows]
    of_k = [Classification(data.labels[rows], votes[:, i], len(data.names)) for i in range(len(ks))]
    for k, found in zip(ks, of_k, strict=True):
        rng = np.random.default_rng([options.seed, 2])
        result.rows += [
            row_of(name, e, k) for name, e in found.estimates(groups, rng, options.replicates).items()
        ]
    result.judged = Judged(
        functools.partial(data.samples, rows),
        [(name, k) for k, found in zip(ks, of_k, strict=True) for name in found.names],
        lambda weights: np.concatenate([found.figures(weights) for found in of_k]),
    )
    return result


def _folds(data: _Labelled, by: str, n_folds: int, seed: int, result: Result) -> list[Fold]:
    splits = _splits(data, by)
    if splits is not None:
        fold = fold_of_splits(splits)
        result.samples = len(fold.test)
        if fold.test is fold.val:
            result.notes.append("no test split: figures are on val, where the head was chosen")
        return [fold]
    groups = np.arange(len(data.labels)) if data.groups is None else data.groups
    result.notes.append(
        _group_note(data, f"cross-validation in {n_folds} folds, pooled; folds and intervals")
    )
    return folds_by_group(data.labels, groups, n_folds, seed)


def run_linear(embeddings: Embeddings, options: opts.LinearOptions) -> Result:
    """Linear probe: accuracy, balanced accuracy, F1, AUC."""
    options.validate()
    result = Result("linear", embeddings.encoder, embeddings.source, len(embeddings), options)
    data = _labelled(embeddings, options, result)
    folds = _folds(data, options.by, options.folds, options.seed, result)
    n_classes = len(data.names)
    x = data.embeddings.x
    if options.head == "logistic":
        probes = [logistic_probe(x, data.labels, fold, n_classes) for fold in folds]
        result.notes.append("C by fold: " + ", ".join(f"{probe.c:g}" for probe in probes))
        if not all(probe.converged for probe in probes):
            result.notes.append("a solution did not converge in 2,000 iterations")
        _classified(result, data, folds, np.concatenate([probe.scores for probe in probes]), options)
        return result
    runs = [
        eva_linear(
            x, data.labels, fold, n_classes, options.seed, options.patience, options.steps, options.runs
        )
        for fold in folds
    ]
    means = [float(np.mean([of_fold[i].balanced_accuracy for of_fold in runs])) for i in range(options.runs)]
    scores = np.concatenate([np.mean([run.scores for run in of_fold], axis=0) for of_fold in runs])
    _classified(result, data, folds, scores, options)
    result.rows.append(Row("balanced_accuracy_mean_of_runs", float(np.mean(means))))
    result.rows.append(Row("balanced_accuracy_std_of_runs", float(np.std(means))))
    result.notes.append(f"{options.runs} runs of eva's head; the other figures are of their mean scores")
    return result


def _classified(
    result: Result,
    data: _Labelled,
    folds: Sequence[Fold],
    scores: npt.NDArray[np.float64],
    options: Any,
) -> None:
    rows, model = _tested(folds)
    found = Classification(data.labels[rows], scores.argmax(axis=1), len(data.names), scores, model)
    groups = None if data.groups is None else data.groups[rows]
    rng = np.random.default_rng([options.seed, 2])
    result.rows += [row_of(name, e) for name, e in found.estimates(groups, rng, options.replicates).items()]
    figures = [(name, None) for name in found.names]
    result.judged = Judged(functools.partial(data.samples, rows), figures, found.figures)


def _tested(folds: Sequence[Fold]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The samples that the folds test, fold after fold, and the number of the fold that tests each."""
    tests = [fold.test for fold in folds]
    return np.concatenate(tests), np.repeat(np.arange(len(tests)), [len(test) for test in tests])


def run_cka(embeddings: Embeddings, other: Embeddings, options: opts.CkaOptions) -> Result:
    """CKA of two encoders on the samples that both embedded."""
    options.validate()
    rows_a, rows_b = matched(embeddings, other)
    name = f"{embeddings.encoder or 'embeddings'} and {other.encoder or 'embeddings'}"
    result = Result("cka", name, f"{embeddings.source} and {other.source}", len(rows_a), options)
    for one in (embeddings, other):
        joined(one, None, result.notes)
    x, y = embeddings.x[rows_a], other.x[rows_b]
    lost = len(embeddings) + len(other) - 2 * len(rows_a)
    if lost:
        result.notes.append(f"{lost} samples are only in one of the two and were left out")
    if options.batch is None:
        found = cka(x, y)
        result.rows += [Row("cka", found.linear), Row("cka_unbiased", found.unbiased)]
        result.notes += filter(None, [flattered(len(x), x.shape[1], y.shape[1])])
    else:
        value = minibatch_cka(x, y, options.batch, np.random.default_rng(options.seed))
        result.rows.append(Row("cka_unbiased", value))
    return result


def run_robustness(embeddings: Embeddings, options: opts.RobustnessOptions) -> Result:
    """Both robustness indices for every k."""
    options.validate()
    result = Result("robustness", embeddings.encoder, embeddings.source, len(embeddings), options)
    preset = options.preset
    if preset is not None:
        embeddings, options = pathorob.prepare(embeddings, options, result.notes)
    data = _labelled(embeddings, options, result)
    sites, _ = codes_of(options.site, data.embeddings.column(options.site, "site"), len(data.embeddings))
    subsets = None if preset is None else pathorob.subsets_of(data.embeddings, preset)
    rng = np.random.default_rng([options.seed, 3])
    found = robustness(
        data.embeddings.x,
        data.labels,
        sites,
        data.groups,
        sorted(set(options.k)),
        rng,
        options.queries,
        options.replicates,
        options.device,
        subsets,
    )
    for at in found:
        result.rows += [row_of("robustness_v1", at.v1, at.k), row_of("robustness_v2", at.v2, at.k)]

    def samples() -> list[tuple[Hashable, str, str]]:
        named = data.samples(found[0].rows)
        parts = [0] * len(named) if subsets is None else subsets[found[0].rows].tolist()
        return [((part, name), label, group) for part, (name, label, group) in zip(parts, named, strict=True)]

    result.judged = Judged(
        samples,
        [(name, at.k) for at in found for name in ("robustness_v1", "robustness_v2")],
        lambda weights: np.concatenate([at.statistic(weights) for at in found]),
    )
    result.notes.append(_group_note(data, "no neighbour of one's own group; groups and intervals"))
    return result


def run_plism(folder: Path, options: opts.PlismOptions, report: Reporter) -> Result:
    """PLISM's medians and its leaderboard's figure."""
    options.validate()

    def start(total: int) -> None:
        report.start("plism", total)

    ks = sorted(set(options.k))
    found = plism(
        folder, ks, options.n_tiles, options.tiles, options.seed, options.device, start, report.advance
    )
    result = Result("plism", "", str(folder), len(found.pairs), options)
    for group, figures in found.medians.items():
        result.rows.append(Row(f"{group}: cosine", figures["cosine"]))
        result.rows += [Row(f"{group}: top-k", figures[f"top_{k}"], k=k) for k in ks]
    if found.leaderboard is not None:
        result.rows.append(Row("leaderboard", found.leaderboard))
    result.notes.append("samples are pairs of slides; figures are medians over pairs")
    return result


def run_hest(embeddings: Embeddings, options: opts.HestOptions) -> Result:
    """Mean correlation over genes and folds."""
    options.validate()
    assert options.genes is not None
    names = _gene_names(options.genes, embeddings)
    result = Result("hest", embeddings.encoder, embeddings.source, 0, options)
    with_genes = joined(embeddings, options.genes, result.notes)
    result.samples = len(with_genes)
    try:
        genes = np.array([[float(v) for v in with_genes.columns[name]] for name in names]).T
    except ValueError as error:
        raise EvaluationError(f"--genes {options.genes}: {error}; numbers are expected") from None
    folds = [str(value) for value in with_genes.column(options.fold, "fold")]
    found = hest(with_genes.x, genes, folds, options.components)
    means = [fold.mean for fold in found]
    result.rows += [Row("pearson", float(np.mean(means))), Row("pearson_std_of_folds", float(np.std(means)))]
    for number, name in enumerate(names):
        values = [fold.pearson[number] for fold in found if np.isfinite(fold.pearson[number])]
        result.rows.append(Row(f"pearson of {name}", float(np.mean(values)) if values else None))
    constant = sum(int((~np.isfinite(fold.pearson)).sum()) for fold in found)
    if constant:
        result.notes.append(f"{constant} times a gene was constant over a test fold and did not count")
    result.notes.append(f"{len(found)} folds by {options.fold}")
    return result


def _gene_names(table: Path, embeddings: Embeddings) -> list[str]:
    names = read_table(table, f"--genes {table}").names
    own = [name for name in names if name not in embeddings.columns and name not in ("slide_id", "path")]
    if not own:
        raise OptionError(f"--genes {table}: no column of a gene")
    return own


def run_slides(embeddings: Embeddings, options: opts.SlideOptions) -> Result:
    """A task of whole slides, cross-validated by patient."""
    options.validate()
    result = Result(f"slides-{options.pool}", embeddings.encoder, embeddings.source, 0, options)
    embeddings = joined(embeddings, options.labels, result.notes)
    slides, names = codes_of("slide_id", embeddings.column("slide_id", "slide_id"), len(embeddings))
    bags = bags_of(slides)
    values = embeddings.column(options.label, "label")
    patients = embeddings.column(options.group, "group")
    for rows, name in zip(bags, names, strict=True):
        for column, what in ((values, options.label), (patients, options.group)):
            if len({column[i] for i in rows}) > 1:
                raise EvaluationError(f"slide {name}: two different values in column {what}; one is needed")
    kept = [rows for rows in bags if values[rows[0]] not in (None, "")]
    if len(kept) < len(bags):
        result.notes.append(f"{len(bags) - len(kept)} slides without a label were left out")
    labels, classes = codes_of(options.label, [values[rows[0]] for rows in kept], len(kept))
    groups, of_group = codes_of(options.group, [patients[rows[0]] for rows in kept], len(kept))
    if options.shuffle_labels:
        labels = _control(labels, groups, options.group, options.seed, result)
    folds = folds_by_group(labels, groups, options.folds, options.seed)
    if options.pool == "mean":
        scores = mean_pool_scores(embeddings.x, kept, labels, folds, len(classes))
    else:
        scores = abmil_scores(embeddings.x, kept, labels, folds, len(classes), options.seed, options.epochs)
    result.samples = len(kept)
    rows, model = _tested(folds)
    of_slide = np.empty(len(kept), np.int64)
    of_slide[rows] = model
    found = Classification(labels, scores.argmax(axis=1), len(classes), scores, of_slide)
    rng = np.random.default_rng([options.seed, 2])
    result.rows += [row_of(name, e) for name, e in found.estimates(groups, rng, options.replicates).items()]
    slide_of = [names[slides[rows[0]]] for rows in kept]
    result.judged = Judged(
        lambda: [
            (slide, classes[label], of_group[group])
            for slide, label, group in zip(slide_of, labels, groups, strict=True)
        ],
        [(name, None) for name in found.names],
        found.figures,
    )
    result.notes.append(
        f"samples are slides; cross-validation in {options.folds} folds, pooled; folds and intervals by {options.group}"
    )
    return result


Protocol = tuple[type, Callable[..., Result]]
PROTOCOLS: Mapping[str, Protocol] = {
    "knn": (opts.KnnOptions, run_knn),
    "linear": (opts.LinearOptions, run_linear),
    "robustness": (opts.RobustnessOptions, run_robustness),
    "hest": (opts.HestOptions, run_hest),
    "slides": (opts.SlideOptions, run_slides),
    "pairs": (opts.PairsOptions, run_pairs),
}
"""Those that take the embeddings of one encoder."""
