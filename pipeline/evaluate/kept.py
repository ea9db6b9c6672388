"""Figures that were computed before, by what they follow from: a repeat after a kill computes what is not there yet.

A result is kept in ``OUT/figures/DIGEST.json``. The digest is over everything that decides it: the embeddings to the
bit and their columns, the options, the files that these name, the encoder that it is compared with, and the code.
So nothing has to be invalidated: another input is another file.
"""

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import pipeline.evaluate
import pipeline.metrics
from pipeline.evaluate.embeddings import Embeddings
from pipeline.evaluate.result import Difference, Result, Row
from pipeline.runtime.options import to_json
from stores.errors import G2LError
from stores.io.files import make_folder, read_object, write_json

_LIBRARIES = ("numpy", "scikit-learn", "scipy", "torch")


def digest_of(embeddings: Embeddings) -> str:
    """SHA-256 of the numbers and of all that describes them."""
    found = hashlib.sha256(np.ascontiguousarray(embeddings.x).data)
    columns = {name: list(map(str, values)) for name, values in embeddings.columns.items()}
    about = [embeddings.source, embeddings.encoder, embeddings.x.shape, columns, embeddings.left_out]
    found.update(json.dumps(about).encode())
    return found.hexdigest()


@functools.cache
def _software() -> dict[str, str]:
    """What else decides a figure: the source of the protocols, and the libraries under them."""
    source = hashlib.sha256()
    for room in (pipeline.evaluate, pipeline.metrics):
        for path in sorted(Path(str(room.__file__)).parent.glob("*.py")):
            source.update(path.read_bytes())
    return {"g2l": source.hexdigest()} | {name: importlib.metadata.version(name) for name in _LIBRARIES}


def key_of(protocol: str, options: Any, embeddings: Mapping[str, str | None], **about: Any) -> str:
    """The digest of all that decides a result.

    Parameters
    ----------
    embeddings
        `digest_of` the embeddings that have a part in it, by their part.
    about
        What else decides it.
    """
    values = to_json(options)
    files = {
        name: hashlib.sha256(Path(value).read_bytes()).hexdigest()
        for name, value in ((f.name, getattr(options, f.name)) for f in dataclasses.fields(options))
        if isinstance(value, Path) and value.is_file()
    }
    text = json.dumps([protocol, values, files, dict(embeddings), about, _software()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


class Kept:
    """The results below a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, key: str, options: Any) -> Result | None:
        """A result that was kept; None when there is none, or its file is damaged."""
        try:
            value = read_object(self._folder / f"{key}.json")
            rows = [
                Row(**row | {"difference": Difference(**row["difference"]) if "difference" in row else None})
                for row in value["figures"]
            ]
            protocol, encoder, source = value["protocol"], value["encoder"], value["embeddings"]
            return Result(protocol, encoder, source, value["samples"], options, rows, value["notes"])
        except (OSError, G2LError, ValueError, TypeError, KeyError):
            return None

    def write(self, key: str, result: Result) -> None:
        make_folder(self._folder)
        write_json(self._folder / f"{key}.json", result.to_json())
