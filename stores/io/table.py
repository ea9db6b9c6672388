"""Tables that people make: slides, tiles, labels, genes, ids. One strict reader, so that no row is read as another.

A first line names the columns. Commas separate cells; semicolons or tabs where the first line has no comma, as
spreadsheets write them in some countries. White space around names and cells does not count, nor do upper and lower
case in names that have a meaning. Whatever could be read in two ways is refused, with its line.
"""

import csv
import difflib
import io
import itertools
import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from stores.errors import OptionError, StoreError
from stores.io.files import first_line
from stores.io.foreign import TABLE_BYTES, open_regular

SLIDE_ENDING = re.compile(
    r"\.(?:svs|tiff?|ndpi|vmu|vms|scn|mrxs|svslide|bif|czi|dcm|zarr|png|jpe?g|h5)$", re.I | re.A
)
"""The ending of a file name that stands where a slide id is meant."""
_MAX_LINE = 1 << 20
_ALIKE = 0.77
"""How similar a name must be to one with a meaning to be taken for a slip; `difflib.SequenceMatcher.ratio`."""


@dataclass(frozen=True, slots=True)
class Table:
    """The rows of a user's table."""

    what: str
    """Its place in messages, such as ``--labels x.csv``."""
    names: tuple[str, ...]
    """Of the columns, each once."""
    rows: tuple[dict[str, str], ...]
    """By column; text without white space around it."""
    lines: tuple[int, ...]
    """Where each row begins in the file; the first line is 1."""

    def at(self, row: int) -> str:
        """The place of a row, for messages."""
        return f"{self.what} line {self.lines[row]}"

    def require(self, name: str, remedy: str = "") -> None:
        """Raise OptionError when there is no such column."""
        if name not in self.names:
            found = ", ".join(self.names) or "nothing"
            raise OptionError(
                f"{self.what}: no column {name}; found {found}{remedy or _meant(name, self.names)}"
            )


def read_table(path: Path, what: str, known: Collection[str] = (), heading: str = "") -> Table:
    """Read a table of a user's.

    Parameters
    ----------
    known
        Names with a meaning. A column whose name differs from one of them in case alone has that name.
    heading
        What may stand before the names of the columns, after lines of comments that begin with its first character.

    Raises
    ------
    OptionError
        When the file cannot be read, a column is doubled or has no name, or a row has more or fewer cells than the
        first line.
    """
    try:
        with open_regular(path, TABLE_BYTES) as file:
            text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
            lines = _lines(text)
            first, skipped = next(lines, ""), 0
            while heading and first.startswith(heading[0]) and not first.startswith(heading):
                first, skipped = next(lines, ""), skipped + 1
            first = first.removeprefix(heading)
            given = csv.reader(
                itertools.chain([first], lines),
                delimiter=_separator(first),
                strict=True,
                skipinitialspace=True,
            )
            names = [_stripped(name) for name in next(given, [])]
            rows, begins = [], []
            begin = given.line_num + 1 + skipped
            for cells in given:
                cells = [_stripped(cell) for cell in cells]
                if any(cells):
                    if len(cells) != len(names):
                        raise OptionError(
                            f"{what} line {begin}: {len(cells)} cells, and the first line names {len(names)} columns; "
                            "a cell that has a separator in it needs quotes"
                        )
                    rows.append(cells)
                    begins.append(begin)
                begin = given.line_num + 1 + skipped
    except UnicodeDecodeError as error:
        raise OptionError(f"{what}: is not UTF-8 text ({first_line(error)}); save it as CSV UTF-8") from None
    except (OSError, csv.Error, StoreError) as error:
        raise OptionError(f"{what}: cannot be read as CSV ({first_line(error)})") from None
    used = _named(what, names, rows)
    spelled = {name.casefold(): name for name in known}
    names = [spelled.get(names[i].casefold(), names[i]) for i in used]
    for name in names:
        if names.count(name) > 1:
            raise OptionError(f"{what}: two columns are called {name!r}; rename or remove one")
    table = tuple(dict(zip(names, (cells[i] for i in used), strict=True)) for cells in rows)
    return Table(what, tuple(names), table, tuple(begins))


def _stripped(cell: str) -> str:
    """Without white space at the ends, and without marks that nobody sees."""
    return cell.strip("\ufeff\u200b").strip().strip("\ufeff\u200b").strip()


def _separator(first: str) -> str:
    bare = re.sub(r'"[^"]*"', "", first)
    return "," if "," in bare else max(",;\t", key=bare.count)


def _lines(text: io.TextIOWrapper) -> Iterator[str]:
    """Lines as `csv` takes them; one without an end is not read to its end."""
    for number in itertools.count(1):
        line = text.readline(_MAX_LINE)
        if not line:
            return
        if len(line) == _MAX_LINE and not line.endswith("\n"):
            raise csv.Error(f"line {number} is longer than {_MAX_LINE} characters")
        yield line


def _named(what: str, names: Sequence[str], rows: Sequence[Sequence[str]]) -> list[int]:
    """The columns that have a name; one without is left out when it is empty, as spreadsheets leave them behind."""
    for i, name in enumerate(names):
        if not name and any(cells[i] for cells in rows):
            raise OptionError(f"{what}: column {i + 1} has no name; give it one, or remove it")
    return [i for i, name in enumerate(names) if name]


def check_names(what: str, names: Collection[str], known: Collection[str], reserved: Collection[str]) -> None:
    """Refuse columns that would be taken for others.

    Parameters
    ----------
    known
        Names with a meaning: a column whose name may be a slip for one that is not there is refused.
    reserved
        Names of columns that g2l measures or writes, in lower case.

    Raises
    ------
    OptionError
        That names the column, and says how to rename it.
    """
    for name in names:
        if name.casefold() in reserved:
            raise OptionError(f"{what}: column {name!r:.80} is measured or written by g2l; rename it")
        close = None if name in known else _closest(name, set(known) - set(names))
        if close:
            raise OptionError(
                f"{what}: column {name!r:.80}: is {close!r} meant? rename it so; if it is not, give it a name that is "
                "less similar"
            )


def _squeezed(name: str) -> str:
    return re.sub(r"[\W_]", "", name.casefold())


def _closest(name: str, among: Collection[str]) -> str | None:
    """The one of `among` that `name` is a slip for."""
    plain = {_squeezed(other): other for other in sorted(among)}
    found = difflib.get_close_matches(_squeezed(name), plain, 1, _ALIKE)
    return plain[found[0]] if found else None


def _meant(name: str, names: Sequence[str]) -> str:
    close = _closest(name, names)
    return f"; is {close!r} meant? rename it" if close else ""


def match_slides(
    given: Iterable[str], files: Mapping[str, str | None], what: str, some: bool = True
) -> dict[str, str]:
    """Which slides a user's ids mean, by the text given; texts that mean no slide are left out.

    An id is compared exactly. The name of the slide's file does as well, with or without its ending and its folder.

    Parameters
    ----------
    files
        The slides: the names of their files by id, None where that is not known.
    what
        Where the ids stand, for messages.
    some : bool
        Refuse ids none of which means a slide.

    Raises
    ------
    OptionError
        When a text means two slides, two texts mean one, or a text that means none differs from the id of a slide
        without one in case, white space or leading zeros alone.
    """
    given = list(given)
    named: dict[str, set[str]] = {}
    for slide_id, file in files.items():
        for name in {slide_id} if not file else {slide_id, file, Path(file).stem}:
            named.setdefault(unicodedata.normalize("NFC", name), set()).add(slide_id)
    found: dict[str, str] = {}
    back: dict[str, str] = {}
    for text in given:
        meant = _slide_of(text, files, named, what)
        if meant is None:
            continue
        other = back.setdefault(meant, text)
        if other != text:
            raise OptionError(f"{what}: {other!r:.220} and {text!r:.220} both mean slide {meant}; remove one")
        found[text] = meant
    left = {_loose(slide_id): slide_id for slide_id in files if slide_id not in back}
    for text in given:
        if text in found:
            continue
        close = left.get(_loose(SLIDE_ENDING.sub("", text)))
        if close is not None:
            raise OptionError(f"{what}: there is no slide {text!r:.220}; is {close!r} meant? write it so")
    if some and given and not found:
        raise OptionError(
            f"{what}: none of its {len(given)} ids is that of a slide: it has {given[0]!r:.220}, and there are "
            f"{len(files)} slides, such as {next(iter(files), 'none')!r}"
        )
    return found


def _slide_of(
    text: str, files: Mapping[str, str | None], named: Mapping[str, set[str]], what: str
) -> str | None:
    text = unicodedata.normalize("NFC", text)
    if text in files:
        return text
    name = re.split(r"[/\\]", text)[-1]
    for plain in (name, SLIDE_ENDING.sub("", name)):
        meant = named.get(plain, set())
        if len(meant) > 1:
            raise OptionError(
                f"{what}: {text!r:.220} can mean {' or '.join(sorted(meant))}; write the id, or the file's name"
            )
        if meant:
            return next(iter(meant))
    return None


def _loose(text: str) -> str:
    """The same for texts that differ in case, white space and leading zeros, which spreadsheets remove."""
    return re.sub(r"(?<!\d)0+(?=\d)", "", re.sub(r"[\s_-]+", "", text.casefold()))
