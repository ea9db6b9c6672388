"""The page about several runs: what can be ranked stands in one row, and what cannot says so."""

import itertools
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cli import g2l
from pipeline.encoders.export import export_encoder
from pipeline.report import charts
from pipeline.report.compare import write_comparison
from pipeline.report.options import ReportOptions
from stores.errors import OptionError, WeightsError
from stores.io import files
from tests.tools.encoders import trained_encoder

NOTHING = ReportOptions()
VIEWS, OTHER_VIEWS = "a" * 64, "b" * 64
ONE, TWO = "1" * 64, "2" * 64


def figures(cka: float, views: str | None = VIEWS) -> dict[str, Any]:
    """Held-out figures as a summary has them."""
    held_out = {} if views is None else {"held_out": {"views": 96, "sha256": views}}
    return {"cka_before": 0.1, "cka_after": cka, "cka_unbiased_after": cka - 0.01, **held_out}


def make_run(
    folder: Path, summary: Mapping[str, Any] | None, recipe: str = ONE, teacher: str = "giant", **begun: Any
) -> Path:
    """The files of a run as another lab may send them."""
    options = {"student": "tiny", "loss": "log-sum", "alpha": 4.0, "batch_size": 8, "random_weights": 0}
    files.write_json(folder / "options.json", {"options": options, "store_recipe": recipe, **begun})
    val: list[dict[str, Any]] = [{"kind": "val", "step": step, "cka": 0.1 * step} for step in (0, 3, 6)]
    if "stores" in begun:
        of_each = {store["name"]: {"cka": 0.3} for store in begun["stores"]}
        val = [record | {"teachers": of_each} for record in val]
    records = [*val, {"kind": "train", "step": 1, "loss": 3.0}, {"kind": "train", "step": 2, "loss": 2.0}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    if summary is not None:
        export_encoder(trained_encoder(), folder / "student", {"distilled_from": teacher})
        done = {"steps": 6, "views_seen": 48, "loss_first": 3.0, "loss_last": 2.0}
        files.write_json(folder / "summary.json", done | dict(summary))
    return folder


def page_of(out: Path, *runs: Path, options: ReportOptions = NOTHING) -> str:
    result = write_comparison(runs, out, options)
    assert result.lines()[0].endswith(f", {len(runs)} students")
    return out.read_text()


def rows(text: str) -> dict[str, dict[str, list[str]]]:
    """Cells by part and head; the best of a row has a star."""
    found: dict[str, dict[str, list[str]]] = {}
    for line in re.findall(r"<tr.*?</tr>", text.split("class='students'")[1].split("</table>")[0]):
        part = re.search(r"rowgroup'><span>(.*?)</span>", line)
        if part:
            own = found.setdefault(part[1], {})
            continue
        head = re.search(r"scope='row'>(.*?)</th>", line)
        if head:
            cells = re.findall(r"<td( class='best')?>(.*?)(?: <span.*?)?</td>", line)
            own[head[1]] = [("*" if best else "") + cell for best, cell in cells]
    return found


def test_students_of_the_same_views_are_ranked(tmp_path: Path) -> None:
    one, two = (make_run(tmp_path / name, figures(cka)) for name, cka in (("x", 0.7), ("y", 0.8)))
    text = page_of(tmp_path / "c.html", one, two)
    table = rows(text)
    assert list(table) == ["What it is", "Held out, before → after: giant, on 96 held-out views", "Training"]
    held_out = table["Held out, before → after: giant, on 96 held-out views"]
    assert held_out == {
        "linear CKA": ["0.100 → 0.700", "*0.100 → 0.800"],
        "unbiased CKA": ["0.690", "*0.790"],
    }
    assert table["What it is"]["numbers in an embedding"] == ["24", "24"]
    size = sum(value.numel() for value in trained_encoder().backbone.state_dict().values())
    assert table["What it is"]["parameters, with buffers"] == [f"{size:,}"] * 2
    assert table["Training"]["views seen"] == ["48", "48"]
    name = f"{tmp_path.name}/y"
    assert f"Nearest to giant, on 96 held-out views: student 2 ({name}), unbiased CKA 0.790; next" in text
    assert "Not all figures here" not in text


@pytest.mark.parametrize(
    ("names", "heading"),
    [
        (["timm:vit_tiny?img_size=112&depth=4", "timm:vit_tiny?depth=2"], "2 students: vit_tiny"),
        (["hibou-l", "<b>"], "2 students: hibou-l, &lt;b&gt;"),
        (["a" * 90, "b"], "2 students"),
    ],
)
def test_the_heading_names_kinds_without_their_settings(
    names: list[str], heading: str, tmp_path: Path
) -> None:
    runs = [make_run(tmp_path / str(number), figures(0.7)) for number in range(len(names))]
    for run, name in zip(runs, names, strict=True):
        begun = files.read_object(run / "options.json", inside=run)
        files.write_json(run / "options.json", begun | {"options": begun["options"] | {"student": name}})
    assert f"<h1>{heading}</h1>" in page_of(tmp_path / "c.html", *runs)


def test_other_views_and_other_teachers_are_not_ranked(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / "a", figures(0.7)),
        make_run(tmp_path / "b", figures(0.8, OTHER_VIEWS)),
        make_run(tmp_path / "c", figures(0.9), recipe=TWO, teacher="other"),
        make_run(tmp_path / "d", figures(0.95, None)),
        make_run(tmp_path / "e", figures(0.96, None)),
        make_run(tmp_path / "f", None),
    ]
    text = page_of(tmp_path / "c.html", *runs)
    table = rows(text)
    parts = [name for name in table if name.startswith("Held out")]
    assert len(parts) == 4
    assert len({name for name in parts if "set " in name}) == 3  # the digests tell them apart
    assert any("not ranked" in name and "giant" in name for name in parts)
    assert not [cell for name in parts for cells in table[name].values() for cell in cells if "*" in cell]
    assert "Not all figures here can be ranked" in text
    assert "Nearest to" not in text
    assert table["Training"]["state"][-1] == "not finished, 6 steps"


def test_each_of_several_teachers_has_its_rows(tmp_path: Path) -> None:
    alone = make_run(tmp_path / "alone", figures(0.7))
    stores = [{"name": "s1", "recipe": ONE, "weight": 1.0}, {"name": "s2", "recipe": TWO, "weight": 0.5}]
    teachers = {"s1": figures(0.6) | {"teacher": "giant"}, "s2": figures(0.5) | {"teacher": "<other>"}}
    both = make_run(tmp_path / "both", {**figures(0.55), "teachers": teachers}, stores=stores)
    text = page_of(tmp_path / "c.html", alone, both)
    table = rows(text)
    assert table["Held out, before → after: giant, on 96 held-out views"]["linear CKA"] == [
        "*0.100 → 0.700",
        "0.100 → 0.600",
    ]
    other = table["Held out, before → after: &lt;other&gt;, on 96 held-out views"]["linear CKA"]
    assert other == ["–", "0.100 → 0.500"]
    assert table["Training"]["teachers"] == ["giant", "giant (s1); &lt;other&gt; (s2, weight 0.5)"]
    assert text.count("<figcaption>linear CKA</figcaption>") == 2
    assert "Not all figures here can be ranked" in text


def test_figures_of_tasks_are_found_by_the_digest_of_the_weights(tmp_path: Path) -> None:
    one, two = (make_run(tmp_path / name, figures(0.7)) for name in "xy")
    config = files.read_json(two / "student" / "config.json")
    config["g2l"]["weights_sha256"] = "c" * 64
    files.write_json(two / "student" / "config.json", config)
    own = files.read_json(one / "student" / "config.json")["g2l"]["weights_sha256"]
    row = {"figure": "accuracy", "k": 5, "low": 0.4, "high": 0.9}
    results = [
        {
            "task": task,
            "name": name,
            "figures": [row | {"value": value}],
            "options": {"shuffle_labels": control},
        }
        for task, control in (("kNN", False), ("control", True))
        for name, value in (("small", 0.5), ("large", 0.6), ("teacher", 0.7))
    ]
    table = {"results": results, "weights": {"small": own, "large": "c" * 64, "teacher": "d" * 64}}
    files.write_json(tmp_path / "table.json", table)
    options = replace(NOTHING, tables=(tmp_path / "table.json",))
    found = rows(page_of(tmp_path / "c.html", two, one, options=options))
    assert found["Task: kNN"] == {"accuracy, k = 5": ["*0.6000 (0.400 to 0.900)", "0.5000 (0.400 to 0.900)"]}
    assert found["Task: control"] == {
        "accuracy, k = 5": ["0.6000 (0.400 to 0.900)", "0.5000 (0.400 to 0.900)"]
    }


def test_what_cannot_be_compared(tmp_path: Path, store: Path) -> None:
    one, two = (make_run(tmp_path / name, figures(0.7)) for name in "xy")
    out = tmp_path / "c.html"
    with pytest.raises(OptionError, match=r"x: is given twice \(as .*x\); give each run once"):
        write_comparison([one, two, tmp_path / "y" / ".." / "x"], out, NOTHING)
    with pytest.raises(OptionError, match="is a store; several paths are compared as runs"):
        write_comparison([one, store], out, NOTHING)
    with pytest.raises(OptionError, match=r"not a run's folder \(options.json, metrics.jsonl\)"):
        write_comparison([one, tmp_path], out, NOTHING)
    of_one = ReportOptions(store=store), ReportOptions(slides=(store,)), ReportOptions(student="tiny")
    for name, options in zip(("store", "slides", "student"), of_one, strict=True):
        with pytest.raises(OptionError, match=f"--{name} .*: is for the report of one run, and 2 are given"):
            write_comparison([one, two], out, options)
    (two / "student" / "model.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(WeightsError, match="is damaged or no safetensors file"):
        write_comparison([one, two], out, NOTHING)
    assert not out.exists()


def test_the_command_takes_several_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = (make_run(tmp_path / name, figures(0.7)) for name in "xy")
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(g2l, ["report", str(one), str(two), "--json"])
    assert done.exit_code == 0, done.output
    assert files.parse_json(done.output)["students"] == 2
    first = (tmp_path / "comparison.html").read_bytes()
    shutil.rmtree(one / "logs", ignore_errors=True)
    assert CliRunner().invoke(g2l, ["report", str(one), str(two)]).exit_code == 0
    assert (tmp_path / "comparison.html").read_bytes() == first


def test_lines_differ_in_more_than_colour() -> None:
    lines = [charts.Line("x", [0, 1], [0.5, 0.5], charts.kind_of(n), True, n) for n in range(24)]
    looks = {(line.kind, *charts._look(line)) for line in lines}
    assert len(looks) == 24
    for shared in ("a", "b"):  # of one colour, none looks like another
        own = [charts._look(line) for line in lines if line.kind == shared]
        assert len(set(own)) == len(own) == 4
    svg = charts.line_chart("T", "x", lines[:7])
    ends = [(float(y), int(n)) for y, n in re.findall(r'class="end" x="[\d.]+" y="([\d.]+)">(\d+)<', svg)]
    assert sorted(n for _, n in ends) == list(range(1, 8))
    heights = sorted(y for y, _ in ends)
    assert all(b - a >= 10.9 for a, b in itertools.pairwise(heights))
    assert heights[0] > 0
    assert heights[-1] < charts._HEIGHT
