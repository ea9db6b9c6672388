"""Publishing: the parts of whole slides become the files of a format."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.embed import parts
from pipeline.embed.formats.base import FOLDER, Unit
from pipeline.embed.formats.registry import format_of
from pipeline.inference.task import Tally
from pipeline.runtime.progress import Reporter
from stores.errors import SlideError, StoreError
from stores.io import files
from stores.io.text import counted, human_bytes

_DONE = "done"


@dataclass(slots=True, kw_only=True)
class EmbedSummary(Tally):
    """What a run of ``embed`` did."""

    out: Path
    published: int = 0
    """Slides (or CSVs of tiles) that are whole, with those of earlier runs."""
    dim: int = 0

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "out": str(self.out),
            "embeddings": str(self.out / FOLDER),
            "dim": self.dim,
            "published": self.published,
            "patches_new": self.views,
            "patches_before": self.views_before,
            **self.figures_json(),
        }

    def lines(self) -> list[str]:
        """The same as text."""
        lines = [self.said_line()]
        if self.views:
            lines.append(f"{self.speed()}, peak memory {human_bytes(self.figures['peak_rss_bytes'])}")
        return lines + self.failed_lines()

    def said_line(self) -> str:
        """What the folder holds, and how much of it is new."""
        return (
            f"{self.views + self.views_before} patches ({self.views} new, {self.views_before} found done), "
            f"{self.dim} numbers each; {self.published} published in {self.out / FOLDER}"
        )


@dataclass(slots=True)
class EmbeddedTogether:
    """What a run of ``embed`` did whose patches were read once for several encoders."""

    outs: list[EmbedSummary]
    read: int = 0
    """Patches that were read now, each for one encoder or more."""

    @property
    def some_failed(self) -> bool:
        """Whether a slide, a block or a patch could not be done for some encoder."""
        return any(out.some_failed for out in self.outs)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"read": self.read, "outs": [out.to_json() for out in self.outs]}

    def lines(self) -> list[str]:
        """The same as text."""
        lines = [out.said_line() for out in self.outs]
        encoded = sum(out.views for out in self.outs)
        if encoded:
            first = next(out for out in self.outs if out.views)
            lines.append(
                f"{counted(self.read, 'patch', 'patches')} read for {encoded} of "
                f"{counted(len(self.outs), 'encoder')}: {self.read / first.seconds:.1f} a second, {first.waiting()}; "
                f"peak memory {human_bytes(first.figures['peak_rss_bytes'])}"
            )
        for out in self.outs:
            failed = out.failed_lines()
            lines += [f"{out.out}:", *failed] if failed else []
        return lines


class Publisher:
    """Turns the parts of whole slides into the files of a format; belongs to the planning process.

    A slide is published when its record ``done/SLIDE_ID.json`` is there and the files that it names are as large as
    it says: parts are removed after that.
    """

    def __init__(self, out: Path, name: str, summary: EmbedSummary) -> None:
        self.out = out
        self._format, self._summary = format_of(name), summary
        self._units: dict[str, Unit] = {}
        self._published: list[Unit] = []
        self.bad_reads: list[str] = []
        """Patches of published slides that could not be read, this run or an earlier one."""
        self.refreshed: list[str] = []
        """Published slides whose columns were corrected."""

    @property
    def left(self) -> list[Unit]:
        """Units that are not published."""
        return list(self._units.values())

    def is_published(self, unit: Unit) -> bool:
        """Whether an earlier run published a unit; then it counts into the summary.

        Its columns are brought up to date: what the user's table says of a slide may have been corrected.
        """
        try:
            record = files.read_json(self._record(unit.name))
            same = record["fingerprint"] == unit.row.get("fingerprint", "")
            whole = all((self.out / name).stat().st_size == size for name, size in record["files"].items())
            bad = list(record["bad_reads"])
        except (StoreError, OSError, KeyError, TypeError, AttributeError):
            return False
        if not (same and whole):
            return False
        parts.remove(self.out, unit.name)  # a kill between the record and their removal leaves them
        written = self._format.refresh(self.out / FOLDER, unit) if unit.row else []
        if written:
            self._write_record(unit, bad, written)
            self.refreshed.append(unit.name)
        self._count(unit, bad)
        return True

    def wait_for(self, unit: Unit) -> None:
        """Publish a unit when it is whole."""
        self._units[unit.name] = unit

    def publish_if_whole(self, name: str, report: Reporter) -> None:
        """Publish a unit when no block of it is missing."""
        if parts.missing_blocks(self.out, name, self._units[name].n_patches):
            return
        unit = self._units.pop(name)
        try:
            self._publish(unit)
        except SlideError as error:
            self._summary.failed_slides[name] = str(error)
            report.note(f"{name}: failed: {error}")

    def _publish(self, unit: Unit) -> None:
        bad = parts.bad_rows(self.out, unit.name, unit.n_patches)
        try:
            if unit.row and len(bad) == unit.n_patches:
                raise SlideError(
                    f"{unit.name}: no patch of it could be read, the first: {next(iter(bad.values()))}"
                )
            tables = parts.read_parts(self.out, unit.name, unit.n_patches, unit.dim)
            written = self._format.write(self.out / FOLDER, unit, tables)
        except SlideError:
            parts.remove_bad(self.out, unit.name, unit.n_patches)  # to be read again next time
            raise
        where = f"{unit.name} row " if unit.row else ""
        texts = [f"{where}{row}: {reason}" if where else reason for row, reason in bad.items()]
        self._write_record(unit, texts, written)
        parts.remove(self.out, unit.name)
        self._count(unit, texts)

    def _write_record(self, unit: Unit, bad_reads: Sequence[str], written: Sequence[Path]) -> None:
        record = {
            "fingerprint": unit.row.get("fingerprint", ""),
            "bad_reads": list(bad_reads),
            "files": {path.relative_to(self.out).as_posix(): path.stat().st_size for path in written},
        }
        files.write_json(self._record(unit.name), record)

    def finish(self) -> None:
        """Write the files that list all published units."""
        self._format.finish(self.out / FOLDER, sorted(self._published, key=lambda unit: unit.name))
        parts.remove_folder(self.out)

    def _count(self, unit: Unit, bad_reads: Sequence[str]) -> None:
        self._published.append(unit)
        self._summary.published += 1
        self.bad_reads += bad_reads

    def _record(self, name: str) -> Path:
        return self.out / _DONE / f"{name}.json"
