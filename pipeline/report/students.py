"""The student of a run, after and before its training, as far as it can be loaded without trusting the run.

A run may come from another lab. Its files may describe an architecture and hold tensors; they start no code, download
nothing and open no path. What needs one of these is left out, unless the user names it: ``--student``.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.encoders.class_tokens import with_class_tokens
from pipeline.encoders.encoder import Encoder
from pipeline.encoders.load import load_encoder
from pipeline.encoders.presets import PRESETS
from pipeline.encoders.timm_models import is_timm, timm_preset
from pipeline.report.options import ReportOptions
from stores.errors import EncoderError, OptionError
from stores.io import files
from stores.io.text import one_line


def students_of(
    run: Path, recorded: Mapping[str, Any], options: ReportOptions
) -> tuple[Encoder | None, Encoder | None, list[str]]:
    """The trained student, the student as the run began with it, and what was left out and why.

    Parameters
    ----------
    recorded
        The options of the run, from its ``options.json``.

    Raises
    ------
    EncoderError
        When the student's folder is damaged, or what ``--student`` names cannot be loaded.
    """
    folder = run / "student"
    if not (folder / "config.json").exists():
        return None, None, []  # not exported yet
    config = files.read_json(folder / "config.json", inside=run)
    name = one_line(recorded.get("student"))
    if isinstance(config, dict) and "architecture" in config:
        trained = load_encoder(str(folder))
    elif options.student is not None:
        trained = load_encoder(options.student, weights=folder)
    else:
        note = f"the student is left out: a function made it ({name}), and the files of a run start no code"
        return None, None, [f"{note}; if you trust it, name the function: --student MODULE:FUNCTION"]
    before, why = _begun_with(recorded, name, trained, options)
    return trained, before, [why] if why else []


def _begun_with(
    recorded: Mapping[str, Any], name: str, trained: Encoder, options: ReportOptions
) -> tuple[Encoder | None, str]:
    """The student before its training, or why it was left out."""
    seed = recorded.get("random_weights")
    seed = seed if type(seed) is int else None
    if options.student is not None:
        if options.random_weights is not None:
            seed = options.random_weights
        found = load_encoder(
            options.student, weights=options.weights, random_weights=None if options.weights else seed
        )
        found = _seeing_what(trained, found)
        if found.dim != trained.dim:
            raise OptionError(
                f"--student {options.student}: gives {found.dim} numbers, the student of the run {trained.dim}"
            )
        return found, ""
    why = f"the student before training is left out: the run began with {name}"
    if seed is None:
        return (
            None,
            f"{why} and weights from elsewhere; name them: --student ENCODER, with --weights PATH or without",
        )
    if not _is_description(name):
        return (
            None,
            f"{why}, and the files of a run neither start code nor download; name it: --student ENCODER",
        )
    try:
        described = PRESETS[name] if name in PRESETS else timm_preset(name.removeprefix("timm:"))
        if trained.preset.params - described.params not in _more(trained):
            return None, f"{why}, which has another size than its student"
        return _seeing_what(trained, load_encoder(name, random_weights=seed)), ""
    except EncoderError as error:
        return None, f"{why}: {error}"


def _more(trained: Encoder) -> tuple[int, ...]:
    """Parameters that a training may have added: class tokens, with places of their own or without."""
    if trained.class_tokens == 1:
        return (0,)
    added = (trained.class_tokens - 1) * int(trained.backbone.embed_dim)  # type: ignore[arg-type]
    return 0, added, 2 * added


def _seeing_what(trained: Encoder, before: Encoder) -> Encoder:
    """`before` as the training began with it: with its class tokens, shown views at the resolution that it sees."""
    if trained.class_tokens > 1:
        before = with_class_tokens(before, trained.class_tokens)
    if before.shrink == trained.shrink:
        return before
    return before.for_views(trained.image_px // trained.shrink).shrinking(trained.shrink)


def _is_description(name: str) -> bool:
    """Whether a name says an architecture that is known here: nothing to start, nothing to download."""
    return name in PRESETS or (not Path(name).exists() and is_timm(name.removeprefix("timm:")))
