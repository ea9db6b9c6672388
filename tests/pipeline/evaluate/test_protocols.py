"""The commands of ``evaluate`` on embeddings in every form."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from sklearn.neighbors import KNeighborsClassifier

from cli import g2l
from pipeline.embed.parts import feature_column
from pipeline.evaluate.embeddings import add_columns, load_embeddings, matched
from pipeline.evaluate.options import LinearOptions, PairsOptions, RobustnessOptions, SlideOptions
from pipeline.evaluate.pairs import run_pairs
from pipeline.evaluate.protocols import run_linear, run_robustness, run_slides
from stores.errors import EvaluationError, OptionError
from stores.format import features, manifest
from tests.tools.bombs import write_bomb
from tests.tools.evaluate import figure, run

N, DIM = 240, 8


def samples(seed: int = 0) -> tuple[np.ndarray, dict[str, list[Any]]]:
    """Two classes from three sites, 24 slides of ten patches."""
    rng = np.random.default_rng(seed)
    slide = np.arange(N) // 10
    label, site = slide % 2, slide % 3
    x = rng.normal(size=(N, DIM)).astype(np.float32)
    x[:, 0] += 4 * label
    columns = {
        "path": [f"t{i}.png" for i in range(N)],
        "label": ["ab"[c] for c in label],
        "site": [f"s{c}" for c in site],
        "group": [f"g{c}" for c in slide],
    }
    return x, columns


def write(path: Path, x: np.ndarray, columns: dict[str, list[Any]], bad: int = 0) -> Path:
    """A Parquet file as `embed` writes it; the last `bad` rows could not be read."""
    ok = np.arange(len(x)) < len(x) - bad
    about = {b"g2l": json.dumps({"encoder": {"name": "made-up"}}).encode()}
    table = pa.table({**columns, "features": feature_column(x, ok)}).replace_schema_metadata(about)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=50)
    return path


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    return write(tmp_path / "e.parquet", *samples())


def refusal(*arguments: Any) -> str:
    done = CliRunner().invoke(g2l, ["evaluate", *map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 2, done.output
    return done.output


def test_knn_leaves_the_own_group_out(parquet: Path) -> None:
    x, columns = samples()
    result = run("knn", parquet, "--k", 5, "--k", 9)
    right = 0
    for group in set(columns["group"]):
        own = np.array([g == group for g in columns["group"]])
        labels = np.array(columns["label"])
        model = KNeighborsClassifier(9, metric="cosine", algorithm="brute").fit(x[~own], labels[~own])
        right += int((model.predict(x[own]) == labels[own]).sum())
    assert figure(result, "accuracy", 9)["value"] == pytest.approx(right / N)
    assert (result["encoder"], result["samples"]) == ("made-up", N)
    assert "no neighbour of one's own group; groups and intervals by group" in result["notes"]
    row = figure(result, "accuracy", 5)
    assert 0.8 < row["low"] <= row["value"] <= row["high"] <= 1


def test_knn_by_split(tmp_path: Path) -> None:
    x, columns = samples()
    splits = ["train"] * 190 + ["val"] * 20 + ["test"] * 30
    path = write(tmp_path / "e.parquet", x, columns | {"split": splits})
    result = run("knn", path, "--k", 3)
    labels = np.array(columns["label"])
    model = KNeighborsClassifier(3, metric="cosine", algorithm="brute").fit(x[:190], labels[:190])
    assert result["samples"] == 50
    assert figure(result, "accuracy", 3)["value"] == pytest.approx(
        (model.predict(x[190:]) == labels[190:]).mean()
    )
    assert run("knn", path, "--k", 3, "--by", "leave-out")["samples"] == N


@pytest.mark.slow
def test_shuffled_labels_are_near_chance(parquet: Path) -> None:
    for protocol in ("knn", "linear"):
        good, control = run(protocol, parquet), run(protocol, parquet, "--shuffle-labels")
        name, k = ("accuracy", 5) if protocol == "knn" else ("auc", None)
        assert figure(good, name, k)["value"] > 0.85
        assert abs(figure(control, name, k)["value"] - 0.5) < 0.15
        assert control["notes"][0].startswith("control: labels of 24 whole groups (group) were shuffled; ")


@pytest.mark.slow
def test_linear_by_folds_and_by_eva(parquet: Path, tmp_path: Path) -> None:
    result = run("linear", parquet, "--out", tmp_path / "r.json")
    assert json.loads((tmp_path / "r.json").read_text()) == result
    assert figure(result, "auc")["value"] > 0.9
    eva = run(
        "linear", parquet, "--head", "eva", "--runs", 2, "--steps", 500, "--replicates", 20, "--folds", 3
    )
    assert figure(eva, "balanced_accuracy_mean_of_runs")["value"] > 0.7
    assert figure(eva, "balanced_accuracy_std_of_runs")["value"] < 0.1


def test_linear_without_a_test_split_says_so(tmp_path: Path) -> None:
    x, columns = samples()
    path = write(tmp_path / "e.parquet", x, columns | {"split": ["train", "val"] * (N // 2)})
    result = run_linear(load_embeddings(path), LinearOptions(replicates=10))
    assert "no test split: figures are on val, where the head was chosen" in result.notes
    assert result.samples == N // 2


def test_robustness_and_its_group(parquet: Path) -> None:
    result = run("robustness", parquet, "--k", 3)
    assert figure(result, "robustness_v2", 3)["value"] > 0.7
    whole = run_robustness(load_embeddings(parquet), RobustnessOptions(k=(3,), group="none", replicates=10))
    assert whole.rows[0].value != figure(result, "robustness_v1", 3)["value"]


def test_cka_matches_samples_by_name(tmp_path: Path) -> None:
    x, columns = samples()
    order = np.random.default_rng(0).permutation(N)[:100]
    turned = (x @ np.linalg.qr(np.random.default_rng(1).normal(size=(DIM, DIM)))[0]).astype(np.float32)
    a = write(tmp_path / "a.parquet", x, columns)
    b = write(
        tmp_path / "b.parquet", turned[order], {name: [v[i] for i in order] for name, v in columns.items()}
    )
    result = run("cka", a, b)
    assert figure(result, "cka")["value"] == pytest.approx(1, abs=1e-5)
    assert result["samples"] == 100
    assert result["notes"] == ["140 samples are only in one of the two and were left out"]
    assert figure(result, "cka_unbiased")["value"] == pytest.approx(1, abs=1e-5)
    assert figure(run("cka", a, b, "--batch", 25), "cka_unbiased")["value"] == pytest.approx(1, abs=1e-5)


def test_cka_of_fewer_samples_than_dimensions_warns(tmp_path: Path) -> None:
    rng, names = np.random.default_rng(0), {"path": [f"{i}.png" for i in range(40)]}
    a, b = (
        write(tmp_path / f"{n}.parquet", rng.normal(size=(40, n)).astype("f4"), names) for n in (200, 300)
    )
    result = run("cka", a, b)
    assert figure(result, "cka")["value"] > 0.8  # nothing in common
    assert abs(figure(result, "cka_unbiased")["value"]) < 0.1
    assert "40 samples are fewer than 300 dimensions" in result["notes"][0]


def test_a_store_is_the_teachers_embeddings(small: Path) -> None:
    found = load_embeddings(small)
    assert found.encoder == "tests.tools.tiny:teacher"
    rows = manifest.read_slides(small)
    assert len(found) == sum(row["n_patches"] for row in rows)
    array = features.open_features(small, "b").read_block(0, 0)
    np.testing.assert_array_equal(
        found.x[[s == "b" for s in found.columns["slide_id"]]], array.astype(np.float32)
    )
    assert set(found.columns) == {
        "slide_id",
        "patient_id",
        "split",
        "site",
        "row",
        "x_px0",
        "y_px0",
        "tissue",
    }


def test_h5_files_of_other_tools(tmp_path: Path) -> None:
    x, _ = samples()
    for name, rows in (("one", slice(0, 50)), ("two", slice(50, N))):
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file["features"] = x[rows]
            file["coords"] = np.arange(2 * len(x[rows])).reshape(-1, 2)
    found = load_embeddings(tmp_path)
    np.testing.assert_array_equal(found.x, x)
    assert found.columns["slide_id"] == ["one"] * 50 + ["two"] * 190
    table = tmp_path / "labels.csv"
    table.write_text("slide_id,label\none,x\n")
    kept, lost = add_columns(found, table)
    assert (len(kept), lost, set(kept.columns["label"])) == (50, 190, {"x"})
    with h5py.File(tmp_path / "two.h5", "a") as file:
        write_bomb(file, "features", x[50:])
    with pytest.raises(EvaluationError, match=r"two.h5: damaged \(the chunk at \(0, 0\)"):
        load_embeddings(tmp_path)


def test_rows_that_could_not_be_read_are_left_out_and_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "e.parquet", *samples(), bad=180)
    found = load_embeddings(path)
    assert (len(found), found.left_out) == (60, 180)
    assert len(found.columns["label"]) == 60
    said = "180 samples could not be read when they were embedded"
    assert said in run("knn", path)["notes"]
    assert run("cka", path, path)["notes"].count(said) == 2
    rows = ["path,CD3", *(f"t{i}.png,{i % 7}" for i in range(len(found.x) * 4))]
    (tmp_path / "genes.csv").write_text("\n".join(rows) + "\n")
    assert said in run("hest", path, "--genes", tmp_path / "genes.csv", "--fold", "site")["notes"]

    slides = load_embeddings(slide_embeddings(tmp_path))
    labels = {"label": ["ab"[int(patient[1:]) % 2] for patient in slides.columns["patient_id"]]}
    slides = replace(slides, columns={**slides.columns, **labels}, left_out=180)
    assert said in run_slides(slides, SlideOptions(pool="mean", folds=3)).notes
    places = {"pair": [str(i // 2) for i in range(240)], "site": ["a", "b"] * 120}
    assert said in run_pairs(replace(slides, columns=places, left_out=180), PairsOptions(replicates=2)).notes


def test_hest_of_genes_in_a_csv(tmp_path: Path) -> None:
    x, columns = samples()
    path = write(tmp_path / "e.parquet", x, columns)
    rows = ["path,CD3,KRT5", *(f"t{i}.png,{x[i, 1]},{x[i, 2] ** 3}" for i in range(100))]
    (tmp_path / "genes.csv").write_text("\n".join(rows) + "\n")
    result = run("hest", path, "--genes", tmp_path / "genes.csv", "--fold", "site")
    assert (result["samples"], result["notes"][0]) == (
        100,
        "140 samples are not in genes.csv and were left out",
    )
    assert figure(result, "pearson of CD3")["value"] > 0.95
    assert 0.5 < figure(result, "pearson of KRT5")["value"] < 0.95
    (tmp_path / "genes.csv").write_text("path,CD3\nt0.png,many\n")
    assert "could not convert string to float" in refusal("hest", path, "--genes", tmp_path / "genes.csv")


def slide_embeddings(folder: Path) -> Path:
    """Thirty slides of fifteen patients; the label is in the mean."""
    rng = np.random.default_rng(0)
    slide = np.repeat(np.arange(30), 8)
    x = rng.normal(size=(len(slide), 6)).astype(np.float32)
    x[:, 0] += 4 * (slide // 2 % 2)
    columns = {"slide_id": [f"s{i:02}" for i in slide], "patient_id": [f"p{i // 2}" for i in slide]}
    return write(folder / "e.parquet", x, columns)


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["mean", "abmil"])
def test_slides_by_patient(tmp_path: Path, pool: str) -> None:
    path = slide_embeddings(tmp_path)
    rows = ["slide_id,label", *(f"s{i:02},{'mutated' if i // 2 % 2 else 'wild'}" for i in range(29))]
    (tmp_path / "labels.csv").write_text("\n".join(rows) + "\n")
    result = run("slides", path, "--labels", tmp_path / "labels.csv", "--pool", pool, "--folds", 3)
    assert result["protocol"] == f"slides-{pool}"
    assert result["samples"] == 29
    assert figure(result, "auc")["value"] > 0.9


def test_a_slide_with_two_labels_is_refused(tmp_path: Path) -> None:
    found = load_embeddings(slide_embeddings(tmp_path))
    columns = {**found.columns, "label": ["a", "b"] * (len(found) // 2)}
    found = type(found)(found.source, found.encoder, found.x, columns)
    with pytest.raises(EvaluationError, match="slide s00: two different values in column label"):
        run_slides(found, SlideOptions())


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda p: p.unlink(), "no embeddings; give the folder of `g2l embed`"),
        (lambda p: p.write_bytes(b"PAR1 nonsense"), "not a readable Parquet file"),
        (
            lambda p: pq.write_table(pa.table({"label": ["a"]}), p),
            "no column features of lists of one length",
        ),
        (
            lambda p: pq.write_table(pa.table({"features": [[1.0], [1.0, 2.0]]}), p),
            "column features of type list<element: double>; numbers, text or lists of one length",
        ),
        (lambda p: write(p, np.full((4, 2), np.nan), {"label": list("aabb")}), "sample 0 is not finite"),
        (lambda p: write(p, np.ones((4, 2)), {"label": list("aaaa")}, bad=4), "no embedding in it"),
        (lambda p: write(p, np.ones((4, 2)), {"kind": list("aaaa")}), "--label label: .* it has kind"),
        (
            lambda p: write(p, np.ones((4, 2)), {"label": list("aabb")}),
            "k 20: allowed is 1 to the number of reference samples, 4",
        ),
    ],
)
def test_embeddings_that_do_not_do(tmp_path: Path, break_it: Callable[[Path], Any], message: str) -> None:
    path = write(tmp_path / "e.parquet", *samples())
    break_it(path)
    assert re.search(message, refusal("knn", path))


def test_folders_with_files_that_do_not_fit(tmp_path: Path) -> None:
    x, columns = samples()
    write(tmp_path / "embeddings" / "a.parquet", x, columns)
    write(tmp_path / "embeddings" / "b.parquet", x[:, :5], columns)
    with pytest.raises(EvaluationError, match=r"b\.parquet: embeddings of 5 numbers, a\.parquet has 8"):
        load_embeddings(tmp_path)
    write(tmp_path / "embeddings" / "b.parquet", x, {**columns, "more": columns["site"]})
    with pytest.raises(EvaluationError, match="column 'more' is not in all files"):
        load_embeddings(tmp_path)


def test_labels_that_do_not_fit(parquet: Path, tmp_path: Path) -> None:
    table, found = tmp_path / "l.csv", load_embeddings(parquet)
    for text, message in (
        ("x,y\n1,2\n", "has x, y; samples of .* are named by slide_id"),
        ("path,label\nt0.png,a\nt0.png,b\n", "line 3: t0.png occurs twice"),
        ("path,label\nother.png,a\n", "names none of the samples of .*, such as t0.png"),
    ):
        table.write_text(text)
        with pytest.raises(OptionError, match=message):
            add_columns(found, table)


def test_labels_by_the_names_of_slides(parquet: Path, tmp_path: Path) -> None:
    x, _ = samples()
    slides = ["sa"] * 100 + ["sb"] * (N - 100)
    found = load_embeddings(write(tmp_path / "slides.parquet", x, {"slide_id": slides}))
    table = tmp_path / "l.csv"
    table.write_text("Slide_ID; label\nsa.svs; x\nsc; y\n")
    kept, lost = add_columns(found, table)
    assert (len(kept), lost, set(kept.columns["label"])) == (100, N - 100, {"x"})
    for text, match in (
        ("slide_id,label\nsa,x\nSB,y\n", "there is no slide 'SB'; is 'sb' meant"),
        ("slide_id,label\nsa,x\nsa.svs,y\n", "both mean slide sa"),
    ):
        table.write_text(text)
        with pytest.raises(OptionError, match=match):
            add_columns(found, table)


def test_what_was_measured_is_no_label(parquet: Path, tmp_path: Path) -> None:
    x, columns = samples()
    path = write(tmp_path / "e.parquet", x, {**columns, "tissue": [0.5] * N, "seed": ["a"] * N})
    assert "--label tissue: was measured by g2l and is no label" in refusal("knn", path, "--label", "tissue")
    found = load_embeddings(path)
    # text: an older version let a user's own column have this name
    assert found.column("seed", "label") == ["a"] * N


def test_own_columns_of_an_older_store_do_not_take_the_place_of_ours(small: Path, tmp_path: Path) -> None:
    store = Path(shutil.copytree(small, tmp_path / "s"))
    rows = [{**row, "tissue": "skin", "row": "x"} for row in manifest.read_slides(store)]
    manifest.write_table(
        manifest.slides_path(store),
        pa.Table.from_pylist(
            rows,
            pa.schema(
                [*manifest.SLIDES_SCHEMA, *((name, pa.string()) for name in ("row", "site", "tissue"))]
            ),
        ),
    )
    found = load_embeddings(store)
    assert {len(values) for values in found.columns.values()} == {len(found)}
    assert all(isinstance(value, float) for value in found.columns["tissue"])


def test_samples_that_cannot_be_matched(parquet: Path, tmp_path: Path) -> None:
    x, columns = samples()
    a = load_embeddings(parquet)
    no_names = load_embeddings(write(tmp_path / "b.parquet", x, {"label": columns["label"]}))
    with pytest.raises(
        EvaluationError, match="matched by slide_id, x_px0 and y_px0, or by path; one lacks them"
    ):
        matched(a, no_names)
    doubled = load_embeddings(write(tmp_path / "c.parquet", x, {"path": ["t0.png"] * N}))
    with pytest.raises(EvaluationError, match="two samples of one path"):
        matched(a, doubled)
    other = load_embeddings(write(tmp_path / "d.parquet", x, {"path": [f"u{i}" for i in range(N)]}))
    with pytest.raises(EvaluationError, match="no sample in common"):
        matched(a, other)
