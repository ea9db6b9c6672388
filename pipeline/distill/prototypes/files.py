"""Prototypes of the teacher's space, as ``g2l prototypes`` fits them and stage two reads them.

``prototypes.safetensors``  ``features.*`` and, where the store has tokens, ``tokens.*``: see `Space`
``prototypes.json``         options, figures, and the digest of the store's recipe
"""

import sys
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import numpy.typing as npt
import safetensors.numpy

from pipeline.encoders.tensor_files import require_safetensors
from stores.errors import DistillError, OptionError
from stores.io import files
from stores.io.files import first_line
from stores.io.foreign import open_regular

TENSORS = "prototypes.safetensors"
ABOUT = "prototypes.json"
SPACES = ("features", "tokens")


@dataclass(frozen=True, slots=True)
class Space:
    """Prototypes of the features, or of the tokens; float32 arrays.

    A vector is assigned after ``(x - mean) / std`` and division by its norm, by its cosines to the prototypes.
    """

    mean: npt.NDArray[np.float32]
    """(D,), of the training split."""
    std: npt.NDArray[np.float32]
    """(D,), above 0."""
    prototypes: npt.NDArray[np.float32]
    """(K, D), of norm 1."""
    centre: npt.NDArray[np.float32]
    """(K,), mean cosine of the training split to each prototype."""


def save(folder: Path, spaces: dict[str, Space]) -> None:
    """Write the tensors, atomically."""
    tensors = {
        f"{name}.{f.name}": getattr(space, f.name) for name, space in spaces.items() for f in fields(Space)
    }
    with files.replacing(folder / TENSORS) as partial:
        safetensors.numpy.save_file(tensors, partial)


def load(folder: Path, store_recipe: str, wanted: dict[str, int]) -> dict[str, Space]:
    """Read prototypes that may come from another lab.

    Parameters
    ----------
    store_recipe : str
        Digest of the store's recipe.
    wanted
        The spaces that are needed, and the length of their vectors.

    Raises
    ------
    OptionError
        When there are no prototypes, they belong to another store, or tokens are needed and missing.
    DistillError
        When the files are damaged.
    """
    if not (folder / ABOUT).is_file() or not (folder / TENSORS).is_file():
        raise OptionError(
            f"--prototypes {folder}: no finished prototypes there; make them with `g2l prototypes`"
        )
    files.require_utf8(folder)
    try:
        about = files.read_object(folder / ABOUT, inside=folder)
        open_regular(folder / TENSORS, sys.maxsize, inside=folder).close()
        require_safetensors(folder / TENSORS)
        tensors = safetensors.numpy.load_file(folder / TENSORS)
    except Exception as error:  # the errors of safetensors and of numpy for its types have no base class
        raise DistillError(f"--prototypes {folder}: damaged ({first_line(error)}); fit them again") from None
    if about.get("store_recipe") != store_recipe:
        made = str(about.get("store_recipe"))[:12]
        raise OptionError(
            f"--prototypes {folder}: fitted on a store with recipe {made}, this one has {store_recipe[:12]}; "
            "fit them again (with several stores, NAME=DIR gives each its own)"
        )
    return {name: _space(tensors, name, dim, folder) for name, dim in wanted.items()}


def _space(tensors: dict[str, npt.NDArray[np.float32]], name: str, dim: int, folder: Path) -> Space:
    if f"{name}.prototypes" not in tensors:
        raise OptionError(
            f"--prototypes {folder}: has no prototypes of {name}; extract with --tokens and fit them again"
        )
    found = {f.name: tensors.get(f"{name}.{f.name}", np.empty(0, np.float32)) for f in fields(Space)}
    count = len(found["prototypes"])
    shapes = {"mean": (dim,), "std": (dim,), "prototypes": (count, dim), "centre": (count,)}
    for part, shape in shapes.items():
        value = found[part]
        if value.shape != shape or value.dtype != np.float32 or not np.isfinite(value).all():
            raise DistillError(
                f"--prototypes {folder}: {name}.{part} is {value.dtype} {value.shape}, expected finite float32 {shape}"
            )
    if count < 2:
        raise DistillError(f"--prototypes {folder}: {count} prototypes of {name}, at least 2 are expected")
    if not (found["std"] > 0).all():
        raise DistillError(f"--prototypes {folder}: {name}.std has a value that is not above 0")
    return Space(**found)
