"""The control: labels of whole groups."""

from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.evaluate.embeddings import load_embeddings
from pipeline.evaluate.options import KnnOptions, LinearOptions
from pipeline.evaluate.protocols import run_knn, run_linear
from pipeline.evaluate.shuffle import shuffled
from tests.pipeline.evaluate.test_protocols import write


def recognisable_slides(folder: Path) -> Path:
    """Forty slides of twenty patches: a slide is recognised by its look, no class is; a slide has one label.

    The split leaks: patches of every slide train and test.
    """
    rng = np.random.default_rng(0)
    slide = np.repeat(np.arange(40), 20)
    x = (rng.normal(size=(40, 64)) * 3)[slide] + rng.normal(size=(800, 64))
    label = rng.permutation(np.arange(40) % 2)[slide]
    columns = {
        "path": [f"t{i}" for i in range(800)],
        "label": [f"c{c}" for c in label],
        "slide_id": [f"s{s}" for s in slide],
        "split": [("val", "train", "test", "train")[i % 4] for i in range(800)],
    }
    return write(folder / "e.parquet", x.astype(np.float32), columns)


def test_the_control_sees_a_leak_between_patches_of_a_slide(tmp_path: Path) -> None:
    """Shuffled patch by patch the control says chance, although the accuracy of 1 is nothing but the leak."""
    found = load_embeddings(recognisable_slides(tmp_path))

    def accuracy(**options: object) -> float:
        value = run_knn(found, KnnOptions(k=(5,), replicates=0, **options)).rows[0].value  # type: ignore[arg-type]
        assert value is not None
        return value

    assert accuracy(by="split") == 1
    assert accuracy(by="split", shuffle_labels=True, group="none") < 0.6  # patch by patch: sees nothing
    assert accuracy(by="split", shuffle_labels=True) == 1
    assert accuracy(by="leave-out") < 0.65  # no leak: neighbours are of other slides
    assert accuracy(by="leave-out", shuffle_labels=True) < 0.65
    probe = run_linear(found, LinearOptions(by="split", shuffle_labels=True, replicates=0))
    assert probe.rows[0].value is not None
    assert probe.rows[0].value > 0.98
    assert probe.notes[0].startswith("control: labels of 40 whole groups (slide_id) were shuffled; ")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(0, 999))
def test_every_group_has_the_labels_of_one_group_in_their_order(sizes: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    groups = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    labels = rng.integers(0, 3, len(groups))
    after = shuffled(labels, groups, np.random.default_rng(seed))
    drawn = np.random.default_rng(seed).permutation(len(sizes))
    for group, source in enumerate(drawn):
        block, got = labels[groups == source].tolist(), after[groups == group].tolist()
        assert got == [block[i * len(block) // len(got)] for i in range(len(got))]
        if len(block) == len(got):
            assert got == block
        if len(set(block)) == 1:
            assert set(got) == set(block)


def test_labels_that_vary_within_a_group_keep_their_shares() -> None:
    groups = np.repeat([0, 1], [8, 4])
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2])
    for seed in range(20):
        after = shuffled(labels, groups, np.random.default_rng(seed))
        if (after != labels).any():
            assert after.tolist() == [2] * 8 + [0, 0, 1, 1]
            return
    raise AssertionError("twenty shuffles of two groups never exchanged them")


def test_few_groups_are_said(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    columns = {"label": ["a", "b"] * 40, "group": [f"g{i // 20}" for i in range(80)]}
    path = write(tmp_path / "e.parquet", rng.normal(size=(80, 4)).astype(np.float32), columns)
    notes = run_knn(load_embeddings(path), KnnOptions(k=(3,), replicates=0, shuffle_labels=True)).notes
    assert notes[0].startswith("control: labels of 4 whole groups (group) were shuffled; ")
    assert notes[0].endswith("; so few groups can land near their own labels: look at several seeds")
