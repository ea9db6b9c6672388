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
