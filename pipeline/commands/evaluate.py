"""The commands ``g2l evaluate ...``: parse, call one function, print. Heavy imports stand inside the commands."""

import html
import sys
from pathlib import Path
from typing import Any

import click

from pipeline.commands.click_options import PATH, Group, build, options_of, print_result, show
from pipeline.evaluate import options as opts

_OUT = click.option("--out", type=PATH, metavar="FILE", help="Also write the result as JSON into this file.")
_EMBEDDINGS = click.argument("embeddings", type=PATH)


@click.group(cls=Group, short_help="Evaluate a student")
def evaluate() -> None:
    """Evaluate a student: protocols on the embeddings that `g2l embed` wrote, on stores and on h5 folders."""


def _report(as_json: bool, out: Path | None, result: Any) -> None:
    from stores.io.files import sweep_partials_of, write_json

    if out is not None:
        sweep_partials_of(out)
        write_json(out, result.to_json())
    show(as_json, result)


@evaluate.command(short_help="Vote of the nearest neighbours")
@_EMBEDDINGS
@_OUT
@options_of(opts.KnnOptions)
def knn(embeddings: Path, out: Path | None, as_json: bool, **values: Any) -> None:
    """Accuracy of a vote of the nearest neighbours. Nothing is trained."""
    from pipeline.evaluate.embeddings import load_embeddings
    from pipeline.evaluate.protocols import run_knn

    _report(as_json, out, run_knn(load_embeddings(embeddings), build(opts.KnnOptions, values)))


@evaluate.command(short_help="Linear probe")
@_EMBEDDINGS
@_OUT
@options_of(opts.LinearOptions)
def linear(embeddings: Path, out: Path | None, as_json: bool, **values: Any) -> None:
    """Linear probe: AUC, balanced accuracy and F1 of a logistic regression, or of eva's head."""
    from pipeline.evaluate.embeddings import load_embeddings
    from pipeline.evaluate.protocols import run_linear

    _report(as_json, out, run_linear(load_embeddings(embeddings), build(opts.LinearOptions, values)))


@evaluate.command(short_help="Likeness of two encoders (CKA)")
@_EMBEDDINGS
@click.argument("other", type=PATH)
@_OUT
@options_of(opts.CkaOptions)
def cka(embeddings: Path, other: Path, out: Path | None, as_json: bool, **values: Any) -> None:
    """How alike two encoders are on the same patches. OTHER may be the teacher's store."""
    from pipeline.evaluate.embeddings import load_embeddings
    from pipeline.evaluate.protocols import run_cka

    found = run_cka(load_embeddings(embeddings), load_embeddings(other), build(opts.CkaOptions, values))
    _report(as_json, out, found)


@evaluate.command(short_help="Robustness index: biology or centre")
@_EMBEDDINGS
@_OUT
@options_of(opts.RobustnessOptions)
def robustness(embeddings: Path, out: Path | None, as_json: bool, **values: Any) -> None:
    """Robustness index: do neighbours share the biology, or the centre?"""
    from pipeline.evaluate.embeddings import load_embeddings
    from pipeline.evaluate.protocols import run_robustness

    _report(as_json, out, run_robustness(load_embeddings(embeddings), build(opts.RobustnessOptions, values)))


@evaluate.command(short_help="Registered tiles of several scanners")
@_EMBEDDINGS
@_OUT
@options_of(opts.PairsOptions)
def pairs(embeddings: Path, out: Path | None, as_json: bool, **values: Any) -> None:
    """Robustness to scanners and stainings on tiles with a column pair: does a tile find its match?"""
    from pipeline.evaluate.embeddings import load_embeddings
    from pipeline.evaluate.pairs import run_pairs

    _report(as_json, out, run_pairs(load_embeddings(embeddings), build(opts.PairsOptions, values)))


@evaluate.command(short_help="Robustness to scanners and stainings")
@click.argument("folder", type=PATH)
@_OUT
@options_of(opts.PlismOptions)
def plism(folder: Path, out: Path | None, as_json: bool, **values: Any) -> None:
    """Robustness to scanners and stainings, from a folder that `g2l embed --format plism` wrote."""
    from pipeline.evaluate.protocols import run_plism
    from pipeline.runtime.progress import reporter_for

    inner = folder / "embeddings"
    with reporter_for(sys.stderr) as report:
        found = run_plism(inner if inner.is_dir() else folder, build(opts.PlismOptions, values), report)
    _report(as_json, out, found)


@evaluate.command(short_help="Gene expression from morphology")
@_EMBEDDINGS
@_OUT
@options_of(opts.HestOptions)
def hest(embeddings: Path, out: Path | None, as_json: bool, **values: Any) -> None:
    """Gene expression from morphology: PCA, ridge regression, Pearson's correlation."""
    from pipeline.evaluate.embeddings import load_embeddings
    from pipeline.evaluate.protocols import run_hest

    _report(as_json, out, run_hest(load_embeddings(embeddings), build(opts.HestOptions, values)))


@evaluate.command(short_help="Tasks of whole slides")
@_EMBEDDINGS
@_OUT
@options_of(opts.SlideOptions)
def slides(embeddings: Path, out: Path | None, as_json: bool, **values: Any) -> None:
    """Predict a label of whole slides, such as TP53: mean pooling or gated attention, cross-validated by patient."""
    from pipeline.evaluate.embeddings import load_embeddings
    from pipeline.evaluate.protocols import run_slides

    _report(as_json, out, run_slides(load_embeddings(embeddings), build(opts.SlideOptions, values)))


@evaluate.command("all", short_help="All tables of a paper, from one YAML file")
@click.option(
    "--config", required=True, type=PATH, metavar="FILE", help="YAML file of encoders, data and tasks."
)
@click.option(
    "--out", required=True, type=PATH, metavar="DIR", help="Folder for embeddings, figures and tables."
)
@options_of(opts.CompareOptions, config=False)
def evaluate_all(config: Path, out: Path, as_json: bool, **values: Any) -> None:
    """Make the paper's tables: embed data with several encoders, run all tasks, write CSV, Markdown and JSON.

    Every figure is printed and written when it is there. All encoders are compared with one, by paired differences.
    """
    from pipeline.evaluate.bench import read_bench
    from pipeline.evaluate.run_bench import run_bench
    from pipeline.runtime.progress import reporter_for

    bench = read_bench(config)
    with reporter_for(sys.stderr) as report:
        tables = run_bench(bench, out, report, build(opts.CompareOptions, values))
    last = ["", *(f"written: {path}" for path in tables.written), *tables.failures()]
    # a terminal shows no entities, which keep foreign text from being Markdown
    print_result(as_json, tables.to_json(), lambda: [*map(html.unescape, tables.markdown()), *last])
    sys.exit(tables.exit_code)
