"""``g2l export``: write an encoder for another runtime, run what was written, and publish it if it agrees."""

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline.encoders.apply import embed
from pipeline.encoders.encoder import Encoder
from pipeline.encoders.export import weights_sha256
from pipeline.encoders.load import load_encoder
from pipeline.export import card
from pipeline.export.base import Job, Run
from pipeline.export.check import Agreement, Features, compare, features_of
from pipeline.export.graph import Views
from pipeline.export.options import ExportOptions
from pipeline.export.pixels import stored_views, tiles_as_views
from pipeline.export.registry import format_of
from pipeline.runtime.options import to_json
from pipeline.runtime.work import threads_of
from stores.errors import EncoderError, OptionError, StoreError
from stores.format.recipe import load_complete
from stores.format.terms import objections
from stores.io.files import LOGS, first_line, read_json, write_json, write_text
from stores.io.foreign import TEXT_BYTES, read_regular
from stores.io.location import StoreLike
from stores.io.progress import Reporter
from stores.io.staging import REQUEST, staged
from stores.io.text import human_bytes, one_line

_BATCH = 16


@dataclass(frozen=True, slots=True)
class Exported:
    """What ``export`` wrote, and how near it is to the original."""

    out: Path
    facts: dict[str, Any]
    """The content of ``export.json``."""
    sizes: dict[str, int]
    """Bytes by name of file; empty where nothing was written."""
    agreement: Agreement
    agrees: bool
    """Whether it is as near to the original as was asked for. If not, nothing is in `out`."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"out": str(self.out), "agrees": self.agrees, **self.facts, "bytes": self.sizes}

    def lines(self) -> list[str]:
        """The same to read."""
        least = self.facts["comparison"]["min_cosine"]
        lines = [self.agreement.line()]
        if not self.agrees:
            return [
                *lines,
                f"wrong: the export is not the encoder: allowed is a smallest cosine of {least:g} (--min-cosine); "
                "nothing was written",
            ]
        barred = self.facts["not_commercial"]
        if barred:
            lines.append(f"commercial use is barred by the licence of {one_line(', '.join(barred), 500)}")
        lines += [f"{self.out / name}: {human_bytes(size)}" for name, size in self.sizes.items()]
        return lines


def export(
    name: str,
    out: Path,
    options: ExportOptions,
    store: StoreLike | None,
    report: Reporter,
    repository: str | None = None,
) -> Exported:
    """Export the encoder `name`, or the student of the run of that name.

    Parameters
    ----------
    repository : str, optional
        ``OWNER/NAME`` on the Hugging Face hub, where it will be pushed to, with ``@BRANCH``.

    Raises
    ------
    OptionError
        For a value that is not allowed, a package that is missing, and terms that forbid it.
    EncoderError
        When the encoder cannot be loaded, or not be written in this format.
    StoreError
        When the store has no views.
    """
    options.validate()
    _require_pixels(options, store)
    folder = _student_folder(name)
    made = format_of(options.format)
    report.note(f"loading {one_line(str(folder or name))}")
    encoder = load_encoder(
        str(folder or name),
        weights=options.weights,
        random_weights=options.random_weights,
        pooling=options.pooling,
    )
    against_it = objections(encoder.terms)
    if against_it and options.permission is None:
        raise OptionError(
            f"{one_line(encoder.name)}: terms speak against passing on what is made of it: "
            f"{one_line('; '.join(against_it), 1000)}. If you may do it all the same, say in a sentence by what "
            "right; the card quotes it: --permission TEXT"
        )
    extra = _extra(folder)
    if against_it and options.permission is not None:
        extra = extra | {"permission": options.permission}
    mpp = options.mpp or _mpp(encoder, extra, store)
    made.require(Job(encoder, options.takes, options.dtype, mpp, extra, repository))
    views, against = _pixels(encoder, options, store)
    encoder = encoder.for_views(views.shape[1]).eval()
    report.note(f"computing the features of {len(views)} views")
    original = embed(encoder, views, _BATCH, torch.device("cpu"), torch.float32).numpy()
    identity = weights_sha256(encoder)
    if options.dtype == "float16":
        encoder = encoder.half()
    job = Job(encoder, options.takes, options.dtype, mpp, extra, repository)
    request = {"encoder": name, "weights_sha256": identity, **to_json(options)}
    student_card = None if folder is None else _card_of(folder)
    evidence = {} if folder is None or repository is None else _evidence(folder)
    try:
        with _published(out, request) as stage:
            report.note(f"writing {options.format}")
            made.write(job, stage)
            if student_card is not None:
                write_text(stage / card.STUDENT_CARD, student_card)
            report.note("comparing it with the original")
            agreement = _compared(
                job, original, _run(job, options.format, made.opened(job, stage), views), views
            )
            written = _sizes(stage)
            files = {file: _sha256(stage / file) for file in written}
            facts = card.facts(job, options, agreement, against, identity, made, files)
            if not agreement.passes(options.least_cosine):
                raise _NotTheOriginal
            readme = card.card(
                job,
                options,
                agreement,
                against,
                made,
                written,
                against_it,
                student_card is not None,
                evidence,
                {} if repository is None else files,
            )
            write_text(stage / card.CARD, readme)
            write_json(stage / card.FACTS, facts)
            sizes = _sizes(stage)
    except _NotTheOriginal:
        return Exported(out, facts, {}, agreement, agrees=False)
    return Exported(out, facts, sizes, agreement, agrees=True)


def _run(job: Job, name: str, run: Run, views: Views) -> Features:
    """Features of the written files; EncoderError when the runtime fails on them."""
    try:
        return features_of(run, views)
    except Exception as error:  # runtimes have errors of their own, without a common base
        raise EncoderError(
            f"{job.encoder.name}: what was written as {name} cannot be run ({first_line(error)}); choose another format"
        ) from error


def _compared(job: Job, original: Features, found: Features, views: Views) -> Agreement:
    """How near the written files are to the original; in float16 the worse of them and of torch.

    ONNX Runtime computes a float16 file in float32 on a CPU. Numbers that overflow on a GPU would not show.
    """
    agreement = compare(original, found)
    if job.dtype != "float16":
        return agreement
    half = embed(job.encoder, views, _BATCH, torch.device("cpu"), torch.float32).numpy()
    return min(agreement, compare(original, half), key=lambda each: each.rank)


def _student_folder(name: str) -> Path | None:
    """The folder of an encoder: of a run its student; None where `name` is no folder."""
    path = Path(name).expanduser()
    if not path.is_dir():
        return None
    inner = path / "student"
    return inner if not (path / "config.json").is_file() and (inner / "config.json").is_file() else path


class _NotTheOriginal(Exception):
    """Leaves the folder of an export that differs, so that it is not published."""


@contextmanager
def _published(out: Path, request: dict[str, Any]) -> Iterator[Path]:
    """A folder that becomes `out` as a whole; after an error nothing is left of it."""
    with staged(out, request) as stage:
        _clear(stage, LOGS, REQUEST)  # of a command that was killed
        try:
            yield stage
        except BaseException:
            _clear(stage, LOGS)
            raise


def _clear(stage: Path, *kept: str) -> None:
    for path in stage.iterdir():
        if path.name not in kept:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _require_pixels(options: ExportOptions, store: StoreLike | None) -> None:
    if (store is None) == (not options.patches):
        raise OptionError(
            "--store and --patches: give one of them; what is written is run on these pixels and compared with the "
            "original"
        )
    if options.slides and store is None:
        raise OptionError("--slides: are the slides of --store; leave it out")


def _pixels(encoder: Encoder, options: ExportOptions, store: StoreLike | None) -> tuple[Views, str]:
    """The views to compare on, and what they are in words."""
    if store is None:
        views = tiles_as_views(options.patches, encoder.image_px, options.views)
        return views, f"{len(views)} tiles"
    threads = threads_of(options.threads, None)
    views = stored_views(store, options.slides, options.views, threads)
    return views, f"{len(views)} stored views (store recipe {load_complete(store).digest()})"


def _mpp(encoder: Encoder, extra: dict[str, Any], store: StoreLike | None) -> float | None:
    """Micrometres per pixel: of the training, else of the encoder, else of the store that was named."""
    trained = extra.get("patch_mpp")
    if isinstance(trained, int | float) and not isinstance(trained, bool) and 0.01 <= trained <= 100:
        return float(trained)
    if encoder.mpp is not None or store is None:
        return encoder.mpp
    return float(load_complete(store).patch.mpp)


def _extra(folder: Path | None) -> dict[str, Any]:
    """What the student's ``config.json`` keeps of its training."""
    if folder is None or not (folder / "config.json").is_file():
        return {}
    config = read_json(folder / "config.json", finite=True)
    ours = config.get("g2l") if isinstance(config, dict) else None
    extra = ours.get("extra") if isinstance(ours, dict) else None
    return extra if isinstance(extra, dict) else {}


def _evidence(folder: Path) -> dict[str, float]:
    """What the summary of a run says of its student and the teacher; empty where there is none."""
    path = folder.parent / "summary.json"
    if folder.name != "student" or not path.is_file():
        return {}
    found = read_json(path, finite=True, inside=folder.parent)
    about = found.items() if isinstance(found, dict) else ()
    return {name: float(value) for name, value in about if type(value) in (int, float) and abs(value) < 1e9}


def _card_of(folder: Path) -> str | None:
    """The card of a student, which goes along; None where there is none, or none that can be read."""
    try:
        return read_regular(folder / "README.md", TEXT_BYTES, folder).decode("utf-8")
    except (OSError, ValueError, StoreError):
        return None


def _sizes(stage: Path) -> dict[str, int]:
    """Bytes of what is published, by name."""
    files = (path for path in sorted(stage.iterdir()) if path.is_file() and path.name != REQUEST)
    return {path.name: path.stat().st_size for path in files}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
