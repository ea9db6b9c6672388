"""Linear probes against independent solutions of the same problems."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, log_loss, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pipeline.evaluate.eva_linear import eva_linear, patience_of
from pipeline.evaluate.linear import Fold, fold_of_splits, folds_by_group, logistic_probe
from stores.errors import EvaluationError


def problem(
    n: int, n_classes: int, seed: int, noise: float = 1.5
) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % n_classes)
    x = rng.normal(size=(n_classes, 6))[labels] + noise * rng.normal(size=(n, 6))
    return (x * [1, 10, 1, 0.1, 1, 1] + 5).astype(np.float32), labels


def thirds(n: int) -> Fold:
    rows = np.arange(n)
    return Fold(rows[rows % 9 < 5], rows[(rows % 9 >= 5) & (rows % 9 < 7)], rows[rows % 9 >= 7])


def test_the_solution_is_where_the_gradient_vanishes() -> None:
    """The objective of the documentation of ``LogisticRegression``, written out: C times loss plus half the norm."""
    x, labels = problem(180, 3, 0)
    fold = thirds(180)
    probe = logistic_probe(x, labels, fold, 3, cs=[0.5])
    train = x[fold.train].astype(float)
    mean, std = train.mean(axis=0), train.std(axis=0)
    z = torch.tensor((train - mean) / std)
    target = torch.tensor(labels[fold.train])
    weight = torch.zeros(3, 6, dtype=torch.double, requires_grad=True)
    bias = torch.zeros(3, dtype=torch.double, requires_grad=True)
    solver = torch.optim.LBFGS(
        [weight, bias], max_iter=500, tolerance_grad=1e-10, line_search_fn="strong_wolfe"
    )

    def objective() -> torch.Tensor:
        solver.zero_grad()
        loss = torch.nn.functional.cross_entropy(z @ weight.T + bias, target, reduction="sum")
        value = 0.5 * loss + 0.5 * weight.square().sum()
        value.backward()
        return value

    solver.step(objective)
    test = torch.tensor((x[fold.test] - mean) / std)
    expected = (test @ weight.T + bias).softmax(1).detach().numpy()
    np.testing.assert_allclose(probe.scores, expected, atol=2e-3)
    assert (probe.c, probe.converged) == (0.5, True)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_the_chosen_c_is_the_best_on_validation(n_classes: int) -> None:
    x, labels = problem(270, n_classes, 1, noise=4)
    fold, cs = thirds(270), [1e-4, 1e-2, 1.0, 100.0]
    aucs, losses = {}, {}
    for c in cs:
        model = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=2000))
        model.fit(x[fold.train].astype(float), labels[fold.train])
        scores = model.predict_proba(x[fold.val].astype(float))
        losses[c] = log_loss(labels[fold.val], scores)
        aucs[c] = roc_auc_score(
            labels[fold.val], scores[:, 1] if n_classes == 2 else scores, multi_class="ovr"
        )
    probe = logistic_probe(x, labels, fold, n_classes, cs)
    assert probe.c == max(cs, key=lambda c: (aucs[c], -losses[c]))
    assert len(set(aucs.values())) > 1


def test_of_equal_aucs_the_smallest_log_loss_decides() -> None:
    x, labels = problem(90, 2, 5, noise=0.001)
    probe = logistic_probe(x, labels, thirds(90), 2, [1e-4, 1.0, 1e4])
    assert probe.c == 1e4


def test_a_constant_feature_and_a_class_that_only_the_test_has() -> None:
    x, labels = problem(90, 2, 2)
    x[:, 3] = 7
    fold = thirds(90)
    labels = labels.copy()
    labels[fold.test[0]] = 2
    probe = logistic_probe(x, labels, fold, 3)
    assert probe.scores[:, 2].tolist() == [0.0] * len(fold.test)


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (
            lambda x, labels, fold: x.__setitem__((4, 0), np.nan),
            "linear: the embedding of sample 4 is not finite",
        ),
        (lambda x, labels, fold: labels.__setitem__(fold.train, 1), "training samples: 1 different value"),
        (lambda x, labels, fold: labels.__setitem__(fold.val, 1), "validation samples: 1 different value"),
    ],
)
def test_what_cannot_be_probed(break_it: Any, message: str) -> None:
    x, labels = problem(90, 2, 3)
    labels, fold = labels.copy(), thirds(90)
    break_it(x, labels, fold)
    with pytest.raises(EvaluationError, match=message):
        logistic_probe(x, labels, fold, 2)


def test_folds_split_no_group_and_test_every_sample_once() -> None:
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 30, 300) * 5
    labels = (groups // 5) % 3
    folds = folds_by_group(labels, groups, 5, 0)
    assert sorted(np.concatenate([fold.test for fold in folds]).tolist()) == list(range(300))
    for fold in folds:
        parts = [set(groups[rows].tolist()) for rows in (fold.train, fold.val, fold.test)]
        assert not parts[0] & parts[1]
        assert not parts[0] & parts[2]
        assert not parts[1] & parts[2]
        assert len(fold.train) + len(fold.val) + len(fold.test) == 300
    assert [f.test.tolist() for f in folds] == [f.test.tolist() for f in folds_by_group(labels, groups, 5, 0)]
    with pytest.raises(EvaluationError, match="folds 5: there are only 4 groups"):
        folds_by_group(labels, groups % 4, 5, 0)
    with pytest.raises(EvaluationError, match="folds 2: at least 3"):
        folds_by_group(labels, groups, 2, 0)


def test_the_fold_of_a_column_of_splits() -> None:
    fold = fold_of_splits(["train", "val", "test", "train"])
    assert (fold.train.tolist(), fold.val.tolist(), fold.test.tolist()) == ([0, 3], [1], [2])
    assert fold_of_splits(["train", "val"]).test.tolist() == [1]
    with pytest.raises(EvaluationError, match="splits: 1 train and 0 val samples"):
        fold_of_splits(["train", "test"])
    with pytest.raises(EvaluationError, match="split 'valid': allowed are train, val, test"):
        fold_of_splits(["train", "valid"])


def naive_head(
    x: npt.NDArray[Any], labels: npt.NDArray[np.int64], fold: Fold, n_classes: int, seed: int, steps: int
) -> tuple[npt.NDArray[np.float64], int]:
    """eva's head by its formulas, in numpy; returns scores of the test samples and the best epoch.

    AdamW; a third of the rate in the first five epochs; one output and binary cross entropy for two classes; balanced
    accuracy after whole epochs, in which a class that is only predicted has a recall of 0.
    """
    n_out = 1 if n_classes == 2 else n_classes
    generator = torch.Generator().manual_seed(seed)
    bound = x.shape[1] ** -0.5
    w = torch.empty(n_out, x.shape[1]).uniform_(-bound, bound, generator=generator).numpy().astype(float)
    b = torch.empty(n_out).uniform_(-bound, bound, generator=generator).numpy().astype(float)
    train, val, test = (x[rows].astype(float) for rows in (fold.train, fold.val, fold.test))
    state = [np.zeros_like(w), np.zeros_like(w), np.zeros_like(b), np.zeros_like(b)]
    best, best_epoch, kept, step, epoch = -1.0, 0, None, 0, 0

    def scores_of(z: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        if n_out == 1:
            p = 1 / (1 + np.exp(-z))
            return np.concatenate([1 - p, p], axis=1)
        e = np.exp(z - z.max(axis=1, keepdims=True))
        return e / e.sum(axis=1, keepdims=True)

    while step < steps:
        order, whole = torch.randperm(len(train), generator=generator).numpy(), True
        rate = 1e-4 if epoch < 5 else 3e-4
        for start in range(0, len(order), 256):
            if step == steps:
                whole = False
                break
            rows = order[start : start + 256]
            wrong = scores_of(train[rows] @ w.T + b) - np.eye(n_classes)[labels[fold.train][rows]]
            wrong = wrong[:, -n_out:]
            grads = [wrong.T @ train[rows] / len(rows), wrong.mean(axis=0)]
            step += 1
            moved = []
            for i, (value, grad) in enumerate(zip([w, b], grads, strict=True)):
                value = value * (1 - rate * 0.01)
                m, v = 0.9 * state[2 * i] + 0.1 * grad, 0.999 * state[2 * i + 1] + 0.001 * grad**2
                state[2 * i], state[2 * i + 1] = m, v
                m_hat, v_hat = m / (1 - 0.9**step), v / (1 - 0.999**step)
                moved.append(value - rate * m_hat / (np.sqrt(v_hat) + 1e-8))
            w, b = moved
        if not whole:
            break
        epoch += 1
        figure = naive_balanced(scores_of(val @ w.T + b).argmax(axis=1), labels[fold.val], n_classes)
        if figure > best:
            best, best_epoch, kept = figure, epoch, (w, b)
    w, b = kept or (w, b)
    return scores_of(test @ w.T + b), best_epoch


def naive_balanced(guess: npt.NDArray[np.int64], labels: npt.NDArray[np.int64], n_classes: int) -> float:
    recalls = []
    for c in range(n_classes):
        there = labels == c
        if there.any() or (guess == c).any() or n_classes == 2:
            recalls.append((guess[there] == c).mean() if there.any() else 0.0)
    return float(np.mean(recalls))


@pytest.mark.parametrize(("n_classes", "steps"), [(2, 61), (3, 61), (2, 1)])
def test_evas_head_equals_its_formulas(n_classes: int, steps: int) -> None:
    """An odd number of steps, two an epoch: the last epoch is cut, and is not validated."""
    x, labels = problem(900, n_classes, 4, noise=1.0)
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    fold = thirds(900)
    runs = eva_linear(x, labels, fold, n_classes, seed=5, steps=steps, runs=2)
    for number, run in enumerate(runs):
        scores, best_epoch = naive_head(x, labels, fold, n_classes, 5 + number, steps)
        np.testing.assert_allclose(run.scores, scores, atol=1e-4)
        assert (run.best_epoch, run.steps) == (best_epoch, steps)
        guess = scores.argmax(axis=1)
        assert run.balanced_accuracy == pytest.approx(balanced_accuracy_score(labels[fold.test], guess))
    assert not np.array_equal(runs[0].scores, runs[1].scores)


def test_a_class_that_is_only_predicted_has_a_recall_of_0_in_evas_figure() -> None:
    x, labels = problem(900, 3, 4, noise=3.0)
    x, fold = (x - x.mean(axis=0)) / x.std(axis=0), thirds(900)
    fold = Fold(fold.train, fold.val, fold.test[labels[fold.test] != 2])
    (run,) = eva_linear(x, labels, fold, 3, seed=5, steps=60, runs=1)
    guess = run.scores.argmax(axis=1)
    assert (guess == 2).any()
    assert run.balanced_accuracy == pytest.approx(naive_balanced(guess, labels[fold.test], 3))
    assert run.balanced_accuracy < 0.8 * np.mean(
        [(guess[labels[fold.test] == c] == c).mean() for c in (0, 1)]
    )


@pytest.mark.parametrize(
    ("n_train", "patience"),
    [
        pytest.param(268, 1250, id="BACH"),
        pytest.param(3657, 167, id="BRACS"),
        pytest.param(1132, 500, id="BreakHis"),
        pytest.param(100_000, 7, id="CRC"),
        pytest.param(15_303, 42, id="Gleason (Arvaniti)"),
        pytest.param(2175, 278, id="MHIST"),
        pytest.param(262_144, 3, id="PatchCamelyon"),
        pytest.param(6270, 100, id="UniToPatho"),
    ],
)
def test_patience_is_evas_for_each_of_its_data_sets(n_train: int, patience: int) -> None:
    """The training samples and the patience of kaiko-ai/eva's configurations (April 2026)."""
    assert patience_of(n_train) == patience


def test_evas_head_tests_its_best_epoch() -> None:
    """Validation labels are turned round: the first epoch is the best, and the last is not what is tested."""
    x, labels = problem(900, 2, 8, noise=0.5)
    x, fold = (x - x.mean(axis=0)) / x.std(axis=0), thirds(900)
    turned = labels.copy()
    turned[fold.val] = 1 - turned[fold.val]
    (longer,) = eva_linear(x, turned, fold, 2, seed=0, steps=400, runs=1)
    # two batches an epoch
    (shorter,) = eva_linear(x, turned, fold, 2, seed=0, steps=2 * longer.best_epoch, runs=1)
    assert longer.best_epoch < 20
    np.testing.assert_array_equal(longer.scores, shorter.scores)


def test_evas_head_stops_when_validation_does_not_rise() -> None:
    x, labels = problem(90, 2, 6, noise=0.01)
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    (run,) = eva_linear(x, labels, thirds(90), 2, seed=0, patience=7, steps=100_000, runs=1)
    assert run.steps == run.best_epoch + 7  # one batch an epoch
