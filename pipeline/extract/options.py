"""Options of ``extract-teacher`` and ``plan``; imports nothing heavy."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.runtime.options import (
    ENCODER,
    VIEWS,
    CompileOptions,
    ForwardOptions,
    ReadingOptions,
    WeightsOptions,
    option,
    require,
    require_one_or_more,
    types_of,
)
from stores.errors import OptionError
from stores.io.location import is_same

DEFAULT_SEEDS = 4
_SEEDS = "Views of a patch: the centre crop, and one augmented view for each further seed."


@dataclass(frozen=True, kw_only=True)
class ExtractOptions(CompileOptions, ReadingOptions, ForwardOptions, WeightsOptions):
    """Stage one: the teacher over every view of every patch."""

    teacher: str = option(
        "",
        "Preset, timm name, hf-hub:owner/name, folder, or module:function.",
        metavar="ENCODER",
        heading=ENCODER,
    )
    seeds: int = option(DEFAULT_SEEDS, _SEEDS, heading=VIEWS)
    policy: str = option("g2l", "Augmentation: g2l, none, hed, or a YAML file of your own.", heading=VIEWS)
    pixels: bool = option(
        False, "Keep the pixels of the patches, for labs that do not have the slides.", heading=VIEWS
    )
    tokens: int | None = option(
        None,
        "Keep N patch tokens of each view, at drawn positions. All 16x16 of a view take 786 KB.",
        heading=VIEWS,
        shown="none",
    )
    attention: bool = option(
        False,
        "Keep the attention of the class token to the patches, mean over the heads of the last block: 512 bytes a view "
        "of 16x16.",
        heading=VIEWS,
    )
    limit: int | None = option(
        None, "Stop after N patches in total, for trials.", heading=VIEWS, shown="no limit"
    )

    def validate(self) -> None:
        """Raise OptionError that names the first value that is not allowed."""
        require(
            bool(self.teacher), "teacher", "(missing)", "a preset (see `g2l models`) or a model of your own"
        )
        require(1 <= self.seeds <= 1000, "seeds", self.seeds, "1 to 1000")
        require_one_or_more(self, "limit", "tokens")
        if self.attention and self.compile:
            raise OptionError(
                "--attention and --compile: give one of them; attention is read from within the model"
            )
        ForwardOptions.validate(self)
        ReadingOptions.validate(self)
        WeightsOptions.validate(self)


SHARED = ("seeds", "policy", "limit", "threads", "readers")
"""What holds for all teachers that see the same views; any other of `ExtractOptions` may be one teacher's own."""


def require_distinct(stores: Sequence[Path], named: str = "store") -> None:
    """Raise OptionError when one of several stores, or folders of `embed`, is given twice or lies in another one."""
    whose, what = ("encoder", "folder") if named == "out" else ("teacher", "store")
    for a, b in itertools.combinations(stores, 2):
        if is_same(a, b):
            raise OptionError(f"--{named} {b}: given twice; each {whose} has a {what} of its own")
    for inner, outer in itertools.permutations(stores, 2):
        if outer.resolve() in inner.resolve().parents:
            raise OptionError(f"--{named} {inner}: lies in {outer}, a {what} too; give another folder")


def own_options(
    texts: Sequence[str],
    names: Sequence[str],
    kind: type = ExtractOptions,
    named: str = "store",
    shared: Sequence[str] = SHARED,
) -> list[dict[str, Any]]:
    """The options that ``--for NAME:OPTION=VALUE`` gives to single teachers, for each of `names`.

    >>> own_options(["b:tokens=64", "b:attention"], ["a", "b"])
    [{}, {'tokens': '64', 'attention': True}]

    Parameters
    ----------
    kind
        The options of the command.
    named
        What has the names, for messages: ``store``, ``teacher``, or ``out`` of an encoder.
    shared
        What holds for all of them.

    Raises
    ------
    OptionError
        For another name or option, and for what is given twice.
    """
    found: list[dict[str, Any]] = [{} for _ in names]
    kinds = types_of(kind)
    whose = "encoder" if named == "out" else "teacher"
    allowed = [n for n in kinds if n not in (*shared, whose, "store", "trust_remote_code")]
    for text in texts:
        name, _, said = text.partition(":")
        if name not in names:
            raise OptionError(
                f"--for {text}: begins with no {named} of this command; allowed: "
                + ", ".join(f"{name}:OPTION=VALUE" for name in names)
            )
        option_name, equals, value = said.partition("=")
        key = option_name.removeprefix("--").replace("-", "_")
        if key not in allowed:
            flags = ", ".join(each.replace("_", "-") for each in allowed)
            raise OptionError(f"--for {text}: {option_name} is no option of one {whose}; allowed: {flags}")
        own = found[names.index(name)]
        if key in own:
            raise OptionError(f"--for {text}: {option_name} is given twice for {name}")
        own[key] = value
        if kinds[key] is bool:
            words = {"": True, "true": True, "false": False}
            require(value in words, "for", text, f"{name}:{option_name}, or =true or =false behind it")
            own[key] = words[value]
        elif not equals or not value:
            raise OptionError(f"--for {text}: has no value; give {name}:{option_name}=VALUE")
    return found


@dataclass(frozen=True, kw_only=True)
class PlanOptions(ForwardOptions, WeightsOptions):
    """What ``plan`` calculates with; the tile options decide the patches."""

    teacher: str | None = option(
        None,
        "The teacher. Its name gives the feature length; --measure finds its speed.",
        metavar="ENCODER",
        heading=ENCODER,
    )
    store: Path | None = option(
        None, "Folder of the store that it is planned for; where it is begun, what is left to do is said."
    )
    seeds: int | None = option(
        None, _SEEDS, heading=VIEWS, shown=f"{DEFAULT_SEEDS}; for a store with views, its own"
    )
    pixels: bool = option(False, "Include the pixels of the patches.", heading=VIEWS)
    tokens: int | None = option(None, "Include N patch tokens of each view.", heading=VIEWS, shown="none")
    attention: bool = option(
        False, "Include the attention of the class token to the patches; needs --teacher.", heading=VIEWS
    )
    dim: int | None = option(
        None, "Feature length of a teacher that `g2l models` does not list.", heading=ENCODER
    )
    views_per_s: float | None = option(
        None, "Speed of the teacher in views per second, if you have measured it.", heading=ENCODER
    )
    measure: bool = option(False, "Load the teacher and measure its speed on this machine.", heading=ENCODER)

    def validate(self) -> None:
        """Raise OptionError that names the first value that is not allowed."""
        require(self.seeds is None or 1 <= self.seeds <= 1000, "seeds", self.seeds, "1 to 1000")
        require_one_or_more(self, "dim", "tokens")
        speed = self.views_per_s
        require(speed is None or speed > 0, "views_per_s", speed, "above 0")
        if self.attention and self.teacher is None:
            raise OptionError("--attention: needs --teacher, whose grid of patches decides its size")
        if self.measure and self.teacher is None:
            raise OptionError("--measure: needs --teacher, whose speed is measured")
        if self.measure and speed is not None:
            raise OptionError("--measure and --views-per-s: give one of them")
