"""The kinds of arrays that a store has, and what the metadata of each say whatever the shape."""

from dataclasses import dataclass

from stores.format.int8 import ABSENT
from stores.format.metadata import FLOAT16, ONE_BYTE, PLAIN, Codecs
from stores.format.tokens import NO_POSITION


@dataclass(frozen=True, slots=True)
class ArrayKind:
    """What the metadata of an array say."""

    leaf: str
    """The last part of its name; ``pixels`` where that is a slide."""
    dtype: str
    codecs: Codecs
    fill: float | str
    """As JSON has it."""


FEATURES = ArrayKind("features", "float16", FLOAT16, "NaN")
COMPACT = ArrayKind("features", "int8", ONE_BYTE, ABSENT)
COORDS = ArrayKind("coords", "int32", PLAIN, 0)
STATS = ArrayKind("stats", "float64", PLAIN, "NaN")
SCALES = ArrayKind("scales", "float32", PLAIN, "NaN")
STANDARD = ArrayKind("standard", "float32", PLAIN, "NaN")
TOKENS = ArrayKind("tokens", "float16", FLOAT16, "NaN")
POSITIONS = ArrayKind("positions", "int32", PLAIN, NO_POSITION)
ATTENTION = ArrayKind("attention", "float16", FLOAT16, "NaN")
PIXELS = ArrayKind("pixels", "uint8", ONE_BYTE, 0)
KINDS = {
    (kind.leaf, kind.dtype): kind
    for kind in (FEATURES, COMPACT, COORDS, STATS, SCALES, STANDARD, TOKENS, POSITIONS, ATTENTION, PIXELS)
}
"""By leaf and data type."""
