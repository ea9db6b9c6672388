"""The documentation site: built as `make docs` does, warnings being errors; its links lead somewhere, and a page needs
nothing from elsewhere."""

import html.parser
import os
import posixpath
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import pipeline
import stores
from tests.tools.settings import ROOT

pytest.importorskip(
    "mkdocs", reason="the site needs the extra docs: pip install -c constraints.txt -e '.[docs]'"
)
pytestmark = pytest.mark.slow


class Page(html.parser.HTMLParser):
    """The anchors of a page, its links, and what a browser loads with it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors = {""}
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = {name: value for name, value in attrs if value is not None}
        self.anchors |= {known[name] for name in ("id", "name") if name in known}
        if tag in ("a", "area"):
            self.links += [known["href"]] if "href" in known else []
        else:
            self.loaded += [
                known[name] for name in ("href", "src", "srcset", "data", "poster") if name in known
            ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site after a strict build."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=250)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return folder


@pytest.fixture(scope="module")
def site(folder: Path) -> dict[str, Page]:
    """Its pages, by their places in it."""
    return {
        path.relative_to(folder).as_posix(): Page(path.read_text(encoding="utf-8"))
        for path in folder.glob("**/*.html")
    }


def wrong(site: dict[str, Page], files: set[str]) -> list[str]:
    """Links inside the site that lead nowhere, and what is loaded from elsewhere."""
    found = []
    for place, page in site.items():
        for target in [*page.links, *page.loaded]:
            url = urlsplit(target)
            if url.scheme or url.netloc:
                if target in page.loaded and url.scheme != "data":
                    found.append(f"{place}: loads {target}")
                continue
            path = posixpath.normpath(posixpath.join(posixpath.dirname(place), unquote(url.path)))
            there = path if url.path else place
            if there not in files or (there in site and unquote(url.fragment) not in site[there].anchors):
                found.append(f"{place}: {target}")
    return found


def test_every_link_leads_somewhere_and_nothing_is_loaded_from_elsewhere(
    site: dict[str, Page], folder: Path
) -> None:
    files = {path.relative_to(folder).as_posix() for path in folder.glob("**/*") if path.is_file()}
    error = site.pop("404.html")  # a server shows it at any address, so its links begin at the top
    assert len(site) > 100
    assert wrong(site, files) == []
    assert not [target for target in error.loaded if urlsplit(target).netloc]
    for path in folder.glob("**/*.css"):
        text = path.read_text(encoding="utf-8")
        assert not re.findall(r"""url\(["']?(?:https?:)?//|@import""", text), path


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('<a href="b.html">', []),
        ('<a href="b.html#there"><a href="#"><a href="https://x.org/y">', []),
        ('<a href="b.html#gone">', ["a.html: b.html#gone"]),
        ('<a href="../b.html">', ["a.html: ../b.html"]),
        ('<img src="c.png">', ["a.html: c.png"]),
        ('<link href="//fonts.org/x.css">', ["a.html: loads //fonts.org/x.css"]),
        ('<script src="https://x.org/y.js">', ["a.html: loads https://x.org/y.js"]),
    ],
)
def test_a_wrong_link_is_found(text: str, found: list[str]) -> None:
    pages = {"a.html": Page(text), "b.html": Page('<h2 id="there">')}
    assert wrong(pages, set(pages)) == found


def test_the_pages_that_are_made_of_the_code_are_whole(site: dict[str, Page]) -> None:
    from cli import g2l

    assert {f"g2l-{name}" for name in g2l.commands} <= site["reference/commands.html"].anchors
    public = {name.rpartition(".")[2] for name in site["reference/pipeline.html"].anchors}
    assert set(pipeline.__all__) <= public
    public = {name.rpartition(".")[2] for name in site["reference/stores.html"].anchors}
    assert set(stores.__all__) <= public
    titles = {Path(link).stem for link in site["decisions/index.html"].links}
    assert {path.stem for path in (ROOT / "docs/decisions").glob("0*.md")} <= titles
