"""The page itself: sections of HTML around what was gathered. All text that comes from files is escaped."""

import base64
import importlib.resources
import json
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.report.charts import Line, line_chart
from pipeline.report.gather import SPRITE_COLUMNS, TILE_PX, Gathered
from stores.io.text import html_text

_POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "base-uri 'none'; form-action 'none'"
)
"""What the browser is to allow: nothing that is not in the file."""
_READING = (
    "<p>Judge a training by the agreement, whose first point is the student before training. The held-out loss is "
    "comparable from the second validation on: before training the heads are random, and the loss is near that of a "
    "constant, or above it. It is computed as in training, and tells whether the student overfits, not how much of the "
    "teacher it has learned.</p>"
)
Pairs = Sequence[tuple[str, Any]]


def page(title: str, lead: Sequence[str], subtitle: str, sections: Sequence[tuple[str, str, str]]) -> str:
    """The whole document.

    Parameters
    ----------
    lead
        Sentences at the top: what was found, and what a reader has to know before sharing the page.
    sections
        Identifier, heading and HTML of each; empty ones are left out.
    """
    kept = [section for section in sections if section[2]]
    first = "".join(f'<p class="lead">{html_text(sentence)}</p>' for sentence in lead)
    links = "".join(f'<a href="#{name}">{html_text(heading)}</a>' for name, heading, _ in kept)
    body = "".join(
        f'<section id="{name}"><h2>{html_text(heading)}</h2>{content}</section>'
        for name, heading, content in kept
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html_text(title)}</title><style>{_asset('report.css')}</style></head><body>"
        '<a class="skip" href="#main">Skip to the content</a>'
        f'<header><h1>{html_text(title)}</h1>{first}<p class="soft">{html_text(subtitle)}</p></header>'
        f"<nav aria-label='sections'>{links}</nav><main id='main' tabindex='-1'>{body}</main>"
        "<noscript><p>The slide browser needs JavaScript; everything else is there without it.</p></noscript>"
        f"<script>{_asset('report.js')}</script></body></html>\n"
    )


def _asset(name: str) -> str:
    return (importlib.resources.files("pipeline.report") / name).read_text(encoding="utf-8")


def facts(pairs: Pairs) -> str:
    """Name and value, side by side; what is empty is left out."""
    rows = "".join(
        f"<div><dt>{html_text(name)}</dt><dd>{html_text(value)}</dd></div>"
        for name, value in pairs
        if value not in (None, "")
    )
    return f'<dl class="facts">{rows}</dl>'


def command(text: str) -> str:
    """A command line, to be copied."""
    return f'<p>Made by</p><pre class="command"><code>{html_text(text)}</code></pre>'


def tiles(pairs: Pairs) -> str:
    """A few large figures."""
    shown = "".join(
        f'<div class="tile"><b>{html_text(value)}</b><span>{html_text(name)}</span></div>'
        for name, value in pairs
    )
    return f'<div class="tiles">{shown}</div>'


def table(label: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows of text under their heads; `label` is read out by screen readers."""

    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html_text(cell)}</{tag}>" for cell in cells) + "</tr>"

    body = "".join(line(row, "td") for row in rows)
    region = f"class='scroll' tabindex='0' role='region' aria-label='{label}'"
    return f"<div {region}><table><thead>{line(head, 'th')}</thead><tbody>{body}</tbody></table></div>"


def curves(records: Sequence[Mapping[str, Any]], several: bool = False) -> str:
    """Loss, schedule, agreement with the teacher (the mean over several) and data wait over the steps of a run."""
    train = [record for record in records if record.get("kind") == "train"]
    val = [record for record in records if record.get("kind") == "val"]

    def line(name: str, of: Sequence[Mapping[str, Any]], key: str, kind: str, dots: bool = False) -> Line:
        known = [record for record in of if isinstance(record.get(key), int | float)]
        return Line(name, [r["step"] for r in known], [r[key] for r in known], kind, dots)

    charts = [
        line_chart(
            "Loss",
            "step",
            [
                line("each step", train, "loss", "faint"),
                line("held out", [r for r in val if r.get("step") != 0], "loss", "b", True),
                line("held out, before training", [r for r in val if r.get("step") == 0], "loss", "d", True),
                line("held out, the mean of the targets", val, "loss_constant", "c"),
            ],
        ),
        line_chart(
            f"Agreement with the {'teachers (mean)' if several else 'teacher'}, held out",
            "step",
            [
                line("variance explained", val, "explained", "c", True),
                line("linear CKA", val, "cka", "a", True),
                line("unbiased CKA", val, "cka_unbiased", "d", True),
                line("cosine", val, "cosine", "b", True),
            ],
        ),
        line_chart("Learning rate", "step", [line("learning rate", train, "lr", "a")]),
        line_chart("Weight decay", "step", [line("weight decay", train, "weight_decay", "a")]),
        line_chart(
            "Share of a step spent waiting for data", "step", [line("data wait", train, "data_wait", "faint")]
        ),
        line_chart("Speed", "step", [line("views a second", train, "views_per_s", "faint")]),
    ]
    return f"{charts_of(drawn)}{_READING}" if (drawn := "".join(charts)) else ""


def charts_of(drawn: str) -> str:
    """Charts side by side."""
    return f'<div class="charts">{drawn}</div>'


def comparison(
    heads: Sequence[tuple[str, str, str]],
    parts: Sequence[tuple[str, Sequence[tuple[str, list[str], int | None]]]],
) -> str:
    """A table with a column for each student.

    Parameters
    ----------
    heads
        Number, piece of the line (HTML) and name of each.
    parts
        A heading and its rows: head, a cell for each student, and the number of the best or None.
    """
    top = "".join(
        f"<th scope='col'><b>{html_text(number)}</b> {drawn}<br>{html_text(name)}</th>"
        for number, drawn, name in heads
    )
    body = []
    for title, rows in parts:
        across = f"colspan='{len(heads) + 1}' scope='rowgroup'"
        body.append(f"<tr class='part'><th {across}><span>{html_text(title)}</span></th></tr>")
        for name, cells, best in rows:
            shown = "".join(
                f"<td class='best'>{html_text(cell)} <span class='sr'>(the highest)</span></td>"
                if number == best
                else f"<td>{html_text(cell) or '–'}</td>"
                for number, cell in enumerate(cells)
            )
            body.append(f"<tr><th scope='row'>{html_text(name)}</th>{shown}</tr>")
    region = "class='scroll' tabindex='0' role='region' aria-label='students'"
    return (
        f"<div {region}><table class='students'><thead><tr><td></td>{top}</tr></thead>"
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def browser(found: Gathered) -> str:
    """Slide, feature maps and neighbours; the script draws them from the JSON beside it."""
    has_student = "student" in found.colours
    names = {"plain": "Patches", "teacher": "Teacher's features", "student": "Student's features"}
    kinds = ["plain", *found.colours]
    maps = "".join(
        f'<figure class="map {kind if kind == "plain" else "coloured"}" data-kind="{kind}">'
        f'<figcaption>{names[kind]}</figcaption><div class="box"></div></figure>'
        for kind in kinds
    )
    near = "".join(
        f'<div class="who">{name.capitalize()}</div><div class="row" id="near-{name}"></div>'
        for name in found.neighbours
    )
    shown = sum(len(slide.rows) for slide in found.slides)
    both = (
        "Under the student they are turned to match the teacher's as well as a rotation can. A green frame marks a "
        "neighbour under both."
        if has_student
        else ""
    )
    return f"""
<p>{len(found.slides)} of {found.n_slides} slides and {shown:,} of their patches. The colours are the first three
principal components of the features, as red, green and blue: patches of like colour look alike to the encoder. {both}
</p>
<p class="soft keys">Hover over a patch to see it, click to choose it. With the keyboard: <kbd>Tab</kbd> to the
patches, then the arrow keys, <kbd>Home</kbd>, <kbd>End</kbd>, and <kbd>PageUp</kbd>, <kbd>PageDown</kbd> for the
slides.</p>
<div id="browser">
<div class="controls"><label>Slide <select id="slide"></select></label> <span class="soft" id="slide-text"></span>
<label><input type="checkbox" id="show-grid" checked> grid</label>
<label><input type="checkbox" id="show-outline" checked> tissue outline</label></div>
<div class="maps">{maps}</div>
<div class="looks"><div class="who">Chosen</div><div class="row"><figure><span class="crop" id="now"></span>
<figcaption id="now-text"></figcaption></figure></div>{near}</div>
<p class="sr" id="said" aria-live="polite"></p></div>
<div id="tip" hidden><span class="crop" id="tip-crop"></span><span id="tip-text"></span></div>
<script type="application/json" id="data">{_embedded(found)}</script>"""


def _embedded(found: Gathered) -> str:
    """The data of the browser as JSON that cannot end the element it stands in."""
    value = {
        "columns": SPRITE_COLUMNS,
        "tile": TILE_PX,
        "slides": [
            {
                "id": slide.slide_id,
                "split": slide.split,
                "w": slide.width_px0,
                "h": slide.height_px0,
                "side": slide.patch_px0,
                "high": slide.patch_y_px0,
                "all": slide.n_patches,
                "rows": slide.rows,
                "x": slide.x_px0,
                "y": slide.y_px0,
                "thumbnail": _data_url(slide.thumbnail) if slide.thumbnail else None,
                "contour": slide.contour,
                "captions": slide.captions,
                "sprite": _data_url(slide.sprite),
                "quality": slide.quality,
            }
            for slide in found.slides
        ],
        "colours": found.colours,
        "neighbours": found.neighbours,
    }
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _data_url(jpeg: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()


def seeds(found: Gathered) -> str:
    """Each shown patch under each of its seeds."""
    parts = []
    for key in dict.fromkeys((view.slide_id, view.row) for view in found.views):
        views = [view for view in found.views if (view.slide_id, view.row) == key]
        figures = "".join(
            f'<figure><img alt="{html_text(f"{key[0]}, row {key[1]}, seed {view.seed}")}" '
            f'src="{_data_url(view.picture)}"><figcaption><b>seed {view.seed}</b> {html_text(view.what)}'
            "</figcaption></figure>"
            for view in views
        )
        parts.append(f'<h3>{html_text(key[0])}, row {key[1]}</h3><div class="views">{figures}</div>')
    if not parts:
        return ""
    intro = "<p>The teacher saw every patch in each of these forms; the student is trained on the same pixels.</p>"
    return intro + "".join(parts)


def evaluation(tables: Sequence[Mapping[str, Any]]) -> str:
    """The tables of ``evaluate all``: a row a figure, a column an encoder; then the differences to one encoder."""
    parts = []
    for table in tables:
        names = list(dict.fromkeys(result["name"] for result in table["results"]))
        cells: dict[tuple[str, str], dict[str, Mapping[str, Any]]] = {}
        controls = controls_of(table)
        for result in table["results"]:
            for row in result["figures"]:
                cells.setdefault((result["task"], title_of(row)), {})[result["name"]] = row
        head = "".join(f"<th scope='col'>{html_text(name)}</th>" for name in ["task", "figure", *names])
        body = "".join(
            f"<tr><td>{html_text(task)}</td><td>{html_text(title)}</td>"
            + "".join(_cell(by_name.get(name), {} if task in controls else by_name) for name in names)
            + "</tr>"
            for (task, title), by_name in cells.items()
        )
        missing = "".join(
            f"<li>{html_text(f'{name}: {why}')}</li>" for name, why in table.get("failed", {}).items()
        )
        parts.append(
            "<div class='scroll' tabindex='0' role='region' aria-label='evaluation'>"
            f"<table><thead><tr>{head}</tr></thead>"
            f"<tbody>{body}</tbody></table></div>"
            + _differences(cells, names)
            + (f"<p>Failed:</p><ul>{missing}</ul>" if missing else "")
        )
    intro = "<p>Values with 95 % bootstrap intervals over groups; the best of a row is bold.</p>"
    return intro + "".join(parts) if parts else ""


def _differences(
    cells: Mapping[tuple[str, str], Mapping[str, Mapping[str, Any]]], names: Sequence[str]
) -> str:
    """The table of differences to the encoder that the others are compared with; empty without any."""
    to = {
        row["difference"]["to"]
        for by_name in cells.values()
        for row in by_name.values()
        if "difference" in row
    }
    if not to:
        return ""
    others = [name for name in names if name not in to]
    head = "".join(f"<th scope='col'>{html_text(name)}</th>" for name in ["task", "figure", *others])
    body = "".join(
        f"<tr><td>{html_text(task)}</td><td>{html_text(title)}</td>"
        + "".join(_difference_cell(by_name.get(name, {}).get("difference")) for name in others)
        + "</tr>"
        for (task, title), by_name in cells.items()
        if any("difference" in row for row in by_name.values())
    )
    return (
        f"<p>Differences to {html_text(', '.join(sorted(to)))} on the same samples, with 95 % "
        "intervals: the same groups are drawn for both.</p>"
        "<div class='scroll' tabindex='0' role='region' aria-label='differences'>"
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _difference_cell(found: Mapping[str, Any] | None) -> str:
    if found is None or found["value"] is None:
        return f"<td>{'' if found is None else '-'}</td>"
    interval = ""
    if found.get("low") is not None and found.get("high") is not None:
        interval = f" <small>{float(found['low']):+.3f} to {float(found['high']):+.3f}</small>"
    verdict = f"<br><small>{html_text(found['verdict'])}</small>" if found.get("verdict") else ""
    return f"<td>{float(found['value']):+.4f}{interval}{verdict}</td>"


def controls_of(table: Mapping[str, Any]) -> set[str]:
    """The tasks with shuffled labels, whose figures are near chance and not ranked."""
    return {result["task"] for result in table["results"] if _is_control(result)}


def title_of(row: Mapping[str, Any]) -> str:
    """Name of a figure, with its k."""
    return str(row["figure"]) if row["k"] is None else f"{row['figure']}, k = {row['k']}"


def figure_text(row: Mapping[str, Any]) -> str:
    """A figure with its interval; a dash where it is not defined."""
    if row["value"] is None:
        return "-"
    interval = ""
    if row.get("low") is not None and row.get("high") is not None:
        interval = f" ({float(row['low']):.3f} to {float(row['high']):.3f})"
    return f"{float(row['value']):.4f}{interval}"


def _is_control(result: Mapping[str, Any]) -> bool:
    options = result.get("options")
    return isinstance(options, dict) and bool(options.get("shuffle_labels"))


def _cell(row: Mapping[str, Any] | None, others: Mapping[str, Mapping[str, Any]]) -> str:
    if row is None or row["value"] is None:
        return f"<td>{'' if row is None else '-'}</td>"
    known = [other["value"] for other in others.values() if other["value"] is not None]
    best = ' class="best"' if len(known) > 1 and row["value"] == max(known) else ""
    interval = ""
    if row.get("low") is not None and row.get("high") is not None:
        interval = f" <small>{float(row['low']):.3f} to {float(row['high']):.3f}</small>"
    return f"<td{best}>{float(row['value']):.4f}{interval}</td>"
