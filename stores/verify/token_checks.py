"""What ``store verify`` checks of a slide's patch tokens: there where the manifest says, at places that exist."""

from typing import Any

import numpy as np
import numpy.typing as npt

from stores.errors import StoreError
from stores.format import features, layout, recipe, tokens
from stores.format.array_kinds import POSITIONS, TOKENS
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
        if spec is None:
            continue
        for file, values, mine, place in check.chunks_beside(names[leaf], spec, listed, "tokens are lost"):
            if leaf == "positions":
                _check_positions(check, file, values[mine == 2], about, place)
            else:
                check.judge_beside(file, "tokens", values, mine, place)


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
