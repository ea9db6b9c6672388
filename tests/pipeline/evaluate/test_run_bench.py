"""``evaluate all`` on embeddings that are there: comparisons, what a kill leaves, what fails."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from cli import g2l
from pipeline.evaluate import run_bench as room
from pipeline.evaluate.bench import read_bench
from pipeline.evaluate.embeddings import load_embeddings
from pipeline.evaluate.options import CompareOptions
from pipeline.evaluate.run_bench import run_bench
from pipeline.runtime.progress import Silent
from stores.errors import OptionError
from tests.pipeline.evaluate.test_protocols import samples, write

BENCH = """
encoders:
  student: {embeddings: {set: student.parquet}}
  teacher: {embeddings: {set: teacher.parquet}}
  untrained: {embeddings: {set: untrained.parquet}}
data:
  set: {input: tiles.csv}
tasks:
  - {protocol: knn, data: set, k: [3], replicates: 40}
  - {protocol: knn, data: set, k: [3], replicates: 40, shuffle_labels: true}
  - {protocol: robustness, data: set, k: [5], replicates: 40}
  - {protocol: cka, data: set, to: teacher}
"""


class Said(Silent):
    """Keeps what was said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    x, columns = samples()
    rng = np.random.default_rng(1)
    for name, noise in (("teacher", 0.0), ("student", 0.3), ("untrained", 4.0)):
        order = rng.permutation(len(x))  # samples are matched by name
        noisy = (x + noise * rng.normal(size=x.shape)).astype(np.float32)
        write(
            tmp_path / f"{name}.parquet", noisy[order], {k: [v[i] for i in order] for k, v in columns.items()}
        )
    (tmp_path / "tiles.csv").write_text("path\n")
    (tmp_path / "bench.yaml").write_text(BENCH)
    return tmp_path


def figures(tables: Any) -> dict[tuple[str, str], Any]:
    return {(task.name, name): result.rows[0] for task, name, result in tables.results}


def test_every_encoder_is_compared_with_the_teacher(folder: Path) -> None:
    tables = run_bench(
        read_bench(folder / "bench.yaml"), folder / "out", Silent(), CompareOptions(margin=0.05)
    )
    found = figures(tables)
    verdicts = {key: row.difference.verdict for key, row in found.items() if row.difference is not None}
    # no control, no CKA, and not the teacher with itself
    assert set(verdicts) == {
        (task, name) for task in ("set knn", "set robustness") for name in ("student", "untrained")
    }
    assert verdicts["set knn", "student"] in ("non-inferior", "better")
    assert verdicts["set knn", "untrained"] == "inferior"
    own, teacher = found["set knn", "untrained"], found["set knn", "teacher"]
    assert own.difference.value == pytest.approx(own.value - teacher.value)
    text = (folder / "out" / "table.md").read_text()
    assert "Differences to teacher on the same samples" in text
    assert "the margin of the verdicts is 0.05" in text
    assert "| task | figure | student | untrained |" in text
    with (folder / "out" / "table.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["difference"]]
    assert {row["compared_to"] for row in rows} == {"teacher"}
    assert (
        float(rows[0]["difference_low"]) <= float(rows[0]["difference"]) <= float(rows[0]["difference_high"])
    )
    again = run_bench(read_bench(folder / "bench.yaml"), folder / "b", Silent(), CompareOptions(margin=0.05))
    assert again.rows() == tables.rows()


@pytest.mark.parametrize(
    ("change", "options", "expected"),
    [
        (lambda text: text, {"compare_to": "student"}, "student"),
        (lambda text: text.replace("teacher:", "uni:").replace("to: teacher", "to: uni"), {}, "uni"),
        (
            lambda text: (
                text.replace("teacher:", "uni:").replace("cka", "knn").replace(", to: teacher", ", name: x")
            ),
            {},
            "student",
        ),
    ],
)
def test_which_encoder_the_others_are_compared_with(
    folder: Path, change: Callable[[str], str], options: dict[str, Any], expected: str
) -> None:
    (folder / "bench.yaml").write_text(change(BENCH))
    tables = run_bench(read_bench(folder / "bench.yaml"), folder / "out", Silent(), CompareOptions(**options))
    assert tables.compared_to == expected
    assert {row["compared_to"] for row in tables.rows()} == {expected, None}


def test_a_comparison_that_cannot_be_ends_before_anything_runs(folder: Path) -> None:
    bench = read_bench(folder / "bench.yaml")
    for options, message in (
        (CompareOptions(compare_to="nobody"), "--compare-to nobody: allowed are student, teacher, untrained"),
        (CompareOptions(margin=0.0), r"--margin 0\.0: allowed is above 0"),
    ):
        with pytest.raises(OptionError, match=message):
            run_bench(bench, folder / "out", Silent(), options)
    text = BENCH.replace("  teacher: {embeddings: {set: teacher.parquet}}\n", "").replace(
        "  untrained: {embeddings: {set: untrained.parquet}}\n", ""
    )
    (folder / "bench.yaml").write_text(text.replace("  - {protocol: cka, data: set, to: teacher}\n", ""))
    with pytest.raises(OptionError, match=r"--margin 0\.1: student is the only encoder"):
        run_bench(read_bench(folder / "bench.yaml"), folder / "out", Silent(), CompareOptions(margin=0.1))
    assert not (folder / "out").exists()


def counted(monkeypatch: pytest.MonkeyPatch, stop_at: int | None = None) -> list[str]:
    """The protocols that run from now on; the process is killed in the one with number `stop_at`."""
    ran: list[str] = []

    def wrap(name: str, run: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*arguments: Any) -> Any:
            ran.append(name)
            if len(ran) - 1 == stop_at:
                raise KeyboardInterrupt
            return run(*arguments)

        return counting

    monkeypatch.setattr(
        room, "PROTOCOLS", {name: (kind, wrap(name, run)) for name, (kind, run) in room.PROTOCOLS.items()}
    )
    monkeypatch.setattr(room, "run_cka", wrap("cka", room.run_cka))
    return ran


def test_a_kill_loses_nothing_and_a_repeat_computes_what_is_missing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, out = read_bench(folder / "bench.yaml"), folder / "out"
    whole = run_bench(bench, folder / "whole", Silent())
    with monkeypatch.context() as patched:
        counted(patched, stop_at=5)
        with pytest.raises(KeyboardInterrupt):
            run_bench(bench, out, Silent())
    there = json.loads((out / "table.json").read_text())
    assert [(r["task"], r["name"]) for r in there["results"]] == [
        ("set knn", "student"),
        ("set knn", "teacher"),
        ("set knn, shuffled labels", "student"),
        ("set knn, shuffled labels", "teacher"),
        ("set robustness", "teacher"),
    ]
    with monkeypatch.context() as patched:
        ran, said = counted(patched), Said()
        again = run_bench(bench, out, said)
    # two of the student, three of the untrained, and the teacher's again to compare both with
    assert sorted(ran) == sorted(
        ["robustness", "cka", "knn", "knn", "robustness", "cka", "knn", "robustness"]
    )
    assert again.to_json() == whole.to_json()
    assert "set knn: student (computed before)" in said.lines
    for name in ("table.csv", "table.md", "table.json"):
        assert (out / name).read_bytes() == (folder / "whole" / name).read_bytes()
    with monkeypatch.context() as patched:
        ran = counted(patched)
        run_bench(bench, out, Silent())
    assert ran == []


def test_other_inputs_are_computed_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench, out = read_bench(folder / "bench.yaml"), folder / "out"
    run_bench(bench, out, Silent())
    of_others = set((out / "figures").glob("*.json"))
    before = load_embeddings(folder / "student.parquet")
    write(
        folder / "student.parquet", before.x + np.float32(1), {k: list(v) for k, v in before.columns.items()}
    )
    with monkeypatch.context() as patched:
        ran = counted(patched)
        run_bench(bench, out, Silent())
    # four of the student, and the teacher's two again that it is compared with
    assert sorted(ran) == ["cka", "knn", "knn", "knn", "robustness", "robustness"]
    damaged = min(set((out / "figures").glob("*.json")) - of_others)
    damaged.write_text("{")
    with monkeypatch.context() as patched:
        ran = counted(patched)
        run_bench(bench, out, Silent())
    assert 1 <= len(ran) <= 2
    with monkeypatch.context() as patched:
        ran = counted(patched)
        run_bench(bench, out, Silent(), CompareOptions(margin=0.5))
    assert "knn" in ran  # another margin is another verdict


def test_what_fails_is_said_at_once_and_again_at_the_end(folder: Path) -> None:
    (folder / "teacher.parquet").write_bytes(b"nonsense")
    said = Said()
    tables = run_bench(read_bench(folder / "bench.yaml"), folder / "out", said)
    assert tables.exit_code == 3
    assert said.lines[0].startswith("failed: teacher on set: ")
    assert "not a readable Parquet file" in said.lines[0]
    assert any(line.startswith("set knn: student") for line in said.lines[1:])
    assert any("accuracy, k = 3" in line for line in said.lines)
    assert set(tables.failed) == {
        "teacher on set",
        "set cka of student",
        "set cka of untrained",
    }
    assert "not compared with teacher, which failed" in "\n".join(tables.markdown())
    done = CliRunner().invoke(
        g2l, ["evaluate", "all", "--config", str(folder / "bench.yaml"), "--out", str(folder / "out")]
    )
    assert done.exit_code == 3
    last = done.stdout.splitlines()[-4:]
    assert last[0] == "3 steps failed; all other figures are in the tables:"
    assert [line.split(":")[1].strip() for line in last[1:]] == list(tables.failed)


def test_what_markdown_escapes_is_printed_as_it_is(folder: Path) -> None:
    config = folder / "bench.yaml"
    config.write_text(config.read_text().replace("  untrained:", "  untrained_:"))
    done = CliRunner().invoke(g2l, ["evaluate", "all", "--config", str(config), "--out", str(folder / "out")])
    assert "untrained&#95;" in (folder / "out" / "table.md").read_text()
    assert "untrained_ " in done.stdout
    assert "&#" not in done.stdout


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("k: [3], replicates: 40}", "by: vibes}", "--by vibes: allowed is auto, split, leave-out"),
        ("{input: tiles.csv}", "{input: tiles.csv, fit: vibes}", "--fit vibes: allowed is resize, crop"),
        (
            "protocol: robustness, data: set, k: [5]",
            "protocol: robustness, data: set, preset: pathorob",
            "--preset pathorob: allowed is pathorob-camelyon, pathorob-tcga, pathorob-tolkach-esca",
        ),
        (
            "protocol: robustness, data: set, k: [5]",
            "protocol: robustness, data: set, k: [5], preset: pathorob-tcga",
            "--preset pathorob-tcga: sets --k itself; leave it out",
        ),
    ],
)
def test_a_choice_that_there_is_not(folder: Path, old: str, new: str, message: str) -> None:
    (folder / "bench.yaml").write_text(BENCH.replace(old, new, 1))
    with pytest.raises(OptionError, match=message):
        read_bench(folder / "bench.yaml")
