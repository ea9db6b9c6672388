"""What ``store verify`` checks of a slide's patch tokens: there where the manifest says, at places that exist."""

from typing import Any

import numpy as np
import numpy.typing as npt

from stores.errors import StoreError
from stores.format import arrays, features, layout, recipe, tokens
from stores.format.array_kinds import POSITIONS, TOKENS
from stores.format.chunks import read_chunk
from stores.format.metadata import SEEDS
from stores.verify.checks import SlideCheck


def check_tokens(check: SlideCheck, listed: npt.NDArray[np.int8]) -> None:
    """Note what is wrong with tokens and positions of a slide; nothing when the recipe has none and none are there.

    Parameters
    ----------
    listed : int8 (seed, row)
        0: not listed, 1: bad read, 2: ok.
    """
    if check.state.stored is None:
        return
    about, n_rows = check.state.stored.tokens, listed.shape[1]
    names = {leaf: layout.feature_array(check.slide_id, leaf) for leaf in tokens.LEAVES}
    if about is None:
        for file in check.files:
            if file.startswith(tuple(f"{name}/" for name in names.values())):
                check.add(file, "is of tokens, which the recipe does not have", "stray")
        return
    shape = SEEDS, n_rows, about.count
    rows = tokens.chunk_rows(n_rows, about.count, about.dim) if n_rows else 1
    of_positions = (1, features.block_rows(n_rows), about.count)
    specs = {
        "positions": check.array_of(names["positions"], POSITIONS, shape, of_positions),
        "tokens": check.array_of(
            names["tokens"], TOKENS, (*shape, about.dim), (1, rows, about.count, about.dim)
        ),
    }
    check.strays({names[leaf]: spec for leaf, spec in specs.items()})
    for leaf, spec in specs.items():
        if spec is not None:
            _check_chunks(check, names[leaf], spec, listed, about)


def _check_chunks(
    check: SlideCheck,
    name: str,
    spec: arrays.ArraySpec,
    listed: npt.NDArray[np.int8],
    about: recipe.Tokens,
) -> None:
    for seed, block, rows in check.blocks(listed):
        for start in range(rows.start, rows.stop, spec.chunks[1]):
            part = range(start, min(start + spec.chunks[1], rows.stop))
            at = (seed, start // spec.chunks[1], 0, 0)[: len(spec.chunks)]
            file = layout.chunk_file(name, at)
            mine = listed[seed, part.start : part.stop]
            place: dict[str, Any] = {"block": block, "seeds": range(seed, seed + 1), "rows": part}
            if file not in check.state.listed:
                if (mine == 2).any():
                    check.add(file, "is missing: committed tokens are lost", "features", **place)
                continue
            try:
                chunk = read_chunk(check.state.store, name, spec, at)
                if chunk is None:
                    raise StoreError("was listed, and is gone")
            except StoreError as error:
                check.add(file, error, "features", **place)
                continue
            values = chunk[0, : len(part)]
            if values.dtype == np.int32:
                _check_positions(check, file, values[mine == 2], about, place)
            elif mine.any() or not (check.state.partial or (block, seed) in check.broken):
                check.judge_rows(file, "tokens", values.reshape(len(part), -1), mine, place)


def _check_positions(
    check: SlideCheck,
    file: str,
    positions: npt.NDArray[np.int32],
    about: recipe.Tokens,
    place: dict[str, Any],
) -> None:
    try:
        tokens.require_positions(positions, about, file)
    except StoreError:
        check.add(file, "has positions that are not ascending places in the grid", "features", **place)
