"""Line charts as inline SVG that takes its colours from the page, so that it fits light, dark and paper."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from stores.io.text import html_text

_WIDTH, _HEIGHT = 360, 200
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 10, 34
_MAX_POINTS = 600
_COLOURS = "abcdef"
_DASHES = ("", "7 3", "2 2.5", "9 3 2 3")
_MARKERS = (
    "M0-3A3 3 0 1 1 0 3A3 3 0 1 1 0-3Z",
    "M-2.7-2.7H2.7V2.7H-2.7Z",
    "M0-3.4L3.3 2.5H-3.3Z",
    "M0-3.8L3.8 0L0 3.8L-3.8 0Z",
    "M-3-1H-1V-3H1V-1H3V1H1V3H-1V1H-3Z",
)
"""Circle, square, triangle, diamond and cross, around 0."""
_APART = 11
"""Least distance of two numbers beside their lines."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a chart."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    kind: str
    """``a`` to ``f``, each with a colour, a dash and a marker of its own, or ``faint``: see `kind_of`."""
    dots: bool = False
    number: int | None = None
    """Stands at the end of the line, and decides its dash and marker; in charts of many lines."""


def kind_of(number: int) -> str:
    """The kind of the line with a number, from 0. Colours, dashes and markers repeat after 6, 4 and 5.

    >>> kind_of(0), kind_of(7)
    ('a', 'b')
    """
    return _COLOURS[number % len(_COLOURS)]


def _look(line: Line) -> tuple[str, str]:
    """Dash and marker: nobody has to tell lines apart by colour alone."""
    if line.kind not in _COLOURS:
        return "", ""
    number = _COLOURS.index(line.kind) if line.number is None else line.number
    return _DASHES[number % len(_DASHES)], _MARKERS[number % len(_MARKERS)]


def key(line: Line) -> str:
    """A piece of the line, for a legend."""
    dash, marker = _look(line)
    dot = (
        f'<path class="dot {line.kind}" d="{marker}" transform="translate(15,6)"/>'
        if marker and line.dots
        else ""
    )
    return (
        '<svg class="key" viewBox="0 0 30 12" aria-hidden="true">'
        f'<path class="line {line.kind}" stroke-dasharray="{dash}" d="M1 6H29"/>{dot}</svg>'
    )


def line_chart(title: str, x_name: str, lines: Sequence[Line]) -> str:
    """An SVG figure with axes, ticks and a legend; what is not finite is left out."""
    points = [
        [(x, y) for x, y in zip(line.x, line.y, strict=True) if math.isfinite(x) and math.isfinite(y)]
        for line in lines
    ]
    every = [point for of_line in points for point in of_line]
    if not every:
        return ""
    x_ticks = _ticks(min(x for x, _ in every), max(x for x, _ in every))
    y_ticks = _ticks(min(y for _, y in every), max(y for _, y in every))
    x_range, y_range = (x_ticks[0], x_ticks[-1]), (y_ticks[0], y_ticks[-1])

    right = _RIGHT + (0 if all(line.number is None for line in lines) else 14)

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_range[0]) / (x_range[1] - x_range[0])
        up = (y - y_range[0]) / (y_range[1] - y_range[0])
        return _LEFT + across * (_WIDTH - _LEFT - right), _HEIGHT - _BOTTOM - up * (_HEIGHT - _TOP - _BOTTOM)

    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{html_text(title)}">']
    for value in y_ticks:
        _, y = place(x_range[0], value)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{_text(value)}</text>')
    for value in x_ticks:
        x, _ = place(value, y_range[0])
        parts.append(
            f'<text x="{x:.1f}" y="{_HEIGHT - _BOTTOM + 15}" text-anchor="middle">{_text(value)}</text>'
        )
    middle = (_LEFT + _WIDTH - right) / 2
    parts.append(f'<text x="{middle}" y="{_HEIGHT - 4}" text-anchor="middle">{html_text(x_name)}</text>')
    ends: list[tuple[float, float, int]] = []
    for line, of_line in zip(lines, points, strict=True):
        placed = [place(x, y) for x, y in _thinned(of_line)]
        joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        dash, marker = _look(line)
        parts.append(
            f'<polyline class="line {line.kind}" points="{joined}"'
            + (f' stroke-dasharray="{dash}"/>' if dash else "/>")
        )
        if line.dots:
            parts += [
                f'<path class="dot {line.kind}" d="{marker}" transform="translate({x:.1f},{y:.1f})"/>'
                for x, y in placed
            ]
        if line.number is not None and placed:
            ends.append((*placed[-1], line.number))
    parts += [
        f'<text class="end" x="{x + 6:.1f}" y="{y + 3.5:.1f}">{number + 1}</text>'
        for x, y, number in _apart(ends)
    ]
    parts.append("</svg>")
    legend = "".join(
        f"<span>{key(line)}{html_text(line.name)}</span>"
        for line, of_line in zip(lines, points, strict=True)
        if of_line and line.number is None
    )
    caption = f"<figcaption>{html_text(title)}</figcaption>"
    below = f'<div class="legend">{legend}</div>' if legend else ""
    return f'<figure class="chart">{caption}{"".join(parts)}{below}</figure>'


def _apart(ends: Sequence[tuple[float, float, int]]) -> list[tuple[float, float, int]]:
    """The ends of lines from top to bottom, those that are too near to each other moved apart."""
    found: list[tuple[float, float, int]] = []
    for x, y, number in sorted(ends, key=lambda end: end[1]):
        found.append((x, max(y, found[-1][1] + _APART) if found else y, number))
    least = float(_HEIGHT - _BOTTOM)
    for i in range(len(found) - 1, -1, -1):
        x, y, number = found[i]
        found[i] = (x, min(y, least), number)
        least = found[i][1] - _APART
    return found


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Of many points, the smallest and the largest of each stretch, so that no peak is lost."""
    if len(points) <= _MAX_POINTS:
        return list(points)
    size = math.ceil(2 * len(points) / _MAX_POINTS)
    kept: list[tuple[float, float]] = []
    for start in range(0, len(points), size):
        stretch = points[start : start + size]
        ends = {min(stretch, key=lambda p: p[1]), max(stretch, key=lambda p: p[1])}
        kept += sorted(ends)
    return kept


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers around a range, three to seven of them.

    >>> _ticks(0, 240)
    [0, 100, 200, 300]
    """
    if high <= low:
        low, high = low - abs(low) * 0.05 - 1e-9, high + abs(high) * 0.05 + 1e-9
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough)
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    digits = max(0, -math.floor(math.log10(step)))
    return [round(i * step, digits) if digits else int(i * step) for i in range(first, last + 1)]


def _text(value: float) -> str:
    """A tick in few characters.

    >>> _text(0.0001), _text(2000), _text(0.5)
    ('1e-04', '2000', '0.5')
    """
    if value != 0 and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.0e}"
    return f"{value:g}"
