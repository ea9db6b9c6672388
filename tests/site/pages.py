"""Hooks of MkDocs for the documentation site (``make docs``): the pages that are not files of ``docs/``.

These are README, CONTRIBUTING and other pages of the checkout, the list of decisions, and what follows from the code:
the help of every command and the docstrings of all that is public. A link to a file that has no page on the site
becomes the file's path in words.
"""

import contextlib
import posixpath
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import click
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import pipeline
import stores
from cli import g2l
from stores.io.text import markdown
from tests.tools.settings import ROOT

PAGES = {
    "README.md": "index.md",
    "docs/index.md": "map.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
    "stores/README.md": "reference/code-of-stores.md",
    "pipeline/distill/README.md": "reference/code-of-distill.md",
}
"""Pages outside of ``docs/``, and their places on the site. README is its first page, so the map has another place."""
_SOURCES = {place: source for source, place in PAGES.items()}
_LINK = re.compile(r"\[([^\]]*)\]\(([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are not in ``docs/``."""
    texts = {place: (ROOT / source).read_text(encoding="utf-8") for source, place in PAGES.items()}
    texts["decisions/index.md"] = decisions()
    texts["reference/commands.md"] = commands()
    texts["reference/pipeline.md"] = docstrings("Docstrings of g2l", "pipeline.api", pipeline.__all__)
    texts["reference/stores.md"] = docstrings("Docstrings of stores", "stores", stores.__all__)
    files.remove(files.src_uris["index.md"])
    for place, text in texts.items():
        files.append(File.generated(config, place, content=text))
    return files


def on_page_markdown(text: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let the links of a page lead to other pages of the site."""
    place = page.file.src_uri
    return relinked(text, _SOURCES.get(place, f"docs/{place}"), place)


def on_post_page(html: str, page: Page, config: MkDocsConfig) -> str:
    """Give the theme's search a name for screen readers."""
    dialog = 'data-md-component="search" role="dialog"'
    return html.replace(dialog, f'{dialog} aria-label="Search"')


def relinked(text: str, source: str, place: str) -> str:
    """The links of a page that stands at `source` in the checkout and at `place` on the site.

    >>> relinked("[a](docs/index.md#b), [code](cli.py), [c](https://d.e)", "README.md", "x/y.md")
    '[a](../index.md#b), code (`cli.py`), [c](https://d.e)'
    """

    def one(link: re.Match[str]) -> str:
        words, target, anchor = link[1], link[2], link[3] or ""
        if re.match(r"\w+:", target):
            return link[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        if (ROOT / path).is_dir():
            path += "/index.md"
        if path in PAGES:
            path = f"docs/{PAGES[path]}"
        if not path.startswith("docs/"):
            return f"{words} (`{path}`)"
        there = posixpath.relpath(path.removeprefix("docs/"), posixpath.dirname(place) or ".")
        return f"[{words}]({there}{anchor})"

    return _LINK.sub(one, text)


def decisions() -> str:
    """The list of decision records, by their titles."""
    lines = ["# Decisions", "", "One page for each choice that would otherwise be asked about twice.", ""]
    for path in sorted((ROOT / "docs/decisions").glob("*.md")):
        title = path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
        lines.append(f"- [{title}]({path.name})")
    return "\n".join(lines) + "\n"


def docstrings(title: str, home: str, names: Sequence[str]) -> str:
    """A page on which mkdocstrings puts the docstrings of `names`; `home` is where most of them are defined."""
    homes = {
        "ViewDataset": "pipeline.data.dataset",
        "load_encoder": "pipeline.encoders.load",
        "Recipe": "stores.format.recipe",
        "Store": "stores.store",
        "open": "stores.store",
    }
    return "\n".join([f"# {title}\n", *(f"::: {homes.get(name, home)}.{name}\n" for name in names)])


class _Markdown(click.HelpFormatter):
    """The help page of a command as Markdown."""

    def write_usage(self, prog: str, args: str = "", prefix: str | None = None) -> None:
        self.write(f"```\n{prog} {args}\n```\n\n")

    def write_text(self, text: str) -> None:
        self.write("\n\n".join(map(_words, re.split(r"\n\s*\n", text))) + "\n\n")

    def write_dl(self, rows: Iterable[tuple[str, str]], *_: Any, **__: Any) -> None:
        self.write("".join(f"- `{name}`: {_words(about)}\n" for name, about in rows) + "\n")

    @contextlib.contextmanager
    def section(self, name: str) -> Iterator[None]:
        self.write(f"**{name}**\n\n")
        yield


def _words(text: str) -> str:
    """Text of a help page: between backticks it is code."""
    parts = " ".join(text.split()).split("`")
    return "`".join(
        part if i % 2 else markdown(part, 10_000) if part.strip() else part for i, part in enumerate(parts)
    )


def commands() -> str:
    """The help of every command."""
    lines = ["# Commands", "", "What `g2l COMMAND --help` prints.", ""]
    for context in _contexts(g2l, click.Context(g2l, info_name="g2l")):
        formatter = _Markdown()
        context.command.format_help(context, formatter)
        lines.append(f"## {context.command_path}\n\n{formatter.getvalue()}")
    return "\n".join(lines)


def _contexts(command: click.Command, context: click.Context) -> Iterator[click.Context]:
    """The command and all below it."""
    yield context
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from _contexts(below, click.Context(below, info_name=name, parent=context))
