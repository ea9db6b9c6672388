"""``g2l push-student``: what ``export --format hf`` writes, as a repository of the Hugging Face hub.

Nothing is overwritten unasked: a repository that holds something else is named, and stays as it is.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.export.check import Agreement
from pipeline.export.export import export
from pipeline.export.options import PushOptions
from pipeline.runtime.version import g2l_version
from stores.errors import OptionError
from stores.io.location import StoreLike
from stores.io.progress import Reporter
from stores.io.text import counted, first_of, human_bytes, one_line
from stores.remote.hub import HubFile, Repository, parse_repository


@dataclass(frozen=True, slots=True)
class Pushed:
    """What ``push-student`` did, and how near it is to the original."""

    repository: str
    url: str
    private: bool | None
    """Whether others cannot see it; None where nothing was pushed."""
    uploaded: Mapping[str, int]
    """Bytes of the files that were not there, by name."""
    there: Sequence[str]
    """Files that were there, with the same content."""
    others: Sequence[str]
    """Files of the repository that are not of the student; they stay."""
    facts: dict[str, Any]
    """The content of ``export.json``."""
    agreement: Agreement
    agrees: bool
    """Whether it is as near to the original as was asked for. If not, nothing was pushed."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "repository": self.repository,
            "url": self.url,
            "private": self.private,
            "uploaded": dict(self.uploaded),
            "there": list(self.there),
            "others": list(self.others),
            "agrees": self.agrees,
            **self.facts,
        }

    def lines(self) -> list[str]:
        """The same to read."""
        if not self.agrees:
            least = self.facts["comparison"]["min_cosine"]
            return [
                self.agreement.line(),
                f"wrong: what was written is not the encoder: allowed is a smallest cosine of {least:g} "
                "(--min-cosine); nothing was pushed",
            ]
        seen = "private: make it public in its settings" if self.private else "public"
        sent = "nothing was uploaded, all of it is there" if not self.uploaded else "uploaded"
        lines = [self.agreement.line(), f"{self.url} ({seen}): {sent}"]
        barred = self.facts["not_commercial"]
        if barred:
            lines.append(f"commercial use is barred by the licence of {one_line(', '.join(barred), 500)}")
        lines += [f"  {name}: {human_bytes(size)}" for name, size in self.uploaded.items()]
        return lines + first_of(
            "not of the student, left there", [one_line(name, 200) for name in self.others]
        )


def push_student(
    name: str, to: str, options: PushOptions, store: StoreLike | None, report: Reporter
) -> Pushed:
    """Export the student of a run, or an encoder, and push it to the repository `to`, ``hf:OWNER/NAME``.

    Raises
    ------
    OptionError
        For a value that is not allowed, terms that forbid it, and a repository that holds something else.
    EncoderError
        When the encoder cannot be loaded, or timm cannot open it.
    StoreError
        When the store has no views, or the hub refuses or does not answer.
    """
    options.validate()
    repository = Repository(parse_repository(to), "model", options.revision)
    there = repository.listed()
    at = repository.name if options.revision is None else f"{repository.name}@{options.revision}"
    with tempfile.TemporaryDirectory(prefix="g2l-push-") as folder:
        made = export(name, Path(folder) / "student", options.as_export(), store, report, at)
        if not made.agrees:
            return Pushed(
                str(repository), repository.url, None, {}, (), (), made.facts, made.agreement, False
            )
        files = {path.name: path for path in sorted(made.out.iterdir()) if path.is_file()}
        missing, same, other = _compared(files, there or {})
        if other and not options.replace:
            raise OptionError(
                f"{repository}: holds something else: {_some(other)}. Choose another name, or a branch of its own with "
                "--revision NAME; --replace replaces files of these names by a commit, and its history keeps them"
            )
        repository.create(private=not options.public)
        sizes = {name: files[name].stat().st_size for name in missing}
        if missing:
            report.start("push", sum(sizes.values()))
            chosen = {name: files[name] for name in missing}
            repository.commit(chosen, f"Upload by g2l {g2l_version()}", report=report)
    others = sorted(set(there or ()) - set(files))
    return Pushed(
        str(repository),
        repository.url,
        repository.is_private,
        sizes,
        same,
        others,
        made.facts,
        made.agreement,
        True,
    )


def _compared(
    files: Mapping[str, Path], there: Mapping[str, HubFile]
) -> tuple[list[str], list[str], list[str]]:
    """Files to upload, files that are there, and what is there instead or besides, in words."""
    same = [name for name in files if name in there and there[name].is_same(files[name])]
    other = [f"{name} differs" for name in files if name in there and name not in same]
    other += [f"{one_line(name, 80)} is not of this student" for name in sorted(set(there) - set(files))]
    return [name for name in files if name not in same], same, other


def _some(texts: Sequence[str], most: int = 3) -> str:
    more = f", and {counted(len(texts) - most, 'file')} more" if len(texts) > most else ""
    return ", ".join(texts[:most]) + more
