"""What the planning process knows of an encoder that its workers load."""

from dataclasses import dataclass
from typing import Self

import cv2
import openslide

from pipeline.encoders.attention import ATTENTION_RULE, require_attention
from pipeline.encoders.encoder import token_grid
from pipeline.inference.loaded import OnDevice
from pipeline.slides.resample import RESAMPLING
from pipeline.views.draw import RENDERING, TOKEN_RULE
from stores.errors import OptionError
from stores.format import recipe
from stores.format.terms import Terms


@dataclass(frozen=True, slots=True)
class EncoderFacts:
    """What the planning process has to know of an encoder, since it does not load it itself."""

    identity: recipe.Teacher
    tokens: recipe.Tokens | None
    attention: recipe.Attention | None
    dtype_reason: str
    device: str
    terms: tuple[Terms, ...]
    compile_seconds: float | None
    """What compiling it took; None where it is not compiled."""
    warning: str = ""
    """What may be wrong with its description."""
    resizable: tuple[str, int] | None = None
    """See `pipeline.encoders.encoder.Encoder.resizable`."""

    @classmethod
    def of(
        cls,
        loaded: OnDevice,
        tokens: recipe.Tokens | None = None,
        attention: recipe.Attention | None = None,
    ) -> Self:
        """The facts of an encoder that is loaded."""
        return cls(
            loaded.identity,
            tokens,
            attention,
            loaded.dtype_reason,
            str(loaded.device),
            loaded.encoder.terms,
            loaded.compile_seconds,
            loaded.encoder.preset.warning,
            loaded.encoder.resizable,
        )

    def described(self) -> str:
        """One line: which encoder computes on which device, and in which arithmetic."""
        text = f"{self.identity.name} on {self.device}: {self.identity.dtype}, because {self.dtype_reason}"
        if self.compile_seconds is not None:
            text += f"; compiled in {self.compile_seconds:.0f} s"
        return f"{text}; warning: {self.warning}" if self.warning else text


def token_recipe(loaded: OnDevice, count: int | None) -> recipe.Tokens | None:
    """What the recipe says of the tokens that ``--tokens`` asks for; None for none.

    Raises
    ------
    EncoderError
        When the encoder has no grid of patch tokens.
    OptionError
        When its views have fewer.
    """
    if count is None:
        return None
    grid, dim = token_grid(loaded.encoder)
    if count > grid**2:
        raise OptionError(
            f"--tokens {count}: a view of {loaded.identity.name} has {grid}x{grid}; allowed is 1 to {grid**2}"
        )
    return recipe.Tokens(count, grid, dim, TOKEN_RULE)


def attention_recipe(loaded: OnDevice, asked: bool) -> recipe.Attention | None:
    """What the recipe says of the attention that ``--attention`` asks for; None for none.

    Raises
    ------
    EncoderError
        When the encoder has no class token whose attention can be read.
    """
    if not asked:
        return None
    require_attention(loaded.encoder)
    return recipe.Attention(token_grid(loaded.encoder)[0], ATTENTION_RULE)


def reader_identity() -> recipe.Reader:
    """The software in this process that decides pixels."""
    return recipe.Reader(
        openslide=openslide.__library_version__,
        opencv=cv2.__version__,
        resampling=RESAMPLING,
        rendering=RENDERING,
        colour="as stored",
    )
