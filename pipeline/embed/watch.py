"""``embed --watch``: slides are embedded when they have arrived in a folder, until Ctrl-C.

A slide has arrived when its files have not changed between two looks. Nothing is kept but what ``embed`` keeps: after a
kill the same command finds out what is done.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from pipeline.slides.find import search_slides
from pipeline.slides.registry import is_slide_folder
from stores.errors import OptionError
from stores.io.progress import Reporter
from stores.io.text import counted

POLL_S = 30.0
"""Seconds between two looks. Copying a slide takes minutes, and a pause of the network seconds."""
Seen = tuple[tuple[str, int, int], ...]
"""Name, size and time of change (ns) of each file of a slide."""


class _Result(Protocol):
    def lines(self) -> list[str]:
        """What was done, as text."""


R = TypeVar("R", bound=_Result)


def watch(
    inputs: Sequence[Path],
    embed: Callable[[Sequence[Path]], R],
    report: Reporter,
    wait: Callable[[float], None] | None = None,
) -> R:
    """Embed the slides of `inputs` whenever some have arrived; returns what was done last, after Ctrl-C in a pause.

    Parameters
    ----------
    embed
        Does all slides that it is given, of which many may be done already.
    wait
        Waits for some seconds; ends the watch by KeyboardInterrupt. `pause` when None.

    Raises
    ------
    KeyboardInterrupt
        Ctrl-C at work, or before anything was done.
    OptionError
        An input does not exist.
    """
    before: Mapping[Path, Seen] = {}
    done: Mapping[Path, Seen] = {}
    result: R | None = None
    said = ""
    while True:
        now, missing = _look(inputs)
        if missing and missing != said:
            report.note(missing)
        said = missing
        arrived = {path: seen for path, seen in now.items() if before.get(path) == seen}
        coming = [path for path in now if path not in arrived and done.get(path) != now[path]]
        before = now
        if any(done.get(path) != seen for path, seen in arrived.items()):
            result = embed(list(arrived))
            done = {**done, **arrived}
            for line in result.lines():
                report.note(line)
        elif coming:
            report.note(f"waiting for {counted(len(coming), 'slide')} to arrive, such as {coming[0]}")
        try:
            (wait or pause)(POLL_S)
        except KeyboardInterrupt:
            if result is None:
                raise
            return result


def pause(seconds: float) -> None:
    """Wait for the next look."""
    time.sleep(seconds)


def _look(inputs: Sequence[Path]) -> tuple[dict[Path, Seen], str]:
    """The slides that are there with their files, and why there are none."""
    for path in inputs:
        if not path.exists():
            raise OptionError(f"{path}: no such file or folder")
    try:
        slides = search_slides(inputs).slides.values()
    except OptionError as error:  # nothing yet
        return {}, str(error)
    found = {path: _seen(path) for path in slides}
    return {path: seen for path, seen in found.items() if seen}, ""


def _seen(slide: Path) -> Seen:
    """Size and time of the files of a slide, which may be several; empty when one of them just vanished."""
    if is_slide_folder(slide):
        files = [path for path in slide.rglob("*") if path.is_file()]
    elif slide.suffix.lower() == ".dcm":
        files = [path for path in slide.parent.iterdir() if path.is_file()]
    else:
        files = [slide, *(path for path in slide.with_suffix("").rglob("*") if path.is_file())]  # MRXS
    try:
        return tuple(sorted((str(path), (at := path.stat()).st_size, at.st_mtime_ns) for path in files))
    except OSError:
        return ()
