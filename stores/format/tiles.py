"""Patches that were cut from tiles: images of the user's, grouped, in the place of a slide.

A tile is known by its content: neither its name nor its place in a list decides a view. A group of tiles stands in the
slides table as a slide does; the tile of each patch stands in the patches table (`manifest.TILE`).
"""

import hashlib
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from stores.format.manifest import TILE, TILE_FILE, Patches
from stores.format.recipe import IN_TILES

GRID = IN_TILES
"""The grid of the recipe (`stores.format.recipe.Patch`): whole patches from the upper left corner of each tile."""
VENDOR = "tiles"
"""The vendor of a group, which no scanner made."""
PAIR, PATIENT = "pair", "patient_id"
"""Columns of a list of tiles: what shows one place, and of whom it is."""
_TILE = re.compile(r"rgb8-1:[0-9a-f]{32}")
_KEYED = re.compile(r"keyed-[bcdfghjklmnpqrst]{24}")


def fingerprint_of_tile(pixels: npt.NDArray[np.uint8]) -> str:
    """The identity of a tile: a hash of its decoded pixels, so that a lossless conversion of the file is the same tile.

    Parameters
    ----------
    pixels : uint8 (h, w, 3)
        RGB.
    """
    digest = hashlib.blake2b(f"g2l tile 1\n{pixels.shape[0]}\n{pixels.shape[1]}\n".encode(), digest_size=16)
    digest.update(np.ascontiguousarray(pixels).data)
    return f"rgb8-1:{digest.hexdigest()}"


def fingerprint_of_group(tiles: Iterable[str]) -> str:
    """The identity of a group: the SHA-256 of its tiles' fingerprints, sorted, each once, a line each."""
    text = "".join(f"{tile}\n" for tile in sorted(set(tiles)))
    return f"tiles-1:{hashlib.sha256(text.encode()).hexdigest()}"


def is_tile_name(name: str) -> bool:
    """Whether a name from a store may be looked for below a folder: relative, and not out of the folder again.

    >>> is_tile_name("TUM/a.png"), is_tile_name("../a.png"), is_tile_name("/a.png")
    (True, False, False)
    """
    parts = name.split("/")
    return bool(name) and "\\" not in name and "\0" not in name and not {"", ".", ".."} & set(parts)


def problems(patches: Patches, row: Mapping[str, Any], side: int) -> Iterator[str]:
    """What is wrong with the patches of a group, beyond what patches of slides can have.

    Parameters
    ----------
    row
        Of the slides table.
    side : int
        Of a patch, in pixels.
    """
    tile = patches.tile
    if tile is None:
        yield f"has no column {TILE}, which patches of tiles have"
        return
    tiles = tile.tolist()
    keyed = bool(tiles) and all(_KEYED.fullmatch(text) for text in tiles)
    if not keyed:
        odd = next((text for text in tiles if not _TILE.fullmatch(text)), None)
        if odd is not None:
            yield f"{TILE} {odd!r:.60} is no fingerprint of a tile"
        elif TILE_FILE not in patches.further:
            yield f"has no column {TILE_FILE}, which patches of tiles have"
        places = list(zip(tiles, patches.y_px0.tolist(), patches.x_px0.tolist(), strict=True))
        if any(a >= b for a, b in itertools.pairwise(places)):
            yield "patches are not in order of tile, y and x, each once"
        elif row["fingerprint"] != fingerprint_of_group(tiles):
            yield "the fingerprint in slides.parquet is not that of these tiles"
    for name in ("x_px0", "y_px0"):
        at = getattr(patches, name)
        if (at % side).any():
            yield f"{name} {at[at % side > 0][0]} is not on the grid of {side} pixels"
