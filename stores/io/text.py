"""Text from elsewhere, made harmless for a terminal, a YAML field or a Markdown page."""

import html
from collections.abc import Mapping, Sequence

_MARKS = "|`*[]~"


def one_line(value: object, limit: int = 200) -> str:
    """Foreign text on one line, cut to `limit`: no control characters, nothing that reverses or hides text.

    >>> one_line("a\\n---\\tb\\x1b[31m")
    'a --- b?[31m'
    """
    text = " ".join(str(value).split())[:limit]
    return "".join(c if c.isprintable() else "?" for c in text)


def markdown(value: object, limit: int = 200) -> str:
    """Foreign text for a Markdown paragraph or table cell: no HTML, no table, code, emphasis or link.

    >>> markdown("<script>a|b`c`</script> https://x")
    '&lt;script&gt;a&#124;b&#96;c&#96;&lt;/script&gt; https&#58;//x'
    """
    text = html.escape(one_line(value, limit), quote=False)
    for mark in _MARKS:
        text = text.replace(mark, f"&#{ord(mark)};")
    return text.replace("://", "&#58;//")


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
    lines = [f"{len(reasons)} slides could not be used:"] if reasons else []
    for slide_id, reason in reasons.items():
        said = one_line(reason, 500) or "no reason given"
        lines.append(f"  {said}" if said.startswith(slide_id) else f"  {slide_id}: {said}")
    return lines
