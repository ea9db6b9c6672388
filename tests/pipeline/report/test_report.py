"""The report: complete in itself, escaped, usable by mouse and keyboard in a real browser."""

import html.parser
import json
import re
import shlex
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cli
from pipeline.distill.options import DistillOptions
from pipeline.distill.result import HELP_PAGE, Distilled
from pipeline.distill.train import distill
from pipeline.encoders.load import load_encoder
from pipeline.report import charts, gather
from pipeline.report.options import ReportOptions
from pipeline.report.origin import distill_command, last_date
from pipeline.report.page import browser, curves, evaluation
from pipeline.report.report import write_report
from pipeline.runtime.progress import Silent
from stores.errors import OptionError
from stores.format import manifest
from stores.io import files
from tests.tools.settings import ROOT

pytestmark = pytest.mark.slow

SMALL = ReportOptions(max_slides=2, max_patches=9, views=1)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
RUN = DistillOptions(
    student="tests.tools.tiny:student", random_weights=0, steps=6, batch_size=8, val_every=3, val_views=8
)


@pytest.fixture(scope="module")
def run(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run on the finished store."""
    path = tmp_path_factory.mktemp("run") / "run"
    distill(store, path, replace(RUN, threads=1), False, Silent())
    return path


TABLE: dict[str, Any] = {
    "results": [
        {
            "task": "<b>kNN</b>",
            "name": name,
            "figures": [{"figure": "accuracy", "k": 5, "value": value, "low": 0.4, "high": 0.9}],
        }
        for name, value in (("student", 0.75), ("<script>alert(1)</script>", None), ("teacher", 0.5))
    ],
    "failed": {"kNN of <i>x</i>": "k 5: too few"},
}


@pytest.fixture(scope="module")
def page(run: Path, store: Path, slides: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of the store beside the tiny student, with a table."""
    folder = tmp_path_factory.mktemp("report")
    files.write_json(folder / "table.json", TABLE)
    options = replace(
        SMALL,
        slides=(slides,),
        student="tests.tools.tiny:student",
        random_weights=0,
        tables=(folder / "table.json",),
    )
    result = write_report(store, folder / "report.html", options, Silent())
    assert (result.slides, result.patches) == (2, 18)
    return folder / "report.html"


class Reader(html.parser.HTMLParser):
    """All elements with their attributes, and the text of scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_nothing_is_loaded_from_elsewhere(page: Path) -> None:
    text = page.read_text()
    reader = Reader(text)
    for tag, attributes in reader.elements:
        assert tag not in ("link", "iframe", "object", "embed", "base")
        for name in ("src", "href", "action", "srcset", "poster"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:image/jpeg;base64,", "#"))
        assert not any(name.startswith("on") for name in attributes)
    (policy,) = [a["content"] for tag, a in reader.elements if tag == "meta" and "http-equiv" in a]
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:")
    assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)", text)
    assert "@import" not in text


def test_what_comes_from_files_is_escaped(page: Path) -> None:
    text = page.read_text()
    assert "<script>alert(1)</script>" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "&lt;b&gt;kNN&lt;/b&gt;" in text
    assert "kNN of &lt;i&gt;x&lt;/i&gt;: k 5: too few" in text


def test_the_best_of_a_row_is_bold_but_not_in_a_control(page: Path) -> None:
    text = page.read_text()
    assert '<td class="best">0.7500' in text
    assert "<td>0.5000" in text
    control = TABLE["results"][0] | {"options": {"shuffle_labels": True}, "task": "control"}
    table = {"results": [control, control | {"name": "other"}]}
    assert 'class="best"' not in evaluation([table])


def test_differences_have_a_table_of_their_own() -> None:
    difference = {"to": "<teacher>", "value": -0.012, "low": -0.02, "high": 0.001, "verdict": "inconclusive"}
    row = {"figure": "accuracy", "k": 5, "value": 0.7}
    results = [
        {"task": "kNN", "name": "student", "figures": [row | {"difference": difference}]},
        {"task": "kNN", "name": "<teacher>", "figures": [row]},
    ]
    text = evaluation([{"results": results}])
    assert "Differences to &lt;teacher&gt; on the same samples" in text
    assert "<td>-0.0120 <small>-0.020 to +0.001</small><br><small>inconclusive</small></td>" in text
    assert text.count("<th scope='col'>&lt;teacher&gt;</th>") == 1
    assert "Differences" not in evaluation([{"results": results[1:]}])


def test_data_cannot_end_the_element_it_stands_in() -> None:
    hostile = "</script ><script >alert(1)</script >&amp;"
    slide = gather.SlidePart("a", hostile, 9, 9, 3, 3, 1, [0], [0], [0], None, [], [], b"")
    text = browser(gather.Gathered(slides=[slide], n_slides=1, colours={"teacher": ["#000000"]}))
    assert "alert" in text
    assert text.count("</script>") == 1
    (data,) = re.findall(r'id="data">(.*)</script>', text)
    assert not set(data) & set("<>&")
    assert json.loads(data)["slides"][0]["split"] == hostile


def embedded(page: Path, name: str) -> Any:
    found = re.search(
        r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.DOTALL
    )
    assert found is not None
    assert "<" not in found[1]
    return json.loads(found[1])[name]


def test_the_page_shows_what_the_store_holds(page: Path, store: Path) -> None:
    shown = embedded(page, "slides")
    assert [slide["id"] for slide in shown] == ["a", "c"]
    for slide in shown:
        patches = manifest.read_patches(store, slide["id"])
        assert slide["x"] == patches.x_px0[slide["rows"]].tolist()
        assert slide["y"] == patches.y_px0[slide["rows"]].tolist()
        assert slide["all"] == len(patches)
        assert slide["thumbnail"].startswith("data:image/jpeg;base64,")
        assert slide["contour"]
    near = embedded(page, "neighbours")
    assert set(near) == {"teacher", "student"}
    assert all(len(set(row)) == gather.NEIGHBOURS and i not in row for i, row in enumerate(near["teacher"]))
    text = page.read_text()
    for seed in range(3):
        assert f"<b>seed {seed}</b>" in text
    assert "centre crop, unchanged" in text
    assert "unbiased CKA to the teacher on the patches below" in text


def test_the_report_of_a_run(run: Path, store: Path, tmp_path: Path) -> None:
    result = write_report(run, tmp_path / "r.html", replace(SMALL, store=store), Silent())
    text = (tmp_path / "r.html").read_text()
    assert result.slides == 2
    summary = files.read_json(run / "summary.json")
    assert f"{summary['cka_before']:.3f} → {summary['cka_after']:.3f}" in text
    for title in ("Loss", "Learning rate", "Weight decay", "Share of a step spent waiting for data"):
        assert f"<figcaption>{title}</figcaption>" in text
    assert "data:image/jpeg;base64," in text  # pixels of the store, without the slides
    assert '"thumbnail":null' in text
    assert f"linear CKA of {summary['cka_after']:.3f} to the teacher on held-out views" in text
    assert f"({summary['cka_before']:.3f} before training)" in text
    assert f"{summary['cka_unbiased_before']:.3f} → {summary['cka_unbiased_after']:.3f}" in text
    assert (
        f"explains {summary['explained_before']:.1%} → {summary['explained_after']:.1%} of the variance"
        in text
    )
    assert "A CKA of 0.9 does not say" in text
    assert "contains slide ids and tissue images" in text
    assert re.search(r"<h1>tests\.tools\.tiny:student, distilled from \S+ on store\d*/store</h1>", text)
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    day, minute = log[-1]["time"][:10], log[-1]["time"][11:16]
    assert f"<dt>date</dt><dd>{day} {minute} UTC</dd>" in text
    assert f"<dt>version of g2l</dt><dd>{summary['g2l_version']}</dd>" in text
    slides = [row for row in manifest.read_slides(store) if row["split"] == "train"]
    patches = sum(row["n_patches"] for row in slides)
    sizes = f"{len(slides)} slides, {patches} patches, {summary['views']} views"
    assert f"<dt>split train</dt><dd>{sizes}</dd>" in text
    again = write_report(run, tmp_path / "again.html", replace(SMALL, store=store), Silent())
    assert again.path.read_bytes() == (tmp_path / "r.html").read_bytes()
    alone = write_report(run, tmp_path / "alone.html", SMALL, Silent())
    assert (alone.slides, alone.patches) == (0, 0)
    without = (tmp_path / "alone.html").read_text()
    assert 'id="browser"' not in without
    assert "tissue images" not in without
    assert re.search(r"<h1>tests\.tools\.tiny:student, distilled from \S+</h1>", without)


def test_the_command_on_the_page_gives_the_recorded_options(run: Path, store: Path, tmp_path: Path) -> None:
    write_report(run, tmp_path / "r.html", SMALL, Silent())
    found = re.search(r"<code>(g2l distill .*?)</code>", (tmp_path / "r.html").read_text())
    assert found is not None
    recorded = files.read_json(run / "options.json")["options"]
    odd = recorded | {"slides": ["a b", "it's"], "tensorboard": True, "ema": 0.996, "weights": "w.pt"}
    for command, expected in (
        (html.unescape(found[1]), recorded),
        (distill_command(odd, ["a store"], "run"), odd),
    ):
        words = shlex.split(command)
        assert words[:2] == ["g2l", "distill"]
        params = cli.g2l.commands["distill"].make_context("distill", words[2:]).params
        assert to_json_value({name: params[name] for name in expected}) == expected
    assert "--alpha" not in found[1]  # a default


def to_json_value(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))


def test_the_date_is_that_of_the_last_readable_line(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    assert last_date(log) is None
    first = '{"time": "2026-01-02T03:04:05.000+00:00", "event": "begin"}\n'
    log.write_text("x" * 70_000 + "\n" + first + '[1]\n{"time": 5}\n{"time": "2026-01-0')
    assert last_date(log) == "2026-01-02 03:04 UTC"
    log.write_text("nothing\n")
    assert last_date(log) is None


def test_the_loss_before_training_stands_apart() -> None:
    """Also in the curves of an earlier version, which has neither baseline nor explained variance."""
    old = [{"kind": "val", "step": s, "loss": 9.0 - s, "cka": 0.5, "cosine": 0.1} for s in (0, 1, 2)]
    new = [{**record, "loss_constant": 8.0, "explained": 0.1, "cka_unbiased": 0.4} for record in old]
    for records, n_lines in ((old, 2 + 2), (new, 3 + 4)):
        lines = re.findall(r'<polyline class="line (\w+)" points="([^"]+)"', curves(records))
        drawn = [(kind, len(points.split())) for kind, points in lines]
        assert len(drawn) == n_lines
        assert drawn[:2] == [("b", 2), ("d", 1)]  # held out from the first step on, and the one before
    assert "held out, before training" in curves(old)
    assert "variance explained" not in curves(old)


def test_a_run_that_held_nothing_out(run: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(run, tmp_path / "other"))
    summary = files.read_json(run / "summary.json")
    files.write_json(other / "summary.json", summary | dict.fromkeys(("cka_before", "cka_after")))
    write_report(other, tmp_path / "r.html", SMALL, Silent())
    said = f"from {summary['loss_first']:.3f} to {summary['loss_last']:.3f} in 6 steps; agreement"
    assert said in (tmp_path / "r.html").read_text()


def test_a_run_that_came_no_nearer_to_the_teacher_says_so(run: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(run, tmp_path / "other"))
    worse = {"cka_before": 0.317, "cka_after": 0.187, "cka_unbiased_before": 0.22, "cka_unbiased_after": 0.1}
    summary = files.read_object(run / "summary.json") | worse
    files.write_json(other / "summary.json", summary)
    write_report(other, tmp_path / "r.html", SMALL, Silent())
    text = (tmp_path / "r.html").read_text()
    assert (
        "Training did not bring the student nearer to the teacher: it reaches a linear CKA of 0.187" in text
    )
    assert "(0.317 before training)" in text
    assert f"See {HELP_PAGE}." in text
    assert (ROOT / HELP_PAGE).exists()
    said = f"training did not bring the student nearer to the teacher: see {HELP_PAGE}"
    assert said in Distilled(other, summary).lines()
    assert said not in Distilled(other, summary | {"cka_unbiased_after": 0.3}).lines()
    older = {name: value for name, value in summary.items() if "unbiased" not in name}
    assert said in Distilled(other, older).lines()
    assert said not in Distilled(other, older | {"cka_after": 0.4}).lines()


def test_a_run_that_is_not_finished(run: Path, tmp_path: Path) -> None:
    begun = Path(shutil.copytree(run, tmp_path / "begun"))
    (begun / "summary.json").unlink()
    write_report(begun, tmp_path / "r.html", SMALL, Silent())
    text = (tmp_path / "r.html").read_text()
    assert "The run is not finished: 6 steps are on record." in text
    assert "version of g2l" not in text


def test_what_cannot_be_reported(run: Path, store: Path, small: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.html"
    with pytest.raises(OptionError, match=r"neither a run's folder .* nor a store"):
        write_report(tmp_path, out, SMALL, Silent())
    with pytest.raises(OptionError, match=r"--store .*: is for the report of a run"):
        write_report(store, out, replace(SMALL, store=store), Silent())
    with pytest.raises(OptionError, match="--student x: needs --store"):
        write_report(run, out, replace(SMALL, student="x"), Silent())
    with pytest.raises(OptionError, match="the store keeps no pixels of it; give the slides with --slides"):
        write_report(small, out, SMALL, Silent())
    with pytest.raises(OptionError, match="--max-patches 0: allowed is 1 or more"):
        write_report(store, out, replace(SMALL, max_patches=0), Silent())
    files.write_json(tmp_path / "table.json", {"results": [{"figures": [1]}]})
    with pytest.raises(OptionError, match=r"not a table\.json of `g2l evaluate all`"):
        write_report(store, out, replace(SMALL, tables=(tmp_path / "table.json",)), Silent())
    other = Path(shutil.copytree(run, tmp_path / "other"))
    begun = files.read_json(other / "options.json") | {"store_recipe": "0" * 64}
    files.write_json(other / "options.json", begun)
    with pytest.raises(OptionError, match=r"another store than the run trained on \(recipe 000000000000\)"):
        write_report(other, out, replace(SMALL, store=store), Silent())
    assert not out.exists()


def test_like_features_have_like_colours_under_both() -> None:
    """The student's features are the teacher's, turned and stretched: its colours come out the same."""
    rng = np.random.default_rng(0)
    teacher = rng.normal(size=(60, 8)) * [9, 4, 2, 0.1, 0.1, 0.1, 0.1, 0.1]
    student = (teacher @ np.linalg.qr(rng.normal(size=(8, 8)))[0] * 5 + 1).astype(np.float32)
    own = gather._principal(teacher.astype(np.float32))
    turned = gather._turned(gather._principal(student), own)
    assert gather._colours(turned) == gather._colours(own)
    assert len(set(gather._colours(own))) > 50
    assert gather._colours(np.zeros((3, 3))) == ["#1e1e1e"] * 3


def test_a_chart_keeps_peaks_and_leaves_out_what_is_not_finite() -> None:
    y = [0.0] * 5000
    y[1234], y[77] = 50.0, float("nan")
    svg = charts.line_chart("T<", "step", [charts.Line("a&b", range(5000), y, "a")])
    assert "T&lt;" in svg
    assert "a&amp;b" in svg
    (points,) = re.findall(r'points="([^"]+)"', svg)
    heights = [float(point.split(",")[1]) for point in points.split()]
    assert len(heights) <= 700
    assert min(heights) == 36.0  # 50 of a scale to 60
    assert charts.line_chart("t", "x", [charts.Line("a", [1.0], [float("nan")], "a")]) == ""
    assert 'points="' in charts.line_chart("t", "x", [charts.Line("a", [5.0], [5.0], "a")])


@pytest.mark.slow
def test_a_student_of_another_size(store: Path, tmp_path: Path) -> None:
    student = "vit_tiny_patch16_224?img_size=160&depth=1"
    with pytest.raises(OptionError, match="takes 160 px, the store's views have 224"):
        write_report(store, tmp_path / "r.html", replace(SMALL, student=student, random_weights=0), Silent())
    assert load_encoder("test_vit", random_weights=0).image_px == 160


# in a real browser


def in_browser(page: Path, script: str, tmp_path: Path, address: str = "") -> dict[str, Any]:
    """What a script in the page finds, run in a headless Chromium without a network."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine (Debian package chromium)")
    copy = tmp_path / "page.html"
    ending = f'<pre id="result"></pre><script>{script}</script></body>'
    copy.write_text(page.read_text().replace("</body>", ending))
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--host-resolver-rules=MAP * ~NOTFOUND"]
    command += [
        "--enable-logging=stderr",
        "--virtual-time-budget=4000",
        "--window-size=1200,1600",
        "--dump-dom",
    ]
    done = subprocess.run([*command, copy.as_uri() + address], capture_output=True, text=True, timeout=120)
    said = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert not said, said
    found = re.search(r'<pre id="result">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stdout[-2000:] + done.stderr[-2000:]
    assert 'data-ready="yes"' in done.stdout
    return dict(json.loads(html.unescape(found[1])))


@pytest.mark.browser
def test_mouse_and_keyboard(page: Path, tmp_path: Path) -> None:
    script = """
    const result = {}, now = () => document.getElementById("now-text").textContent;
    const svg = () => document.querySelector(".map.plain svg");
    const press = (key) => svg().dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true, cancelable: true}));
    result.maps = document.querySelectorAll(".map svg").length;
    result.patches = document.querySelectorAll(".map.plain .patch").length;
    result.colours = new Set([...document.querySelectorAll(".map.coloured .patch")].map((p) => p.style.fill)).size;
    result.focusable = svg().getAttribute("tabindex");
    result.start = now();
    press("Home"); result.home = now();
    press("ArrowRight"); result.right = now();
    press("ArrowDown"); result.down = now();
    press("End"); result.end = now();
    svg().focus();
    press("PageDown"); result.next = now();
    result.kept = document.activeElement === svg();
    result.said = document.getElementById("said").textContent;
    press("PageUp"); result.back = now();
    result.near = ["teacher", "student"].map((kind) => document.querySelectorAll(`#near-${kind} button`).length);
    const rect = document.querySelectorAll(".map.plain .patch")[3];
    const tip = document.getElementById("tip");
    result.before = tip.hidden;
    rect.dispatchEvent(new MouseEvent("mousemove", {bubbles: true, clientX: 50, clientY: 60}));
    result.hover = [tip.hidden, document.getElementById("tip-text").textContent,
      getComputedStyle(document.getElementById("tip-crop")).backgroundImage.slice(0, 27)];
    rect.dispatchEvent(new MouseEvent("click", {bubbles: true}));
    result.clicked = now();
    const button = document.querySelector("#near-student button");
    const wanted = button.getAttribute("aria-label").replace("choose ", "").replace(", near under both", "");
    button.click();
    result.followed = now() === wanted;
    result.marks = document.querySelectorAll(".map .chosen").length;
    document.getElementById("show-grid").click();
    result.grid = getComputedStyle(document.querySelector(".map.plain .patch")).stroke;
    document.getElementById("show-outline").click();
    result.outline = getComputedStyle(document.querySelector(".map.plain .outline")).display;
    document.getElementById("result").textContent = JSON.stringify(result);
    """
    found = in_browser(page, script, tmp_path)
    slides = embedded(page, "slides")

    def name(s: int, i: int) -> str:
        slide = slides[s]
        return f"{slide['id']}, row {slide['rows'][i]} at {slide['x'][i]}, {slide['y'][i]}"

    assert (found["maps"], found["patches"]) == (3, 9)
    assert found["colours"] > 9
    assert found["focusable"] == "0"
    assert found["start"] == name(0, 4)
    assert (found["home"], found["end"]) == (name(0, 0), name(0, 8))
    place = {name(0, i): (slides[0]["x"][i], slides[0]["y"][i]) for i in range(9)}
    assert place[found["right"]][0] > place[found["home"]][0]
    assert place[found["down"]][1] > place[found["right"]][1]
    assert found["next"] == found["said"] == name(1, 0)
    assert found["kept"] is True
    assert found["back"] == name(0, 0)
    assert found["near"] == [6, 6]
    assert found["before"] is True
    assert found["hover"] == [False, name(0, 3), 'url("data:image/jpeg;base64']
    assert found["clicked"] == name(0, 3)
    assert found["followed"] is True
    assert found["marks"] == 3
    assert (found["grid"], found["outline"]) == ("none", "none")


@pytest.mark.browser
def test_no_heading_ends_a_printed_page(page: Path, tmp_path: Path) -> None:
    script = """
    const print = [...document.styleSheets].flatMap((sheet) => [...sheet.cssRules])
      .filter((rule) => rule instanceof CSSMediaRule && rule.conditionText === "print");
    const rules = print.flatMap((rule) => [...rule.cssRules]).filter((rule) => rule.style.breakAfter === "avoid");
    const headings = [...document.querySelectorAll("h1, h2, h3, h4, figcaption")];
    const open = headings.filter((heading) => !rules.some((rule) => heading.matches(rule.selectorText)));
    document.getElementById("result").textContent =
      JSON.stringify({headings: headings.length, open: open.map((heading) => heading.outerHTML)});
    """
    found = in_browser(page, script, tmp_path)
    assert found["headings"] > 6
    assert found["open"] == []


@pytest.mark.browser
def test_an_address_opens_a_patch(page: Path, tmp_path: Path) -> None:
    script = """
    const now = document.getElementById("now-text").textContent, slide = document.getElementById("slide").value;
    document.getElementById("result").textContent = JSON.stringify({now, slide});
    """
    slide = embedded(page, "slides")[1]
    found = in_browser(page, script, tmp_path, "#patch=11")
    assert found == {"now": f"c, row {slide['rows'][2]} at {slide['x'][2]}, {slide['y'][2]}", "slide": "1"}
