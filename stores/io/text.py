"""Text from elsewhere, made harmless where it leaves: one function a medium.

``visible`` for a terminal, ``one_line`` for a field of YAML or JSON, ``markdown``, ``html_text`` and ``csv_cell`` for
pages and tables, ``utf8`` for files that hold text as it is. JSON itself escapes what is not ASCII.
"""

import html
import re
from collections.abc import Mapping, Sequence

_MARKS = "|`*[]~@"
_INVISIBLE = re.compile(
    r"[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
"""Characters that Python counts as printable although nothing of them shows."""
_EMPHASIS = re.compile(r"(?<![^\W_])_|_(?![^\W_])")
"""An underscore at the edge of a word: within one it is no mark in Markdown."""
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_FORMULA = frozenset("=+-@\uff1d\uff0b\uff0d\uff20'")
"""A cell that begins with one of these is a formula to some spreadsheet; the quote says that it is none."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


def visible(value: object) -> str:
    """Foreign text for a terminal: what does not print, and what reverses or hides text, stands there as an escape.

    Half characters are among them, by which Python spells file names that are not UTF-8.

    >>> print(visible("a\\x1b[31m\\nb \\u202ec \\udcff"))
    a\\x1b[31m\\nb \\u202ec \\udcff
    """
    text = str(value)
    if text.isprintable() and not _INVISIBLE.search(text):
        return text
    return "".join(c if c.isprintable() and not _INVISIBLE.match(c) else _escape(c) for c in text)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def utf8(text: str) -> str:
    """The same text, with half characters as escapes: no file in UTF-8 can hold them.

    >>> utf8("caf\\u00e9 \\udcff") == "caf\\u00e9 \\\\udcff"
    True
    """
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def is_utf8(text: str) -> bool:
    """Whether a file in UTF-8 can hold `text`."""
    return utf8(text) == text


def one_line(value: object, limit: int = 200) -> str:
    """Foreign text on one line, cut to `limit`: no control characters, nothing that reverses or hides text.

    >>> one_line("a\\n---\\tb\\x1b[31m")
    'a --- b?[31m'
    """
    text = " ".join(str(value).split())[:limit]
    return "".join(c if c.isprintable() and not _INVISIBLE.match(c) else "?" for c in text)


def markdown(value: object, limit: int = 200) -> str:
    """Foreign text for a Markdown paragraph or table cell: no HTML, no table, code, emphasis or link.

    >>> markdown("<script>a|b`c`</script> https://x")
    '&lt;script&gt;a&#124;b&#96;c&#96;&lt;/script&gt; https&#58;//x'
    """
    text = html.escape(one_line(value, limit), quote=False)
    text = re.sub(f"[{re.escape(_MARKS)}]", lambda mark: f"&#{ord(mark[0])};", text)
    text = _EMPHASIS.sub("&#95;", text.replace("\\", "&#92;"))
    return text.replace("://", "&#58;//").replace("www.", "www&#46;")


def html_text(value: object) -> str:
    """Foreign text for an element or an attribute of an HTML or SVG page.

    >>> html_text("<b>\\u202e'")
    '&lt;b&gt;\\\\u202e&#x27;'
    """
    return html.escape(visible(value))


def csv_cell(value: object) -> object:
    """A value for a cell of a CSV file, which people open in spreadsheets: text is never a formula.

    What a spreadsheet would compute gets a quote before it, as OWASP advises, and so does text that begins with a
    quote: whoever reads the file removes one quote and has the text. Numbers stay numbers, also as text. Control
    characters become escapes: the `csv` module leaves a carriage return as it is, which begins a new row for others.

    >>> [csv_cell(v) for v in ("=1+1", "-0.5", -0.5, "- a", "'a", "a=b", "a\\r=b", None)]
    ["'=1+1", '-0.5', -0.5, "'- a", "''a", 'a=b', 'a\\\\r=b', None]
    """
    if not isinstance(value, str):
        return value
    text = _CONTROL.sub(lambda found: _escape(found[0]), value)
    return f"'{text}" if text[:1] in _FORMULA and not _NUMBER.fullmatch(text) else text


def human_bytes(n: float) -> str:
    """A size in the largest unit that suits it.

    >>> human_bytes(3146), human_bytes(123e9)
    ('3.1 kB', '123.0 GB')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if n < 1000:
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1000
    return f"{n:.1f} TB"


def counted(n: int, one: str, many: str = "") -> str:
    """A number and what it counts; `many` is `one` with an s where it is not given.

    >>> counted(1, "slide"), counted(1200, "slide"), counted(1, "patch is", "patches are")
    ('1 slide', '1,200 slides', '1 patch is')
    """
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def first_of(what: str, names: Sequence[str], shown: int = 20) -> list[str]:
    """A line for each of the first names, and one for the rest: lists of a result can be long.

    >>> first_of("stray", ["a", "b", "c"], shown=2)
    ["stray: 'a'", "stray: 'b'", 'stray: 1 more, see --json']
    """
    lines = [f"{what}: {name!r:.300}" for name in names[:shown]]
    return [*lines, f"{what}: {len(names) - shown} more, see --json"] if len(names) > shown else lines


def unusable_lines(reasons: Mapping[str, str]) -> list[str]:
    """Why slides could not be used, a line each; nothing when all could.

    >>> unusable_lines({"a": "no tissue", "b": "b.svs: not a slide"})
    ['2 slides could not be used:', '  a: no tissue', '  b.svs: not a slide']
    """
    lines = [f"{counted(len(reasons), 'slide')} could not be used:"] if reasons else []
    for slide_id, reason in reasons.items():
        said = one_line(reason, 500) or "no reason given"
        lines.append(f"  {said}" if said.startswith(slide_id) else f"  {slide_id}: {said}")
    return lines
