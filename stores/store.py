"""A store as one object: recipe, slides, and the features, coordinates and views of a slide, from a folder or a URL."""

import contextlib
import functools
import weakref
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from stores.errors import CorruptStore, StoreError
from stores.format import features, manifest, recipe
from stores.format.committed import read_records
from stores.format.feature_rows import RowReader
from stores.info import store_info
from stores.io.location import StoreLike
from stores.remote.store import open_store


class Store:
    """A store, open for reading. Made by `stores.open`; a context manager.

    Attributes
    ----------
    files : Path or RemoteStore
        The files of the store: what the functions of `stores.format` take.
    recipe : Recipe
        What decides the value of every feature; read once.
    """

    def __init__(self, path_or_url: str | Path, cache: Path | None, cache_gb: float) -> None:
        with contextlib.ExitStack() as opened:
            self.files: StoreLike = opened.enter_context(open_store(str(path_or_url), cache, cache_gb))
            self.recipe = recipe.load(self.files)
            # a notebook that never calls `close` leaves no cache behind either
            self._close = weakref.finalize(self, opened.pop_all().close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __str__(self) -> str:
        return str(self.files)

    def __repr__(self) -> str:
        return f"stores.open({str(self)!r})"

    def close(self) -> None:
        """Remove the cache of a remote store. A local store has nothing to close."""
        self._close()

    @functools.cached_property
    def complete(self) -> recipe.CompleteRecipe:
        """The recipe with teacher, policy and reader, which are not None.

        Raises
        ------
        StoreError
            When only tiles exist.
        """
        return recipe.require_complete(self.recipe, self.files)

    @functools.cached_property
    def slides(self) -> list[dict[str, Any]]:
        """The rows of the slides table, sorted by slide id; read once."""
        return manifest.read_slides(self.files)

    def info(self) -> dict[str, Any]:
        """What the store holds, in figures: see `stores.info.store_info`."""
        return store_info(self.files)

    def patches(self, slide_id: str) -> manifest.Patches:
        """The patches of a slide: x and y in level-0 pixels and share of tissue, (n_patches,) each.

        Raises
        ------
        StoreError
            When the store has no such slide.
        """
        if not self._slide(slide_id)["n_patches"]:  # a slide that could not be used has no table
            none = np.empty(0, np.int32)
            return manifest.Patches(none, none, np.empty(0, np.float32))
        return manifest.read_patches(self.files, slide_id)

    def coords(self, slide_id: str) -> npt.NDArray[np.int32]:
        """x and y of the upper left corner of each patch of a slide, in level-0 pixels, int32 (n_patches, 2).

        Raises
        ------
        StoreError
            When the store has no such slide.
        """
        patches = self.patches(slide_id)
        return patches.coords

    def features(self, slide_id: str, seed: int = 0) -> npt.NDArray[np.float16]:
        """The teacher's features of one view of every patch of a slide, float16 (n_patches, dim).

        The rows are those of `coords` and `patches`. Seed 0 is the view without augmentation. The int8 features of
        a compact copy are decoded, as they are for training.

        A row is NaN where the patch could not be read (status ``bad_read``) and where its view is not committed: the
        extraction has not reached it yet. `views` lists the committed rows and their status.

        Raises
        ------
        StoreError
            When the store has no teacher features, no such slide or no such seed.
        CorruptStore
            When a committed row is damaged or missing, or the manifest contradicts itself.
        """
        shape = self._slide(slide_id)["n_patches"], self.complete.teacher.dim
        if not shape[0]:
            return np.empty(shape, np.float16)
        opened = features.open_features(self.files, slide_id)
        if not 0 <= seed < opened.n_seeds:
            raise StoreError(
                f"{self}: slide {slide_id} has no seed {seed}; allowed: 0 to {opened.n_seeds - 1}"
            )
        if (opened.n_rows, opened.dim) != shape or len(self.patches(slide_id)) != shape[0]:
            raise CorruptStore(
                f"{self}: slide {slide_id}: features of shape {(opened.n_rows, opened.dim)}, "
                f"its manifest and recipe say {shape}"
            )
        try:
            found = np.full(shape, np.nan, np.float16)
        except MemoryError:
            raise StoreError(f"{self}: slide {slide_id}: features {shape} do not fit into memory") from None
        reader = RowReader(self.files, blocks=1)
        for commit, table in read_records(self.files, self._slide(slide_id), self.recipe.patch):
            if seed in commit.seeds:
                rows = manifest.ok_rows(table, seed)
                found[rows] = reader.read(slide_id, seed, commit.block, rows)
        return found

    def views(self, slide_id: str) -> pa.Table:
        """The committed views of a slide, a row each: patch, seed, split, status, checksum, and what was drawn.

        Ordered by block, seed and row. The columns are those of `stores.format.manifest.VIEWS_SCHEMA`.

        Raises
        ------
        StoreError
            When the store has no such slide.
        """
        self._slide(slide_id)
        names = manifest.VIEWS_SCHEMA.names
        parts = [commit.read(names).select(names) for commit in manifest.commits(self.files, slide_id)]
        return pa.concat_tables([manifest.VIEWS_SCHEMA.empty_table(), *parts])

    def _slide(self, slide_id: str) -> dict[str, Any]:
        """The row of a slide in the slides table."""
        for row in self.slides:
            if row["slide_id"] == slide_id:
                return row
        ids = [row["slide_id"] for row in self.slides]
        more = f" and {len(ids) - 5} more" if len(ids) > 5 else ""
        raise StoreError(f"{self}: no slide {slide_id!r:.120}; allowed: {', '.join(ids[:5]) or 'none'}{more}")


def open(path_or_url: str | Path, cache: str | Path | None = None, cache_gb: float = 20.0) -> Store:
    """Open a store for reading.

    Parameters
    ----------
    path_or_url : str or Path
        A local folder, or a URL such as ``s3://bucket/store``.
    cache : str or Path, optional
        Folder for the cache of a remote store; a temporary folder by default. Removed by `Store.close`.
    cache_gb : float
        The cache of a remote store never takes more than this, in GB.

    Raises
    ------
    StoreError
        When there is no store, or it cannot be reached.
    OptionError
        When the URL is of a kind that is not known or not installed, or `cache_gb` is not above 0.
    """
    return Store(path_or_url, None if cache is None else Path(cache), cache_gb)
