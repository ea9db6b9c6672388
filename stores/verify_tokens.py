"""What ``store verify`` checks of a slide's patch tokens: there where the manifest says, at places that exist."""

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from stores import arrays, features, recipe, tokens
from stores.errors import StoreError

if TYPE_CHECKING:
    from stores.verify_slide import SlideCheck


def check_tokens(check: "SlideCheck", listed: npt.NDArray[np.int8]) -> None:
    """Note what is wrong with tokens and positions of a slide; nothing when the recipe has none and none are there.

    Parameters
    ----------
    listed : int8 (seed, row)
        0: not listed, 1: bad read, 2: ok.
    """
    names = {leaf: features.array_name(check.slide_id, leaf) for leaf in tokens.LEAVES}
    about = check.state.stored.tokens if check.state.stored is not None else None
    if about is None:
        for file in check.files if check.state.stored is not None else ():
            if file.startswith(tuple(f"{name}/" for name in names.values())):
                check.add(file, "is of tokens, which the recipe does not have", "stray")
        return
    n_rows = listed.shape[1]
    specs = check.token_arrays(names, about, n_rows)
    check.strays({names[leaf]: spec for leaf, spec in specs.items()})
    for leaf, spec in specs.items():
        expected = _chunks(n_rows, about)[leaf]
        if spec is not None and spec.chunks != expected:
            check.add(f"{names[leaf]}/zarr.json", f"chunks {spec.chunks}, expected {expected}", "metadata")
        elif spec is not None:
            judge = _positions if leaf == "positions" else _tokens
            for seed, block, rows in check.blocks(listed):
                for index, part in _parts(rows, spec.chunks[1]):
                    mine = listed[seed, part.start : part.stop]
                    judge(check, names[leaf], spec, (seed, block, index), part, mine, about)


def _chunks(n_rows: int, about: recipe.Tokens) -> dict[str, tuple[int, ...]]:
    rows = tokens.chunk_rows(n_rows, about.count, about.dim) if n_rows else 1
    size = features.block_rows(n_rows) if n_rows else 1
    return {"tokens": (1, rows, about.count, about.dim), "positions": (1, size, about.count)}


def _parts(rows: range, size: int) -> list[tuple[int, range]]:
    """The chunks of a block: index, and the rows in it."""
    starts = range(rows.start, rows.stop, size)
    return [(start // size, range(start, min(start + size, rows.stop))) for start in starts]


def _chunk(
    check: "SlideCheck",
    file: str,
    name: str,
    spec: arrays.ArraySpec,
    at: tuple[int, ...],
    ok: bool,
    **place: Any,
) -> npt.NDArray[Any] | None:
    """A chunk that is there and whole; otherwise None, and a finding where it is needed."""
    if file not in check.state.listed:
        if ok:
            check.add(file, "is missing: committed tokens are lost", "features", **place)
        return None
    try:
        return arrays.read_chunk(check.state.store, name, spec, at)
    except StoreError as error:
        check.add(file, error, "features", **place)
        return None


def _tokens(
    check: "SlideCheck",
    name: str,
    spec: arrays.ArraySpec,
    at: tuple[int, int, int],
    rows: range,
    listed: npt.NDArray[np.int8],
    about: recipe.Tokens,
) -> None:
    seed, block, index = at
    file = f"{name}/c/{seed}/{index}/0/0"
    place: dict[str, Any] = {"block": block, "seeds": range(seed, seed + 1), "rows": rows}
    chunk = _chunk(check, file, name, spec, (seed, index, 0, 0), bool((listed == 2).any()), **place)
    if chunk is None or (not listed.any() and (check.state.partial or (block, seed) in check.broken)):
        return
    check.judge_rows(file, "tokens", chunk[0, : len(rows)].reshape(len(rows), -1), listed, place)


def _positions(
    check: "SlideCheck",
    name: str,
    spec: arrays.ArraySpec,
    at: tuple[int, int, int],
    rows: range,
    listed: npt.NDArray[np.int8],
    about: recipe.Tokens,
) -> None:
    seed, block, index = at
    file = f"{name}/c/{seed}/{index}/0"
    place: dict[str, Any] = {"block": block, "seeds": range(seed, seed + 1), "rows": rows}
    chunk = _chunk(check, file, name, spec, (seed, index, 0), bool((listed == 2).any()), **place)
    if chunk is None:
        return
    try:
        tokens.require_positions(chunk[0, : len(rows)][listed == 2], about, name)
    except StoreError:
        check.add(file, "has positions that are not ascending places in the grid", "features", **place)
