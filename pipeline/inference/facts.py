"""What the planning process knows of an encoder that its workers load."""

from dataclasses import dataclass

import cv2
import openslide

from pipeline.inference.loaded import OnDevice
from pipeline.slides.resample import RESAMPLING
from pipeline.views.draw import RENDERING
from stores.format import recipe


@dataclass(frozen=True, slots=True)
class TeacherFacts:
    """What the process that plans has to know of the teacher, which it does not load itself."""

    identity: recipe.Teacher
    tokens: recipe.Tokens | None
    dtype_reason: str
    device: str
    licence: str
    compile_seconds: float | None
    """What compiling it took; None where it is not compiled."""

    def described(self) -> str:
        """One line of what computes where."""
        text = f"{self.identity.name} on {self.device}: {self.identity.dtype}, because {self.dtype_reason}"
        if self.compile_seconds is None:
            return text
        return f"{text}; compiled in {self.compile_seconds:.0f} s"


def reader_identity() -> recipe.Reader:
    """The software in this process that decides pixels."""
    return recipe.Reader(
        openslide=openslide.__library_version__,
        opencv=cv2.__version__,
        resampling=RESAMPLING,
        rendering=RENDERING,
        colour="as stored",
    )


def facts_of(encoder: OnDevice, tokens: recipe.Tokens | None = None) -> TeacherFacts:
    """What there is to know of an encoder that is loaded."""
    where = str(encoder.device)
    licence, seconds = encoder.encoder.licence, encoder.compile_seconds
    return TeacherFacts(encoder.identity, tokens, encoder.dtype_reason, where, licence, seconds)


@dataclass(frozen=True, slots=True)
class _Loaded:
    teacher: OnDevice

    def close(self) -> None: ...
