"""``evaluate all``: several encoders, data and tasks from one YAML file."""

import csv
import json
from pathlib import Path

import pytest

from pipeline.demo.synthetic_slides import write_slide
from pipeline.embed.options import EmbedOptions
from pipeline.encoders.export import weights_sha256
from pipeline.encoders.load import load_encoder
from pipeline.evaluate.bench import read_bench
from pipeline.evaluate.run_bench import run_bench
from pipeline.runtime.progress import Silent
from stores.errors import OptionError
from tests.tools.evaluate import figure, run

BENCH = """
encoders:
  student: {encoder: "tests.tools.tiny:student", random_weights: 0}
  teacher: {encoder: "tests.tools.tiny:teacher", random_weights: 0}
data:
  cohort: {input: slides, slides_csv: slides/slides.csv, mpp: 0.5}
tasks:
  - {protocol: knn, data: cohort, label: site, k: [3], by: leave-out, replicates: 10}
  - {protocol: knn, data: cohort, label: site, k: [3], by: leave-out, replicates: 10, shuffle_labels: true}
  - {protocol: cka, data: cohort, to: teacher, name: to the teacher}
"""


@pytest.fixture(scope="module")
def bench_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    (folder / "slides").mkdir()
    rows = ["slide_id,site"]
    for seed, name in enumerate("abcd"):
        write_slide(folder / "slides" / f"{name}.tiff", seed=seed, width_px=1120, height_px=1120)
        rows.append(f"{name},{'xy'[seed % 2]}")
    (folder / "slides" / "slides.csv").write_text("\n".join(rows) + "\n")
    (folder / "bench.yaml").write_text(BENCH)
    return folder


@pytest.mark.slow
def test_a_bench_embeds_evaluates_and_writes_tables(bench_folder: Path) -> None:
    out = bench_folder / "out"
    tables = run_bench(read_bench(bench_folder / "bench.yaml"), out, Silent())
    assert (tables.failed, tables.incomplete, tables.exit_code) == ({}, [], 0)
    with (out / "table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {(row["task"], row["encoder"]) for row in rows} == {
        ("cohort knn", "student"),
        ("cohort knn", "teacher"),
        ("cohort knn, shuffled labels", "student"),
        ("cohort knn, shuffled labels", "teacher"),
        ("to the teacher", "student"),
    }
    alone = run(
        "knn", out / "embeddings" / "cohort" / "student", "--label", "site", "--k", 3, "--by", "leave-out"
    )
    (value,) = [
        r["value"]
        for r in rows
        if r["encoder"] == "student" and r["task"] == "cohort knn" and r["figure"] == "accuracy"
    ]
    assert float(value) == figure(alone, "accuracy", 3)["value"]
    text = (out / "table.md").read_text()
    assert text.startswith(
        "| task | figure | student | teacher |\n|---|---|---|---|\n| cohort knn | accuracy, k = 3 | "
    )
    table = json.loads((out / "table.json").read_text())
    assert len(table["results"]) == 5
    student = load_encoder("tests.tools.tiny:student", random_weights=0)
    assert set(table["weights"]) == {"student", "teacher"}
    assert table["weights"]["student"] == weights_sha256(student)
    before = {p: p.stat().st_mtime_ns for p in (out / "embeddings").glob("*/*/embeddings/*")}
    again = run_bench(read_bench(bench_folder / "bench.yaml"), out, Silent())
    assert again.to_json() == tables.to_json()
    assert before == {p: p.stat().st_mtime_ns for p in (out / "embeddings").glob("*/*/embeddings/*")}


@pytest.mark.slow
def test_what_fails_stands_in_the_table_and_the_rest_is_done(bench_folder: Path) -> None:
    text = BENCH.replace("k: [3], by: leave-out, replicates: 10}", "k: [3000], by: leave-out}", 1)
    (bench_folder / "some.yaml").write_text(text)
    tables = run_bench(read_bench(bench_folder / "some.yaml"), bench_folder / "out2", Silent())
    assert tables.exit_code == 3
    assert set(tables.failed) == {"cohort knn of student", "cohort knn of teacher"}
    assert "- failed: cohort knn of student: k 3000: " in "\n".join(tables.markdown())
    assert len(tables.results) == 3


@pytest.mark.slow
def test_embeddings_that_are_there_already(bench_folder: Path) -> None:
    out = bench_folder / "out"
    run_bench(read_bench(bench_folder / "bench.yaml"), out, Silent())
    line = "student: {embeddings: {cohort: out/embeddings/cohort/student}}"
    (bench_folder / "given.yaml").write_text(
        BENCH.replace('student: {encoder: "tests.tools.tiny:student", random_weights: 0}', line)
    )
    bench = read_bench(bench_folder / "given.yaml")
    assert not isinstance(bench.encoders["student"], EmbedOptions)
    tables = run_bench(bench, bench_folder / "out3", Silent())
    assert tables.failed == {}
    assert not (bench_folder / "out3" / "embeddings" / "cohort" / "student").exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("encoders:", "models:", "expected encoders, data, tasks; found models, data, tasks"),
        (
            "protocol: cka",
            "protocol: vibes",
            "task 3: protocol 'vibes'; allowed: knn, linear, robustness, hest, slides, pairs, cka",
        ),
        ("to: teacher", "to: nobody", "task 3: encoder 'nobody'; allowed: student, teacher"),
        (", to: teacher", "", "task 3: to is missing"),
        ("data: cohort, to", "data: other, to", "task 3: data 'other'; allowed: cohort"),
        ("k: [3], by", "kk: [3], by", "task 1: 'kk' is unknown; allowed: "),
        ("k: [3], by", "k: [many], by", "option 'k': 'many' is not an integer"),
        ("k: [3], by", "k: [0], by", "--k 0: allowed is 1 or more"),
        ("input: slides", "input: nowhere", "data: cohort: .*nowhere does not exist"),
        ("student: {", "../up: {", "name '../up': letters, digits"),
        ("random_weights: 0}\n  teacher", "weights: no.pt}\n  teacher", "--weights .*no.pt: no such file"),
        ("name: to the teacher", "name: cohort knn", "two tasks are called 'cohort knn'"),
        ("tasks:", "tasks: [", "not readable as YAML"),
    ],
)
def test_a_bench_with_mistakes_ends_before_anything_runs(
    bench_folder: Path, old: str, new: str, message: str
) -> None:
    path = bench_folder / "wrong.yaml"
    path.write_text(BENCH.replace(old, new, 1))
    with pytest.raises(OptionError, match=message):
        read_bench(path)
