"""Options of ``export``; imports nothing heavy."""

import re
from dataclasses import dataclass, fields
from pathlib import Path

from pipeline.runtime.options import (
    PoolingOptions,
    ThreadsOptions,
    WeightsOptions,
    option,
    require,
    require_choices,
)
from stores.errors import OptionError

FORMATS = ("onnx", "torchscript", "wsinfer", "hf")
INPUTS = ("uint8", "float")
DTYPES = {
    "onnx": ("float32", "float16", "int8"),
    "torchscript": ("float32", "float16"),
    "wsinfer": ("float32", "float16"),
    "hf": ("float32",),
}
"""Arithmetics by format."""
_OF_FLOATS = ("wsinfer", "hf")
"""Formats that the tool which runs them feeds normalised floats."""
LEAST_COSINE = {"float32": 0.9999, "float16": 0.999, "int8": 0.99}
CHECK = "Comparison with the original"


@dataclass(frozen=True, kw_only=True)
class GivenAwayOptions(ThreadsOptions, PoolingOptions, WeightsOptions):
    """On which pixels what is given away is compared with the encoder, and by what right it is given away."""

    permission: str | None = option(
        None,
        "By what right you export although the terms of a teacher forbid it: a sentence, which the card quotes.",
        metavar="TEXT",
        command_line_only=True,
    )
    patches: tuple[Path, ...] = option(
        (),
        "Compare on these tiles: image files, folders of them, HDF5 files, or a CSV. May be repeated.",
        metavar="PATH",
        heading=CHECK,
    )
    slides: tuple[Path, ...] = option(
        (),
        "Slide file or folder, for a store without pixels. May be repeated.",
        metavar="PATH",
        heading=CHECK,
    )
    views: int = option(64, "Views to compare on.", heading=CHECK)
    min_cosine: float | None = option(
        None,
        "Smallest cosine to the original's features; below it, nothing is written.",
        heading=CHECK,
        shown=", ".join(f"{value:g} for {name}" for name, value in LEAST_COSINE.items()),
    )


@dataclass(frozen=True, kw_only=True)
class PushOptions(GivenAwayOptions):
    """How a student becomes a repository of the Hugging Face hub."""

    public: bool = option(False, "Make a new repository public; else only you and your organisation see it.")
    revision: str | None = option(
        None, "Branch to push to, made where it is missing.", metavar="NAME", shown="main"
    )
    replace: bool = option(
        False, "Replace files of the same names that the repository holds; its history keeps them."
    )

    def as_export(self) -> "ExportOptions":
        """The export that is pushed."""
        kept = {each.name: getattr(self, each.name) for each in fields(GivenAwayOptions)}
        return ExportOptions(format="hf", **kept)

    def validate(self) -> None:
        """Raise OptionError that names the first value that is not allowed."""
        branch = self.revision
        allowed = branch is None or re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", branch) is not None
        require(allowed, "revision", branch, "the name of a branch: letters, digits, '.', '_', '-'")
        self.as_export().validate()


@dataclass(frozen=True, kw_only=True)
class ExportOptions(GivenAwayOptions):
    """Which files an encoder becomes."""

    format: str = option("", "What is written.", choices=FORMATS)
    input: str | None = option(
        None,
        "uint8 views, normalised inside; or float images that the caller has normalised.",
        choices=INPUTS,
        shown="uint8; float for wsinfer and hf",
    )
    dtype: str = option("float32", "Arithmetic of what is written.", choices=tuple(LEAST_COSINE))
    mpp: float | None = option(
        None,
        "Micrometres per pixel of the patches, for wsinfer.",
        metavar="X",
        shown="those that the student was trained on",
    )

    @property
    def takes(self) -> str:
        """``uint8`` or ``float``."""
        return self.input or ("float" if self.format in _OF_FLOATS else "uint8")

    @property
    def least_cosine(self) -> float:
        """The smallest cosine that is allowed."""
        return LEAST_COSINE[self.dtype] if self.min_cosine is None else self.min_cosine

    def validate(self) -> None:
        """Raise OptionError that names the first value that is not allowed."""
        require(self.format in FORMATS, "format", self.format or "(missing)", ", ".join(FORMATS))
        require_choices(self)
        dtypes = DTYPES[self.format]
        require(self.dtype in dtypes, "dtype", self.dtype, f"{', '.join(dtypes)} with --format {self.format}")
        if self.format in _OF_FLOATS and self.input == "uint8":
            raise OptionError(
                f"--input uint8: --format {self.format} is fed normalised floats by the tool that runs it; leave it out"
            )
        require(self.views >= 1, "views", self.views, "1 or more")
        require(0 < self.least_cosine <= 1, "min_cosine", self.min_cosine, "above 0, up to 1")
        require(self.mpp is None or 0.01 <= self.mpp <= 100, "mpp", self.mpp, "0.01 to 100")
        if self.mpp is not None and self.format != "wsinfer":
            raise OptionError("--mpp: is only written for --format wsinfer; leave it out")
        if self.permission is not None and not self.permission.strip():
            raise OptionError("--permission: is empty; say in a sentence by what right you export")
        ThreadsOptions.validate(self)
        WeightsOptions.validate(self)
