"""Progress on a terminal and in a log file: a name with brackets, escapes or line breaks is only a name."""

import io

import pytest
from rich.console import Console

from pipeline.runtime.progress import Bar, Lines

NAMES = [
    "a[/b]",
    "[bold",
    "[link=https://evil.example]x",
    ":bomb:",
    "\x1b]0;title\x07",
    "a\nb\rc",
    "\u202eb",
    "\udcff",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_bar_shows_a_name_as_it_is(name: str) -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=200, color_system=None)
    with Bar(console) as bar:
        bar.start(f"work on {name}", 2)
        bar.advance(1, name)
        bar.note(f"note of {name}")
        bar.advance(1, name)
    shown = out.getvalue()
    assert "\x1b]0;" not in shown
    assert "evil.example]x" in shown or "evil" not in name
    assert not {"\u202e", "\udcff", "\x07"} & set(shown)
    plain = name.encode("unicode_escape").decode()
    assert f"note of {plain}\n" in shown
    assert shown.count(plain) >= 3


@pytest.mark.parametrize("name", NAMES)
def test_lines_are_lines(name: str) -> None:
    out = io.StringIO()
    lines = Lines(out)
    lines.start(f"work on {name}", 1)
    lines.note(name)
    lines.advance(1, name)
    first, second, rest = out.getvalue().split("\n")
    assert first == name.encode("unicode_escape").decode()
    assert second.startswith("work on ")
    assert (second + first).isprintable()
    assert rest == ""
