"""Embeddings for the protocols: from `embed`, from a store (its teacher's seed 0), or h5 files of other tools."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stores.errors import EvaluationError, OptionError, StoreError
from stores.format import features, layout, manifest, recipe
from stores.format.committed import read_records, usable_slides
from stores.format.feature_rows import RowReader
from stores.io import hdf5, parquet
from stores.io.files import first_line, parse_json
from stores.io.foreign import map_regular, open_regular
from stores.io.location import StoreLike
from stores.io.table import match_slides, read_table

_KEYS = (("slide_id", "x_px0", "y_px0"), ("path",), ("slide_id",))
"""Columns that identify a sample, the most exact first."""
_MAX_DIM = 65_536
_MAX_BYTES = 256 << 30
_MAX_ROWS = 1 << 30
_MAX_PACKED = 1000
"""How many times smaller than in memory features can be in an h5 file; they hardly compress."""


@dataclass(frozen=True, slots=True)
class Embeddings:
    """Embeddings of samples, and the columns that describe the samples."""

    source: str
    """The file or folder that was read."""
    encoder: str
    """Name of the encoder; empty where the files do not say."""
    x: npt.NDArray[np.float32]
    """float32 (n, d)"""
    columns: Mapping[str, Sequence[Any]]
    """By name; n values in each."""
    left_out: int = 0
    """Samples that could not be read."""
    weights: str = ""
    """SHA-256 of the encoder's weights; empty where the files do not say."""

    def __len__(self) -> int:
        return len(self.x)

    def column(self, name: str, flag: str) -> Sequence[Any]:
        """A column; OptionError that names the option `flag` when there is none, or it is no label of the user's."""
        if name not in self.columns:
            raise OptionError(
                f"--{flag} {name}: {self.source} has no such column; it has {', '.join(self.columns)}"
            )
        values = self.columns[name]
        if (
            flag == "label"
            and name in manifest.RESERVED
            and not isinstance(next(iter(values), ""), str | None)
        ):
            raise OptionError(
                f"--label {name}: was measured by g2l and is no label; give a column of your own, by --labels for "
                f"example; {self.source} has {', '.join(self.columns)}"
            )
        return values

    def take(self, rows: npt.NDArray[Any]) -> "Embeddings":
        """Some of the samples, by index or mask."""
        index = np.flatnonzero(rows) if rows.dtype == bool else rows
        columns = {name: [values[i] for i in index.tolist()] for name, values in self.columns.items()}
        return replace(self, x=self.x[index], columns=columns)


def load_embeddings(path: Path) -> Embeddings:
    """Load embeddings.

    Parameters
    ----------
    path
        A folder that `embed` wrote (or the ``embeddings`` in it), a Parquet file, a store, or a folder of h5 files
        with ``features`` and ``coords``, one for each slide.

    Raises
    ------
    OptionError
        When it is none of these.
    EvaluationError
        When a file is damaged, the files differ in the length of embeddings, or hold none.
    """
    if (path / layout.RECIPE).is_file():
        return from_store(path)
    folder = path / "embeddings" if (path / "embeddings").is_dir() else path
    if path.suffix == ".parquet" and path.is_file():
        return _from_files([path], path, _read_parquet)
    if folder.is_dir():
        for pattern, read in (("*.parquet", _read_parquet), ("*.h5", _read_h5), ("h5_files/*.h5", _read_h5)):
            found = sorted(folder.glob(pattern))
            if found:
                return _from_files(found, path, read)
    raise OptionError(
        f"{path}: no embeddings; give the folder of `g2l embed` (parquet, trident-h5 or clam), a Parquet file, a "
        "store, or a folder of h5 files"
    )


@dataclass(frozen=True, slots=True)
class _Piece:
    """One file, before its numbers are read."""

    n: int
    dim: int
    encoder: tuple[str, str]
    """Name, and SHA-256 of the weights."""
    fill: Callable[[npt.NDArray[np.float32]], tuple[int, dict[str, list[Any]]]]
    """Write the samples that could be read to the front of an array (n, dim); how many, and their columns."""


def _from_files(paths: Sequence[Path], source: Path, read: Callable[[Path], _Piece]) -> Embeddings:
    pieces = [read(path) for path in paths]
    dim = pieces[0].dim
    for path, piece in zip(paths, pieces, strict=True):
        if piece.dim != dim:
            raise EvaluationError(f"{path}: embeddings of {piece.dim} numbers, {paths[0].name} has {dim}")
    total = sum(piece.n for piece in pieces)
    if not 0 < dim <= _MAX_DIM or total * dim * 4 > _MAX_BYTES:
        raise EvaluationError(f"{source}: {total} embeddings of {dim} numbers are not plausible")
    try:
        x, at = np.empty((total, dim), np.float32), 0
    except MemoryError:
        raise EvaluationError(
            f"{source}: {total} embeddings of {dim} numbers do not fit into memory"
        ) from None
    columns: dict[str, list[Any]] = {}
    for path, piece in zip(paths, pieces, strict=True):
        taken, own = piece.fill(x[at : at + piece.n])
        if at and set(own) != set(columns):
            differing = sorted(set(own) ^ set(columns))[0]
            raise EvaluationError(f"{path}: column {differing!r} is not in all files of {source}")
        for name, values in own.items():
            columns.setdefault(name, []).extend(values)
        at += taken
    if at == 0:
        raise EvaluationError(f"{source}: no embedding in it")
    name, weights = pieces[0].encoder
    return Embeddings(str(source), name, x[:at], columns, total - at, weights)


@contextlib.contextmanager
def _parquet(path: Path) -> Iterator[pq.ParquetFile]:
    """A file that can be read within the bounds; open for a moment, because a folder may have thousands."""
    raw = map_regular(path, _MAX_BYTES)
    with parquet.open_parquet(raw) as file:
        parquet.require_bounds(raw, file, file.schema_arrow.names, _MAX_ROWS, _MAX_BYTES)
        yield file


def _read_parquet(path: Path) -> _Piece:
    try:
        with _parquet(path) as file:
            schema, n_rows = file.schema_arrow, file.metadata.num_rows
    except (OSError, pa.ArrowException, ValueError, KeyError, MemoryError, StoreError) as error:
        raise EvaluationError(f"{path}: not a readable Parquet file ({first_line(error)})") from None
    kind = schema.field("features").type if "features" in schema.names else None
    if kind is None or not pa.types.is_fixed_size_list(kind) or not pa.types.is_floating(kind.value_type):
        raise EvaluationError(
            f"{path}: no column features of lists of one length, as `g2l embed` writes them"
        )

    def fill(x: npt.NDArray[np.float32]) -> tuple[int, dict[str, list[Any]]]:
        at = 0
        columns: dict[str, list[Any]] = {
            name: [] for name in schema.names if name not in ("features", "reason")
        }
        try:
            with _parquet(path) as file:
                for group in range(file.num_row_groups):
                    table = parquet.read_group(file, group)
                    table = table.filter(pc.is_valid(table["features"]))
                    array = table["features"].combine_chunks()
                    x[at : at + len(table)] = (
                        array.flatten().to_numpy(zero_copy_only=False).reshape(-1, x.shape[1])
                    )
                    at += len(table)
                    for name, values in columns.items():
                        values.extend(table[name].to_pylist())
        except (OSError, pa.ArrowException, ValueError, KeyError, MemoryError, StoreError) as error:
            raise EvaluationError(f"{path}: damaged ({first_line(error)})") from None
        return at, columns

    about = (schema.metadata or {}).get(b"g2l", b"{}")
    return _Piece(n_rows, kind.list_size, _encoder_of(about), fill)


def _encoder_of(about: bytes | str) -> tuple[str, str]:
    """Name of the encoder and SHA-256 of its weights; empty where the file does not say."""
    try:
        found = parse_json(about.decode() if isinstance(about, bytes) else about)["encoder"]
        return str(found["name"]), str(found.get("weights_sha256", ""))
    except (ValueError, KeyError, TypeError, AttributeError):
        return "", ""


def _read_h5(path: Path) -> _Piece:
    import h5py

    try:
        open_regular(path, _MAX_BYTES).close()
        with h5py.File(path) as file:
            for name in ("features", "coords"):
                _require_here(file, name)
            shape, coords = file["features"].shape, file["coords"].shape
            kind, encoder = file["features"].dtype.kind, _encoder_of(file.attrs.get("g2l", "{}"))
    except (OSError, KeyError, AttributeError, ValueError, TypeError, RuntimeError, StoreError) as error:
        raise EvaluationError(f"{path}: no h5 file with features and coords ({first_line(error)})") from None
    if len(shape) != 2 or coords != (shape[0], 2) or kind != "f":
        raise EvaluationError(
            f"{path}: features {shape} and coords {coords}; (n, d) floats and (n, 2) are expected"
        )

    def fill(x: npt.NDArray[np.float32]) -> tuple[int, dict[str, list[Any]]]:
        try:
            with h5py.File(path) as file:
                for name in ("features", "coords"):
                    hdf5.require_bounded(file[name], 0, shape[0])
                x[:] = file["features"][:]
                places = file["coords"][:]
        except (OSError, ValueError) as error:
            raise EvaluationError(f"{path}: damaged ({first_line(error)})") from None
        columns = {
            "slide_id": [path.stem] * len(x),
            "x_px0": places[:, 0].tolist(),
            "y_px0": places[:, 1].tolist(),
        }
        return len(x), columns

    return _Piece(shape[0], shape[1], encoder, fill)


def _require_here(file: Any, name: str) -> None:
    """Raise ValueError unless the numbers of a dataset of an h5 file are in that file, as many as it says."""
    import h5py

    found = file.get(name, getlink=True)
    if not isinstance(found, h5py.HardLink) or file[name].is_virtual or file[name].external:
        raise ValueError(f"{name} refers to another place or file")
    try:
        hdf5.require_plain(file[name])
    except ValueError as error:
        raise ValueError(f"{name} is {error}") from None
    if file[name].nbytes > max(file[name].id.get_storage_size(), 1) * _MAX_PACKED:
        raise ValueError(f"{name} has {file[name].nbytes} bytes, hardly any of them in the file")


def from_store(store: StoreLike) -> Embeddings:
    """The teacher's features of seed 0, for every patch that is committed and could be read."""
    stored = recipe.load_complete(store)
    recipe.require_possible(stored, store)
    reader = RowReader(store, blocks=1)
    parts: list[npt.NDArray[Any]] = []
    columns: dict[str, list[Any]] = {}
    left_out = 0
    for row in usable_slides(store, stored.patch).values():
        # which older stores may have
        own = {name: row[name] for name in row if name not in manifest.RESERVED}
        fixed = {name: row[name] for name in ("slide_id", "patient_id", "split")} | own
        slide_id = row["slide_id"]
        records = [item for item in read_records(store, row, stored.patch) if 0 in item[0].seeds]
        if records:
            coords = manifest.read_patches(store, slide_id).coords
            features.require_slide(store, slide_id, coords, 1, stored.teacher.dim)
        for commit, table in records:
            table = table.filter(pc.equal(table["seed"], 0))
            good = table.filter(pc.equal(table["status"], manifest.OK))
            left_out += len(table) - len(good)
            parts.append(reader.read(slide_id, 0, commit.block, good["row"].to_numpy()))
            for name, value in fixed.items():
                columns.setdefault(name, []).extend([value] * len(good))
            for name in ("row", "x_px0", "y_px0", "tissue"):
                columns.setdefault(name, []).extend(good[name].to_pylist())
    if not parts:
        raise EvaluationError(f"{store}: no features of seed 0 in it")
    x = np.concatenate(parts).astype(np.float32)
    return Embeddings(str(store), stored.teacher.name, x, columns, left_out)


def add_columns(embeddings: Embeddings, table: Path) -> tuple[Embeddings, int]:
    """Join a CSV by the columns that identify a sample; returns the samples in it, and the number of the others.

    Raises
    ------
    OptionError
        When the CSV has no such column, names a sample twice, or fits none.
    """
    what = f"--labels {table}"
    given = read_table(table, what, {name for names in _KEYS for name in names})
    keys = next((k for k in _KEYS if set(k) <= set(given.names) and set(k) <= set(embeddings.columns)), None)
    if keys is None:
        raise OptionError(
            f"{what}: has {', '.join(given.names) or 'nothing'}; samples of {embeddings.source} are named by slide_id "
            "(with x_px0 and y_px0), or by path"
        )
    own = list(zip(*(map(str, embeddings.columns[name]) for name in keys), strict=True))
    slides: Mapping[str, str] = {}
    if keys[0] == "slide_id":
        ids = dict.fromkeys(map(str, embeddings.columns["slide_id"]))
        slides = match_slides({row["slide_id"]: None for row in given.rows}, ids, what, some=False)
    found: dict[tuple[str, ...], dict[str, str]] = {}
    for number, row in enumerate(given.rows):
        first, *others = (row[name] for name in keys)
        key = (slides.get(first, first), *others)
        if key in found:
            raise OptionError(f"{given.at(number)}: {', '.join(key)} occurs twice")
        found[key] = row
    known = np.array([key in found for key in own])
    if not known.any():
        raise OptionError(f"{what}: names none of the samples of {embeddings.source}, such as {own[0][0]}")
    kept = embeddings.take(known)
    added = {
        name: [found[key][name] for key, ok in zip(own, known, strict=True) if ok]
        for name in given.names
        if name not in keys
    }
    columns = {**kept.columns, **added}
    return replace(kept, columns=columns), int((~known).sum())


def joined(embeddings: Embeddings, table: Path | None, notes: list[str]) -> Embeddings:
    """The samples that a table names, with its columns, see `add_columns`; all of them where there is no table.

    Notes how many it lacks, and how many were lost before.
    """
    if table is not None:
        embeddings, lost = add_columns(embeddings, table)
        if lost:
            notes.append(f"{lost} samples are not in {table.name} and were left out")
    if embeddings.left_out:
        notes.append(f"{embeddings.left_out} samples could not be read when they were embedded")
    return embeddings


def with_value(embeddings: Embeddings, name: str, what: str, notes: list[str]) -> Embeddings:
    """The samples that have a value in a column, which the option `what` names; notes how many have none."""
    known = np.array([value not in (None, "") for value in embeddings.column(name, what)])
    if known.all():
        return embeddings
    notes.append(f"{int((~known).sum())} samples without a {what} were left out")
    return embeddings.take(known)


def sample_names(embeddings: Embeddings) -> list[tuple[str, ...]]:
    """What identifies each sample, whatever encoder embedded it.

    Raises
    ------
    EvaluationError
        When the files do not say.
    """
    keys = next((k for k in _KEYS[:2] if set(k) <= set(embeddings.columns)), None)
    if keys is None:
        raise EvaluationError("samples have no names (slide_id with x_px0 and y_px0, or path)")
    return list(zip(*(map(str, embeddings.columns[name]) for name in keys), strict=True))


def matched(a: Embeddings, b: Embeddings) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Indices of the samples that both have, in the order of `a`.

    Raises
    ------
    EvaluationError
        When the two name samples in different ways, one names a sample twice, or they have none in common.
    """
    keys = next((k for k in _KEYS[:2] if set(k) <= set(a.columns) and set(k) <= set(b.columns)), None)
    if keys is None:
        raise EvaluationError(
            f"{a.source} and {b.source}: samples are matched by slide_id, x_px0 and y_px0, or by path; one lacks them"
        )
    places = []
    for embeddings in (a, b):
        names = list(zip(*(map(str, embeddings.columns[name]) for name in keys), strict=True))
        place = {name: i for i, name in enumerate(names)}
        if len(place) < len(names):
            raise EvaluationError(f"{embeddings.source}: two samples of one {' and '.join(keys)}")
        places.append(place)
    both = [name for name in places[0] if name in places[1]]
    if not both:
        raise EvaluationError(f"{a.source} and {b.source}: no sample in common")
    return np.array([places[0][name] for name in both]), np.array([places[1][name] for name in both])
