"""Requirements of every protocol on its inputs. An EvaluationError names the first violation."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from stores.errors import EvaluationError

_BLOCK_BYTES = 64 << 20


def row_blocks(n_rows: int, row_bytes: int, block_bytes: int = _BLOCK_BYTES) -> Iterator[slice]:
    """Slices of rows, each of about `block_bytes`."""
    step = max(1, block_bytes // max(row_bytes, 1))
    for start in range(0, n_rows, step):
        yield slice(start, min(start + step, n_rows))


def require_features(name: str, x: npt.NDArray[Any], n_min: int = 1) -> None:
    """Raise unless `x` is a matrix of at least `n_min` rows of finite numbers."""
    if x.ndim != 2 or x.shape[1] == 0 or not np.issubdtype(x.dtype, np.floating):
        raise EvaluationError(
            f"{name}: {x.dtype} {x.shape}; a matrix (samples, numbers) of floats is expected"
        )
    if len(x) < n_min:
        raise EvaluationError(f"{name}: {len(x)} samples; at least {n_min} are needed")
    for rows in row_blocks(len(x), x.shape[1] * 8):
        bad = ~np.isfinite(x[rows]).all(axis=1)
        if bad.any():
            raise EvaluationError(
                f"{name}: the embedding of sample {rows.start + int(bad.argmax())} is not finite"
            )


def codes_of(name: str, values: Sequence[Any], n: int) -> tuple[npt.NDArray[np.int64], list[str]]:
    """Integers from 0 for the values of a column, in the order of their text, and the text of each integer.

    >>> codes_of("label", ["b", "a", "b"], 3)
    (array([1, 0, 1]), ['a', 'b'])
    """
    if len(values) != n:
        raise EvaluationError(f"{name}: {len(values)} values for {n} samples")
    empty = next((i for i, value in enumerate(values) if value is None or value == ""), None)
    if empty is not None:
        raise EvaluationError(f"{name}: sample {empty} has none; leave such samples out first")
    names = sorted({str(value) for value in values})
    if all(name.isdecimal() for name in names):
        names.sort(key=int)
    number = {name: i for i, name in enumerate(names)}
    return np.array([number[str(value)] for value in values], np.int64), names


def require_classes(name: str, codes: npt.NDArray[np.int64], n_min: int = 2) -> None:
    """Raise unless at least `n_min` different values are there."""
    found = len(np.unique(codes))
    if found < n_min:
        raise EvaluationError(
            f"{name}: {found} different value{'s' * (found != 1)}; at least {n_min} are needed"
        )
