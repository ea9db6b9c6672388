"""The options of every stage as frozen dataclasses, shared by command line, Python, config file and written JSON.

A field is the option ``--name-with-dashes``, the key in
``--config FILE.yaml`` and the key in ``options/*.json``. Its metadata say how ``--help`` shows it. Options that several
commands have (weights, device, threads, ...) are small dataclasses from which the options of a command inherit.
This module imports nothing heavy, so that ``--help`` stays quick.
"""

import functools
import os
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, SupportsIndex

from stores.errors import OptionError

ENCODER, VIEWS, TILES, MACHINE = "Encoder", "Views", "Tiling", "Machine"
"""Headings that several commands have in their help."""
NO_WORDS: Mapping[str, str] = types.MappingProxyType({})


def option(
    default: Any,
    text: str,
    *,
    choices: Sequence[str] | None = None,
    older: Mapping[str, str] = NO_WORDS,
    metavar: str | None = None,
    heading: str = "",
    shown: str | None = None,
    command_line_only: bool = False,
) -> Any:
    """A dataclass field with what the help page shows about it.

    Parameters
    ----------
    text
        One or two short sentences.
    choices
        The allowed values, where they are a list.
    older
        Words of earlier versions that are still understood, and the choice that each stands for today.
    metavar
        What stands for the value, such as ``FILE``; by default it follows from the type.
    heading
        Heading of the help page under which the option stands; empty for the first one.
    shown
        The default in words, where the default itself is None or says too little.
    command_line_only
        Whether a file of options may not set it: such a file may come from somebody else.
    """
    about: dict[str, Any] = {"help": text, "choices": choices, "metavar": metavar, "heading": heading}
    about |= {"shown": shown, "older": older, "command_line_only": command_line_only}
    return field(default=default, metadata=about)


@functools.cache
def types_of(kind: type) -> dict[str, Any]:
    """The type of each field of an options dataclass."""
    hints = typing.get_type_hints(kind)
    return {f.name: hints[f.name] for f in fields(kind)}


def not_none(hint: Any) -> Any:
    """A type without ``| None``.

    >>> not_none(int | None), not_none(str)
    (<class 'int'>, <class 'str'>)
    """
    if not _is_union(hint):
        return hint
    return typing.Union[tuple(t for t in typing.get_args(hint) if t is not types.NoneType)]  # noqa: UP007


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (types.UnionType, typing.Union)


def to_json(options: Any) -> dict[str, Any]:
    """Options as plain JSON types; paths become text."""
    return {key: _plain(value) for key, value in asdict(options).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def from_json(kind: Any, value: Mapping[str, Any]) -> Any:
    """Options from plain values: what `to_json` wrote, parsed YAML, or keywords of a call.

    Raises
    ------
    OptionError
        For an unknown name, and for a value of another type or none of the choices.
    """
    known = types_of(kind)
    for key in value:
        if key not in known:
            raise OptionError(f"option {key!r}: not one of {', '.join(known)}")
    return kind(**{key: _chosen(kind, key, convert(known[key], item, key)) for key, item in value.items()})


def _chosen(kind: Any, name: str, value: Any) -> Any:
    """`value`, in today's word; OptionError when the option has choices and this is none of them."""
    about = kind.__dataclass_fields__[name].metadata
    choices = about.get("choices")
    if choices is None or value is None:
        return value
    value = about["older"].get(value, value)
    require(value in choices, name, value, ", ".join(choices))
    return value


def word_of_today(kind: Any, name: str, value: Any) -> Any:
    """What a recorded value of an option is called today, where an earlier version had another word for it."""
    found = kind.__dataclass_fields__.get(name)
    older = {} if found is None else found.metadata.get("older", {})
    return older.get(value, value) if isinstance(value, str) else value


def convert(hint: Any, item: Any, name: str) -> Any:
    """`item` as a value of the type `hint`.

    >>> convert(tuple[int, ...], [1, 2], "k"), convert(Path, "a/b", "out"), convert(float, 1, "lr")
    ((1, 2), PosixPath('a/b'), 1.0)

    Raises
    ------
    OptionError
        When it is none.
    """
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        if isinstance(item, str) or not isinstance(item, Sequence):
            raise OptionError(f"option {name!r}: {item!r} is not a list; an item is {_word(inner[0])}")
        return tuple(convert(inner[0], each, name) for each in item)
    if origin is Literal:
        if item in inner:
            return item
    elif hint is types.NoneType:
        if item is None:
            return None
    elif _is_union(hint):
        for one in inner:
            try:
                return convert(one, item, name)
            except OptionError:
                continue
    elif isinstance(item, hint) and (hint is bool or not isinstance(item, bool)):
        return item
    elif isinstance(item, _TAKES.get(hint, ())) and not isinstance(item, bool):
        try:
            return hint(item)
        except ValueError:
            pass
    raise OptionError(f"option {name!r}: {item!r} is not {_word(hint)}")


_TAKES: dict[type, tuple[Any, ...]] = {
    Path: (str, os.PathLike),
    float: (str, SupportsIndex),
    int: (str, SupportsIndex),
    str: (os.PathLike,),
}
"""Types from which a value is made: YAML reads 1e-4 as text, and numpy has integers of its own."""


_WORDS = {
    int: "an integer",
    float: "a number",
    str: "text",
    bool: "true or false",
    Path: "a path",
    types.NoneType: "none",
}


def _word(hint: Any) -> str:
    if _is_union(hint):
        return " or ".join(_word(one) for one in typing.get_args(hint) if one is not types.NoneType)
    if typing.get_origin(hint) is Literal:
        return " or ".join(map(repr, typing.get_args(hint)))
    return _WORDS[hint]


def require(condition: bool, name: str, value: object, allowed: str) -> None:
    """Raise OptionError ``--name VALUE: allowed ...`` unless `condition` holds."""
    if not condition:
        raise OptionError(f"--{name.replace('_', '-')} {value}: allowed is {allowed}")


def require_one_or_more(options: Any, *names: str) -> None:
    """Raise OptionError unless each of the named options is None or at least 1."""
    for name in names:
        value = getattr(options, name)
        require(value is None or value >= 1, name, value, "1 or more")


def require_choices(options: Any) -> None:
    """Raise OptionError unless every option that has a list of choices has one of them: YAML and Python can say any."""
    for f in fields(options):
        choices, value = f.metadata.get("choices"), getattr(options, f.name)
        if choices and value is not None:
            require(value in choices, f.name, value, ", ".join(choices))


_CPUS = "number of CPUs"
_DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True, kw_only=True)
class WeightsOptions:
    """Which weights an encoder gets, when not the published ones."""

    weights: Path | None = option(
        None, "Checkpoint file or folder.", metavar="PATH", heading=ENCODER, shown="the published weights"
    )
    random_weights: int | None = option(
        None, "Seed of random weights: an encoder that was never trained.", metavar="SEED", heading=ENCODER
    )

    def validate(self) -> None:
        """Raise OptionError that names the first value that is not allowed."""
        if self.weights is not None and self.random_weights is not None:
            raise OptionError("--weights and --random-weights: give one of them")
        if self.weights is not None and not self.weights.exists():
            raise OptionError(f"--weights {self.weights}: no such file or folder")


@dataclass(frozen=True, kw_only=True)
class PoolingOptions:
    """How an encoder makes one feature of its tokens."""

    pooling: str | None = option(
        None,
        "cls, or cls joined with the mean of the patch tokens; of several class tokens also their mean.",
        choices=("cls", "cls+mean", "cls-average"),
        heading=ENCODER,
        shown="the encoder's own",
    )


@dataclass(frozen=True, kw_only=True)
class DeviceOptions:
    """Where an encoder runs."""

    device: str = option("auto", "auto, cpu, cuda, cuda:N or mps.", metavar="DEVICE", heading=MACHINE)


@dataclass(frozen=True, kw_only=True)
class ForwardOptions(DeviceOptions):
    """How an encoder runs where nothing is trained."""

    dtype: str = option("auto", "Arithmetic of the forward pass.", choices=_DTYPES, heading=MACHINE)
    batch_size: int | None = option(
        None, "Views of a forward pass.", heading=MACHINE, shown="256 on a GPU, 16 on a CPU"
    )
    channels_last: bool = option(
        False,
        "Keep images with their channels last, which is faster for most CNNs. Features change by rounding, about 1e-6.",
        heading=MACHINE,
    )
    trust_remote_code: bool = option(
        False,
        "Run the code of an hf-auto:OWNER/NAME@REVISION encoder on this machine.",
        heading=ENCODER,
        command_line_only=True,
    )

    def validate(self) -> None:
        """Raise OptionError that names the first value that is not allowed."""
        require_one_or_more(self, "batch_size")


@dataclass(frozen=True, kw_only=True)
class CompileOptions:
    """Whether an encoder is compiled first."""

    compile: bool = option(
        False,
        "Compile the encoder (torch.compile): takes half a minute or more, then it is faster.",
        heading=MACHINE,
    )


@dataclass(frozen=True, kw_only=True)
class ThreadsOptions:
    """How many threads work."""

    threads: int | None = option(None, "Threads that read and render.", heading=MACHINE, shown=_CPUS)

    def validate(self) -> None:
        """Raise OptionError that names the first value that is not allowed."""
        require_one_or_more(self, "threads")


@dataclass(frozen=True, kw_only=True)
class ReadingOptions(ThreadsOptions):
    """What reads and renders patches, and how many."""

    threads: int | None = option(None, "Number of readers.", heading=MACHINE, shown=_CPUS)
    readers: str = option(
        "auto",
        "What reads and renders patches: threads or processes.",
        choices=("auto", "threads", "processes"),
        heading=MACHINE,
        shown="auto: processes with a GPU, threads on a CPU",
    )


@dataclass(frozen=True, kw_only=True)
class ClusterOptions:
    """Where work runs. It changes no byte of a result on a CPU and is therefore in no recipe."""

    workers: int | None = option(
        None, "Processes on this machine that share the work.", heading=MACHINE, shown="this process alone"
    )
    scheduler: str | None = option(
        None,
        "Use the workers of this dask scheduler, such as tcp://host:8786.",
        metavar="URL",
        heading=MACHINE,
    )

    def validate(self) -> None:
        """Raise OptionError that names the first value that is not allowed."""
        require_one_or_more(self, "workers")
        if self.workers is not None and self.scheduler is not None:
            raise OptionError("--workers and --scheduler: give one of them")


IN_PROCESS = ClusterOptions()
