"""Committed views with their targets and tokens, read block by block; the last few blocks stay in memory."""

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from pipeline.views.draw import ViewParams
from pipeline.views.patch_views import StoredView
from pipeline.views.policy import Policy
from pipeline.views.stored import impossible
from stores import sampler
from stores.errors import CorruptStore
from stores.format import manifest, recipe
from stores.format.attention import open_attention, take_rows
from stores.format.committed import Promises
from stores.format.feature_rows import RowReader
from stores.format.tokens import open_tokens, read_rows, take_positions
from stores.io.location import StoreLike

_CACHED_BLOCKS = 32


@dataclass(frozen=True, slots=True)
class CommittedBlock:
    """The manifest rows of one commit record, by (seed, row)."""

    columns: dict[str, npt.NDArray[Any]]
    keys: npt.NDArray[np.int64]
    """Of each view, (n,), ascending; see `at`."""
    drawn: npt.NDArray[Any]
    """The drawn parameters, one record for each view: reading them from twelve columns takes ten times as long."""

    def at(self, row: int, seed: int) -> int:
        """The position of a view; KeyError when the record does not list it."""
        key = (seed << 32) + row  # views are in order of seed, then row
        found = int(np.searchsorted(self.keys, key))
        if found == len(self.keys) or self.keys[found] != key:
            raise KeyError((seed, row))
        return found

    def params(self, at: int) -> ViewParams:
        """The drawn parameters of the view at a position."""
        return ViewParams(*self.drawn[at].item())

    def request(self, row: int, seeds: Mapping[int, bool]) -> tuple[int, int, list[StoredView]]:
        """x_px0 and y_px0 of a row, and its views under `seeds`, with a checksum where its seed maps to True."""
        wanted = []
        for seed, check in seeds.items():
            at = self.at(row, seed)
            crc = int(self.columns["crc"][at]) if check else None
            wanted.append(StoredView(seed, self.params(at), crc))
        return int(self.columns["x_px0"][at]), int(self.columns["y_px0"][at]), wanted


def read_commit(
    commit: manifest.Commit, policy: Policy | None = None, promises: Promises | None = None
) -> CommittedBlock:
    """Read what is needed to rebuild the views of a block.

    Parameters
    ----------
    promises
        Of the store, for a record that came out of its index and was not read before.

    Raises
    ------
    CorruptStore
        When a drawn parameter is not within what `policy` draws, or a promise is broken.
    """
    names = ["row", "seed", "x_px0", "y_px0", "view_crc32", *manifest.DRAWN_SCHEMA.names]
    table = commit.read(list(dict.fromkeys((*names, *Promises.columns))) if promises else names)
    if promises is not None:
        promises.require(commit, table)
    crcs = table["view_crc32"].fill_null(0)
    columns = {name: table[name].to_numpy() for name in names if name != "view_crc32"} | {
        "crc": crcs.to_numpy()
    }
    keys = (columns["seed"].astype(np.int64) << 32) + columns["row"]
    if (np.diff(keys) <= 0).any():
        raise CorruptStore(f"{commit.path}: rows are not in order of seed, then row, each once")
    fields = [(name, columns[name].dtype) for name in manifest.DRAWN_SCHEMA.names]
    drawn = np.empty(table.num_rows, fields)
    for name, _ in fields:
        drawn[name] = columns.pop(name)
    of_names = {name: drawn[name] for name, _ in fields}
    for name, at in impossible(policy, columns["seed"], of_names) if policy is not None else ():
        row, seed = (int(columns[key][at][0]) for key in ("row", "seed"))
        raise CorruptStore(
            f"{commit.path}: {name} of row {row} seed {seed} is {drawn[name][at][0]}, which is not within what the "
            "policy draws"
        )
    return CommittedBlock(columns, keys, drawn)


class Place(Protocol):
    """A block of a slide, such as a commit record is of."""

    @property
    def slide_id(self) -> str:
        """The slide."""

    @property
    def block(self) -> int:
        """Number of the block."""


class Cache(Protocol):
    """Reads committed views and what is stored of them: of one store, or of several."""

    def commit(self, commit: manifest.Commit) -> CommittedBlock:
        """What is needed to rebuild the views of a block."""

    def stored(
        self, commit: manifest.Commit, rows: npt.NDArray[np.int32], seed: int
    ) -> list[npt.NDArray[Any]]:
        """What is stored of some rows of a block under a seed, in the order of `pipeline.data.loader.batch_of`."""

    def parts(self, plan: sampler.Window) -> Iterator[tuple[npt.NDArray[np.int64], list[npt.NDArray[Any]]]]:
        """Places in a window, and what is stored of the views at these places."""


def parts_of(
    cache: Cache, plan: sampler.Window
) -> Iterator[tuple[npt.NDArray[np.int64], list[npt.NDArray[Any]]]]:
    """Places in a window, and what `cache` has of the views at these places."""
    for share in plan.shares:
        for seed in np.unique(share.seeds).tolist():
            chosen = share.seeds == seed
            yield share.places[chosen], cache.stored(share.segment.commit, share.rows[chosen], seed)


class BlockCache:
    """Keeps the last few commit records and chunks, since segments of one block come back under other seeds.

    Parameters
    ----------
    about
        The tokens of the store; None reads no tokens.
    policy
        What drew the views; None leaves their parameters unchecked.
    attention
        The attention of the store; None reads none.
    """

    def __init__(
        self,
        store: StoreLike,
        about: recipe.Tokens | None = None,
        policy: Policy | None = None,
        attention: recipe.Attention | None = None,
    ) -> None:
        self._about, self._attention_of = about, attention
        self._open_attention = functools.lru_cache(256)(functools.partial(open_attention, store))
        self._attention = functools.lru_cache(_CACHED_BLOCKS)(self._read_attention)
        self._policy, self._promises = policy, Promises(store)
        self._proved: set[manifest.Commit] = set()
        self.commit = functools.lru_cache(_CACHED_BLOCKS)(self._read_commit)
        self._features = RowReader(store, _CACHED_BLOCKS)
        self._open_tokens = functools.lru_cache(256)(functools.partial(open_tokens, store))
        self._token_chunk = functools.lru_cache(_CACHED_BLOCKS)(self._read_tokens)
        self._positions = functools.lru_cache(_CACHED_BLOCKS)(self._read_positions)

    def _read_commit(self, commit: manifest.Commit) -> CommittedBlock:
        unproved = commit.claim is not None and commit not in self._proved
        found = read_commit(commit, self._policy, self._promises if unproved else None)
        self._proved.add(commit)
        return found

    def _read_tokens(self, slide_id: str, seed: int, index: int) -> npt.NDArray[np.float16]:
        return self._open_tokens(slide_id, self._about).read_chunk(seed, index)

    def _read_positions(self, slide_id: str, seed: int, block: int) -> npt.NDArray[np.int32]:
        return self._open_tokens(slide_id, self._about).read_positions(seed, block)

    def _read_attention(self, slide_id: str, seed: int, block: int) -> npt.NDArray[np.float16]:
        return self._open_attention(slide_id, self._attention_of).read_block(seed, block)

    def targets(self, commit: Place, rows: npt.NDArray[np.int32], seed: int) -> npt.NDArray[np.float16]:
        """Targets of some rows of a block under a seed, float16 (rows, dim); CorruptStore when one is not finite."""
        return self._features.read(commit.slide_id, seed, commit.block, rows)

    def tokens(
        self, commit: Place, rows: npt.NDArray[np.int32], seed: int
    ) -> tuple[npt.NDArray[np.float16], npt.NDArray[np.int32]]:
        """Tokens float16 (rows, t, width) and positions int32 (rows, t) of rows that `targets` took; t may be 0."""
        if self._about is None:
            return np.empty((len(rows), 0, 0), np.float16), np.empty((len(rows), 0), np.int32)
        slide_id, block = commit.slide_id, commit.block
        opened = self._open_tokens(slide_id, self._about)
        read = functools.partial(self._token_chunk, slide_id)
        positions = self._positions(slide_id, seed, block)
        return read_rows(opened, read, positions, rows, seed, block)

    def positions(self, commit: Place, rows: npt.NDArray[np.int32], seed: int) -> npt.NDArray[np.int32]:
        """Positions of the tokens of some rows, int32 (rows, t), as `tokens` gives them, without reading tokens."""
        assert self._about is not None, "the store has no tokens"
        opened = self._open_tokens(commit.slide_id, self._about)
        return take_positions(
            opened, self._positions(commit.slide_id, seed, commit.block), rows, seed, commit.block
        )

    def attention(self, commit: Place, rows: npt.NDArray[np.int32], seed: int) -> npt.NDArray[np.float16]:
        """Attention float16 (rows, grid * grid) of rows that `targets` took; no columns where none is read."""
        if self._attention_of is None:
            return np.empty((len(rows), 0), np.float16)
        slide_id, block = commit.slide_id, commit.block
        first = self._open_attention(slide_id, self._attention_of).first_row(block)
        values = self._attention(slide_id, seed, block)
        return take_rows(values, rows, first, f"{slide_id} seed {seed} block {block}")

    def stored(self, commit: Place, rows: npt.NDArray[np.int32], seed: int) -> list[npt.NDArray[Any]]:
        """Targets, tokens, positions and attention of some rows of a block under a seed."""
        if isinstance(commit, manifest.Commit) and commit.claim is not None and commit not in self._proved:
            self.commit(commit)  # the rows are those of the index: they are the record's, or this says so
        of = commit, rows, seed
        return [self.targets(*of), *self.tokens(*of), self.attention(*of)]

    def parts(self, plan: sampler.Window) -> Iterator[tuple[npt.NDArray[np.int64], list[npt.NDArray[Any]]]]:
        """Places in a window, and what is `stored` of the views at these places."""
        return parts_of(self, plan)
