"""Text by somebody else, made harmless: for a terminal, a YAML field, a Markdown page."""

import html

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
    """A size as people write it.

    >>> human_bytes(3146), human_bytes(123e9)
    ('3.1 kB', '123.0 GB')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if n < 1000:
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1000
    return f"{n:.1f} TB"
