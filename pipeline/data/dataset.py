"""The views of a store as a torch dataset, for training loops of your own.

Every batch is, byte for byte, the one that ``distill`` trains on at that position of the stream. See
``docs/how-to/train-in-your-own-loop.md``, and ``docs/decisions/0022-one-stream-in-many-workers.md`` for the reasons.
"""

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

import stores
from pipeline.data.balance import BALANCES
from pipeline.data.loader import LoaderOptions
from pipeline.data.split import files_and_recipe, open_split
from pipeline.data.window import default_window
from pipeline.runtime.work import threads_of
from stores import sampler
from stores.errors import OptionError, StoreError
from stores.format.qc import parse_limits

_POSITION = "views_consumed"
_STREAM = "stream"


class ViewBatch(NamedTuple):
    """Views and what the teacher made of them, in the order of the stream; tensors on the CPU."""

    views: Tensor
    """uint8 (B, crop_px, crop_px, 3), RGB"""
    targets: Tensor
    """float16 (B, dim), as stored"""
    tokens: Tensor | None
    """float16 (B, t, width), patch tokens as stored; None unless they were asked for"""
    positions: Tensor | None
    """int32 (B, t), where the tokens are in the view's grid of patches; None unless they were asked for"""
    epoch: int
    """The epoch of the first view, from 0"""
    consumed: int
    """Position in the stream after this batch: the views that all ranks together have taken by then"""
    attention: Tensor | None = None
    """float16 (B, grid * grid), the teacher's attention as stored; None unless it was asked for"""


class ViewDataset(IterableDataset[ViewBatch]):
    """An endless stream of batches of views and teacher features.

    Give it to ``DataLoader(dataset, batch_size=None)``, with any number of workers, or iterate over it. The batches
    that come out are the same, in the same order, whatever the number of workers: worker ``w`` of ``W`` makes batches
    ``w``, ``w + W``, and so on. Every iteration begins at the position that was loaded last, 0 by default.

    Each epoch shows every view of the split once (unless `balance` says otherwise); the next epoch follows in another
    order. Stop when you have enough: after a number of batches, or when ``batch.epoch`` reaches a number.

    The views that ``distill`` puts beside those of pairs (``--loss ...+pair``) are not in the batches.

    Parameters
    ----------
    store : str, Path or stores.Store
        A store with teacher features; a path or a URL is opened. A `stores.Store` must stay open meanwhile.
    slides
        Slide files or folders, for slides whose pixels the store does not keep.
    split : str
        ``train``, ``val``, or another split of the store.
    batch_size : int
        Views of a batch, in each rank.
    seeds : int, optional
        How many seeds: 0 to ``seeds - 1``. All that the store has by default.
    seed : int
        Decides the order.
    window : int, optional
        Views that are mixed in memory (150 KB each), over all ranks: 64 for each view of a step, at least 2048. It is
        part of the order, so give it when a training may continue on another number of ranks. ``distill`` chooses a
        larger one where memory allows; with the same number both have the same batches.
    views_per_read : int
        How many seeds of a patch are rendered from one decoding. It is part of the order.
    balance : {"none", "slide", "patient"}
        Whether an epoch shows each view once, or as many views of each slide or patient. It is part of the order.
    qc_max, qc_min
        Limits ``NAME=VALUE`` on columns ``qc_NAME`` of the store, such as ``["fold=0.1"]``. Views of patches beyond one
        of them, or whose value is not known, are left out.
    check_views : {"sample", "all", "none"}
        Which rebuilt views are compared with the checksums of the views that the teacher saw.
    threads : int, optional
        Threads or processes that read and render, in each worker; the CPUs, divided among all workers, by default.
    readers : {"threads", "processes"}
        What reads and renders. Processes need ``num_workers=0``.
    tokens : bool
        Whether the patch tokens of the store are read too.
    attention : bool
        Whether the teacher's attention is read too.
    rank, world : int, optional
        Which share of the stream, of how many; those of ``torch.distributed`` by default.

    Raises
    ------
    StoreError
        When `store` is no store, has no teacher features, no views in `split`, no such seeds, tokens or attention.
    OptionError
        When a value is not allowed, or the pixels of a slide are missing.
    ViewMismatch
        When a rebuilt view is not the one that the teacher saw.
    """

    def __init__(
        self,
        store: str | Path | stores.Store,
        *,
        slides: Sequence[str | Path] = (),
        split: str = "train",
        batch_size: int = 32,
        seeds: int | None = None,
        seed: int = 0,
        window: int | None = None,
        views_per_read: int = 1,
        balance: str = "none",
        qc_max: Sequence[str] = (),
        qc_min: Sequence[str] = (),
        check_views: str = "sample",
        threads: int | None = None,
        readers: str = "threads",
        tokens: bool = False,
        attention: bool = False,
        rank: int | None = None,
        world: int | None = None,
    ) -> None:
        super().__init__()
        numbers = {"batch_size": batch_size, "seeds": seeds, "window": window, "threads": threads}
        for name, value in (numbers | {"views_per_read": views_per_read}).items():
            _require(value is None or value >= 1, name, value, "1 or more")
        _require(seed >= 0, "seed", seed, "0 or more")
        _require(check_views in ("sample", "all", "none"), "check_views", check_views, "sample, all or none")
        _require(balance in BALANCES, "balance", balance, "none, slide or patient")
        _require(readers in ("threads", "processes"), "readers", readers, "threads or processes")
        rank, world = _rank_and_world(rank, world)
        opened = store if isinstance(store, stores.Store) else stores.open(store)
        files, recipe = files_and_recipe(opened)
        if tokens and recipe.tokens is None:
            raise StoreError(
                f"tokens=True: {files} has no patch tokens; run extract-teacher --tokens N into another store"
            )
        if attention and recipe.attention is None:
            raise StoreError(
                f"attention=True: {files} has no attention; run extract-teacher --attention into another store"
            )
        # only the files go into workers; what keeps the cache of a remote store alive stays here
        self._opened = None if isinstance(files, Path) else opened
        limits = parse_limits(qc_max, qc_min)
        paths = [Path(path) for path in slides]
        self._split = open_split(files, recipe, split, seeds, paths, limits=limits)
        self._tokens = recipe.tokens if tokens else None
        self._attention = recipe.attention if attention else None
        self._threads = threads
        self._options = LoaderOptions(
            batch_size,
            default_window(batch_size, world) if window is None else window,
            views_per_read,
            seed,
            check_views,
            threads_of(threads, _local_world()),
            rank,
            world,
            self._split.readers_are_processes(readers, beside_gpu=False),
            balance=balance,
        )
        self._start = self._consumed = 0
        # shared with workers, which set it: then this process cannot know which batches were taken
        self._in_workers = torch.zeros(1, dtype=torch.uint8).share_memory_()
        if check_views != "none":
            self._split.check(self._options.threads)

    @property
    def dim(self) -> int:
        """Length of a target."""
        return self._split.recipe.teacher.dim

    @property
    def epoch_views(self) -> int:
        """Views of an epoch, over all ranks."""
        return self._split.n_views

    def __iter__(self) -> Iterator[ViewBatch]:
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        if info is not None:
            self._require_fit_for_workers()
            self._in_workers.fill_(1)
        threads = threads_of(self._threads, _local_world() * workers)
        options = dataclasses.replace(self._options, threads=threads, worker=worker, workers=workers)
        start, step = self._start, options.batch_size * options.world
        with self._split.loader(options, start, self._tokens, self._attention) as loader:
            for number, batch in enumerate(loader):
                consumed = start + (number * workers + worker + 1) * step
                self._consumed = consumed
                asked = self._tokens is not None
                yield ViewBatch(
                    torch.from_numpy(batch.views),
                    torch.from_numpy(batch.targets),
                    torch.from_numpy(batch.tokens) if asked else None,
                    torch.from_numpy(batch.positions) if asked else None,
                    batch.epoch,
                    consumed,
                    None if self._attention is None else torch.from_numpy(batch.attention),
                )

    def state_dict(self, last: ViewBatch | None = None) -> dict[str, Any]:
        """The position after a batch, to be saved beside the weights.

        Parameters
        ----------
        last : ViewBatch, optional
            The last batch that was trained on. Without it: the last batch that this process has made, which is the
            same when a plain loop iterates over the dataset, or over a DataLoader without workers.

        Returns
        -------
        dict
            ``views_consumed``, the position, and ``stream``, which names the order that the position belongs to.

        Raises
        ------
        OptionError
            When `last` is missing and workers of a DataLoader make the batches: they run ahead of the training.
        """
        if last is None and self._in_workers.item():
            raise OptionError(
                "state_dict(): workers of a DataLoader make the batches, and run ahead of the training; give the last "
                "batch that you trained on: state_dict(batch)"
            )
        return {_POSITION: self._consumed if last is None else last.consumed, _STREAM: self._stream_name()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next iteration begin where `state_dict` says, on any number of ranks and workers.

        Call it before the DataLoader is iterated over. ``views_consumed`` alone is enough.

        Raises
        ------
        OptionError
            When the position is no number of views, or belongs to another order.
        """
        position = state.get(_POSITION)
        if not isinstance(position, int) or position < 0:
            raise OptionError(
                f"load_state_dict: {_POSITION} is {position!r}; allowed is a number of views, 0 or more"
            )
        stream = state.get(_STREAM, self._stream_name())
        if stream != self._stream_name():
            raise OptionError(
                f"load_state_dict: the state is of the stream ({stream}), this is ({self._stream_name()}); use the "
                "same store, split, seeds, seed, window, views_per_read and balance"
            )
        self._start = self._consumed = position

    def _stream_name(self) -> str:
        o = self._options
        return (
            f"{sampler.STREAMS[o.balance]}, seed {o.seed}, window {o.window}, views_per_read {o.views_per_read}, "
            f"{self.epoch_views} views an epoch"
        )

    def __getstate__(self) -> dict[str, Any]:
        self._require_fit_for_workers()
        return self.__dict__

    def _require_fit_for_workers(self) -> None:
        """A connection does not survive in a copy of this process, and a worker may not start processes."""
        if not isinstance(self._split.store, Path):
            raise OptionError(
                f"{self._split.store}: a store behind a URL cannot be read by workers of a DataLoader; "
                "use num_workers=0 (threads read ahead anyway), or copy the store"
            )
        _require(not self._options.processes, "readers", "processes", "threads when num_workers is above 0")


def _require(allowed: bool, name: str, value: object, what: str) -> None:
    if not allowed:
        raise OptionError(f"{name}={value!r}: allowed is {what}")


def _rank_and_world(rank: int | None, world: int | None) -> tuple[int, int]:
    """The share of this process: as given, or that of ``torch.distributed``, or everything."""
    if rank is not None and world is not None:
        _require(0 <= rank < world, "rank", rank, f"0 to {world - 1}, world is {world}")
        return rank, world
    if rank is not None or world is not None:
        raise OptionError(f"rank={rank}, world={world}: give both, or none")
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise OptionError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but torch.distributed is not initialised, so that every rank "
            "would get the same batches; call init_process_group first, or give rank= and world="
        )
    return 0, 1


def _local_world() -> int:
    """Ranks on this machine, as ``torchrun`` says."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
