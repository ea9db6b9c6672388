"""`ViewDataset`: the batches of ``distill``, byte for byte, in any number of workers and ranks, from any position."""

import faulthandler
import hashlib
import itertools
import multiprocessing
import pickle
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import stores
from pipeline.data.dataset import ViewBatch, ViewDataset
from pipeline.data.loader import Batch, LoaderOptions, ViewLoader
from pipeline.data.split import files_and_recipe, open_split
from pipeline.data.window import default_window
from pipeline.distill import train
from pipeline.runtime.progress import Silent
from stores.errors import OptionError, StoreError, ViewMismatch
from tests.tools.distill import OPTIONS as DISTILL
from tests.tools.settings import ROOT

# three workers on a machine of two CPUs
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes"),
]

BATCH = 6
SETTINGS: dict[str, Any] = {"batch_size": BATCH, "window": 40, "seed": 3, "check_views": "none", "threads": 1}
Bytes = tuple[int, bytes, bytes]


def of_loader(batches: Iterable[Batch]) -> list[Bytes]:
    return [(b.epoch, b.views.tobytes(), b.targets.tobytes()) for b in batches]


def of_dataset(batches: Iterable[ViewBatch]) -> list[Bytes]:
    return [(b.epoch, b.views.numpy().tobytes(), b.targets.numpy().tobytes()) for b in batches]


def expected(store: Path, count: int, start: int = 0, rank: int = 0, world: int = 1) -> list[Bytes]:
    """What the loader of ``distill`` gives."""
    options = LoaderOptions(BATCH, 40, 1, 3, "none", 2, rank, world)
    with open_split(*files_and_recipe(store), "train", None).loader(options, start) as loader:
        return of_loader(itertools.islice(loader, count))


def explain_a_hang(worker: int) -> None:
    """A worker that is stuck says where, and ends; otherwise its parent waits for it without a word."""
    faulthandler.dump_traceback_later(120, exit=True)


def taken(
    dataset: ViewDataset, count: int, workers: int, context: str | None = "forkserver"
) -> list[ViewBatch]:
    """The first batches that come out of a DataLoader.

    The process of the tests is not forked here: after hundreds of tests it has threads of many libraries, and what
    they hold is held for ever in a fork. `test_forked_workers` forks a process of its own.
    """
    init = explain_a_hang if workers else None
    loader = DataLoader(
        dataset,
        batch_size=None,
        num_workers=workers,
        multiprocessing_context=context if workers else None,
        worker_init_fn=init,
    )
    return list(itertools.islice(loader, count))


def test_shapes_and_types(store: Path) -> None:
    batch = next(iter(ViewDataset(store, **SETTINGS)))
    assert (batch.views.dtype, tuple(batch.views.shape)) == (torch.uint8, (BATCH, 224, 224, 3))
    assert (batch.targets.dtype, tuple(batch.targets.shape)) == (torch.float16, (BATCH, 24))
    assert batch.tokens is None
    assert batch.positions is None
    assert (batch.epoch, batch.consumed) == (0, BATCH)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("workers", "context"),
    [(0, None), pytest.param(2, "spawn", marks=pytest.mark.long), (2, "forkserver"), (3, "forkserver")],
)
def test_any_number_of_workers_gives_the_batches_of_distill(
    store: Path, workers: int, context: str | None
) -> None:
    """Past the end of an epoch, with batches that straddle windows and epochs."""
    dataset = ViewDataset(store, **SETTINGS)
    count = dataset.epoch_views // BATCH + 3
    batches = taken(dataset, count, workers, context)
    assert batches[-1].epoch == 1
    assert [batch.consumed for batch in batches] == [BATCH * (i + 1) for i in range(count)]
    assert of_dataset(batches) == expected(store, count)


FORKED = """
import hashlib, sys
from tests.pipeline.data.test_dataset import SETTINGS, ViewDataset, of_dataset, taken
batches = of_dataset(taken(ViewDataset(sys.argv[1], **SETTINGS), 12, 2, None))
print(hashlib.sha256(repr(batches).encode()).hexdigest())
"""


@pytest.mark.slow
def test_forked_workers(store: Path) -> None:
    """The default of a DataLoader on Linux, in a program that has begun no threads."""
    done = subprocess.run(
        [sys.executable, "-c", FORKED, str(store)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == hashlib.sha256(repr(expected(store, 12)).encode()).hexdigest()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("rank", [0, 1])
def test_two_ranks_share_the_stream(store: Path, workers: int, rank: int) -> None:
    batches = taken(ViewDataset(store, rank=rank, world=2, **SETTINGS), 9, workers)
    assert of_dataset(batches) == expected(store, 9, 0, rank, 2)
    assert batches[-1].consumed == 9 * BATCH * 2


@pytest.mark.slow
@pytest.mark.parametrize("before", [0, 2])
@pytest.mark.parametrize("after", [0, 3])
@pytest.mark.parametrize("world", [1, 2])
def test_a_restart_in_the_middle(store: Path, before: int, after: int, world: int) -> None:
    """Also with another number of workers, from a state that went through a checkpoint."""
    rank = world - 1
    dataset = ViewDataset(store, rank=rank, world=world, **SETTINGS)
    batches = taken(dataset, 5, before)
    state = pickle.loads(pickle.dumps(dataset.state_dict(batches[-1])))
    assert state["views_consumed"] == 5 * BATCH * world
    again = ViewDataset(store, rank=rank, world=world, **SETTINGS)
    again.load_state_dict(state)
    found = of_dataset(batches) + of_dataset(taken(again, 6, after))
    assert found == expected(store, 11, 0, rank, world)


def test_more_ranks_go_on_where_one_stopped(store: Path) -> None:
    alone = ViewDataset(store, **SETTINGS)
    last = taken(alone, 4, 2)[-1]
    ranks = [ViewDataset(store, rank=rank, world=2, **SETTINGS) for rank in (0, 1)]
    for rank in ranks:
        rank.load_state_dict(alone.state_dict(last))
    halves = [taken(rank, 2, 0) for rank in ranks]
    of_ranks = [
        torch.stack(both, 1).flatten(0, 1)
        for both in zip(*([b.views for b in h] for h in halves), strict=True)
    ]
    whole = [b.views for b in itertools.islice(iter_from(alone, last), 4)]
    assert torch.equal(torch.cat(of_ranks), torch.cat(whole))


def iter_from(dataset: ViewDataset, last: ViewBatch) -> Iterable[ViewBatch]:
    dataset.load_state_dict(dataset.state_dict(last))
    return dataset


def test_a_worker_renders_its_own_batches_alone(store: Path) -> None:
    """Together the workers render every view once: none is thrown away."""
    split = open_split(*files_and_recipe(store), "train", None)
    options = LoaderOptions(BATCH, 40, 1, 3, "none", 1, rank=1, world=2, workers=3)
    whole = ViewLoader(*of_split(split), replace(options, workers=1))
    parts = [ViewLoader(*of_split(split), replace(options, worker=worker)) for worker in range(3)]
    windows = split.n_views // 40 + 1
    planned = sum(plan.n_views for plan in itertools.islice(whole._plans(), windows))
    shared = 0
    for part in parts:
        with part:
            for plan in part._plans():
                if plan.epoch:
                    break
                assert sorted(itertools.chain(*(s.places.tolist() for s in plan.shares))) == list(
                    range(plan.n_views)
                )
                shared += plan.n_views
    whole.__exit__()
    assert shared == planned == split.n_views // 2


def of_split(split: Any) -> tuple[Any, Any, Any, Any]:
    return split.store, split.units, split.sources, split.policy


@pytest.mark.slow
def test_the_batches_of_a_real_training(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the trainer of ``distill`` is given, step by step."""
    seen = []
    step = train.Course.step

    def noted(self: train.Course, number: int, batch: Batch, *times: float) -> str:
        seen.extend(of_loader([batch]))
        return step(self, number, batch, *times)

    monkeypatch.setattr(train.Course, "step", noted)
    options = replace(DISTILL, steps=4, window=None, val_every=100)
    train.distill(store, tmp_path / "run", options, False, Silent())
    dataset = ViewDataset(store, batch_size=options.batch_size, seed=options.seed, threads=1)
    assert of_dataset(taken(dataset, 4, 2)) == seen
    assert default_window(options.batch_size, 1) == 2048


def test_tokens(token_store: Path) -> None:
    dataset = ViewDataset(token_store, tokens=True, **SETTINGS)
    files, recipe = files_and_recipe(token_store)
    with open_split(files, recipe, "train", None).loader(
        LoaderOptions(BATCH, 40, 1, 3, "none", 2), 0, recipe.tokens
    ) as loader:
        theirs = list(itertools.islice(loader, 5))
    for ours, batch in zip(taken(dataset, 5, 2), theirs, strict=True):
        assert ours.tokens is not None
        assert ours.positions is not None
        assert (ours.tokens.dtype, ours.tokens.shape[:2]) == (torch.float16, (BATCH, 5))
        np.testing.assert_array_equal(ours.tokens.numpy(), batch.tokens)
        np.testing.assert_array_equal(ours.positions.numpy(), batch.positions)


def test_an_open_store_seeds_and_split(store: Path) -> None:
    with stores.open(store) as opened:
        dataset = ViewDataset(opened, split="val", seeds=2, **SETTINGS)
        rows = sum(len(unit.rows) for unit in open_split(opened.files, opened.complete, "val", 1).units)
    assert dataset.epoch_views == 2 * rows
    batches = taken(dataset, dataset.epoch_views // BATCH, 0)
    assert {batch.epoch for batch in batches} == {0}


def test_views_from_slide_files(small: Path, slides: Path, store: Path) -> None:
    """The store without pixels; a copy of the dataset in a worker opens the slides itself."""
    dataset = ViewDataset(small, slides=[slides], **SETTINGS)
    assert of_dataset(taken(dataset, 4, 2)) == expected(store, 4)


def test_batches_may_be_kept(store: Path) -> None:
    """The memory of a window is used again only when no batch refers to it."""
    dataset = ViewDataset(store, **SETTINGS)
    kept = list(itertools.islice(dataset, 30))
    assert of_dataset(kept) == expected(store, 30)


def test_state_without_a_batch(store: Path) -> None:
    dataset = ViewDataset(store, **SETTINGS)
    assert dataset.state_dict()["views_consumed"] == 0
    taken(dataset, 3, 0)
    assert dataset.state_dict()["views_consumed"] == 3 * BATCH
    taken(dataset, 3, 2)
    with pytest.raises(OptionError, match=r"run ahead of the training; give the last .* state_dict\(batch\)"):
        dataset.state_dict()


def test_every_iteration_begins_at_the_loaded_position(store: Path) -> None:
    dataset = ViewDataset(store, **SETTINGS)
    dataset.load_state_dict({"views_consumed": 2 * BATCH})
    first, second = of_dataset(taken(dataset, 2, 0)), of_dataset(taken(dataset, 2, 2))
    assert first == second == expected(store, 2, 2 * BATCH)


@pytest.mark.parametrize("value", [-1, None, "3", 1.5])
def test_a_wrong_position(store: Path, value: object) -> None:
    with pytest.raises(OptionError, match=r"views_consumed is .*; allowed is a number of views, 0 or more"):
        ViewDataset(store, **SETTINGS).load_state_dict({"views_consumed": value})


@pytest.mark.parametrize("change", [{"seed": 4}, {"window": 41}, {"views_per_read": 2}, {"seeds": 1}])
def test_a_state_of_another_order_is_refused(store: Path, change: dict[str, int]) -> None:
    state = ViewDataset(store, **SETTINGS).state_dict()
    with pytest.raises(OptionError, match="the state is of the stream"):
        ViewDataset(store, **(SETTINGS | change)).load_state_dict(state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, "batch_size=0: allowed is 1 or more"),
        ({"window": 0}, "window=0: allowed is 1 or more"),
        ({"seed": -1}, "seed=-1: allowed is 0 or more"),
        ({"check_views": "some"}, "check_views='some': allowed is sample, all or none"),
        ({"readers": "fibres"}, "readers='fibres': allowed is threads or processes"),
        ({"rank": 2, "world": 2}, "rank=2: allowed is 0 to 1, world is 2"),
        ({"rank": 1}, "rank=1, world=None: give both, or none"),
    ],
)
def test_wrong_values(store: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError) as caught:
        ViewDataset(store, **(SETTINGS | change))
    assert message in str(caught.value)


def test_wrong_stores(store: Path, small: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="not a store"):
        ViewDataset(tmp_path)
    with pytest.raises(StoreError, match="no committed views in the split 'test'"):
        ViewDataset(store, split="test")
    with pytest.raises(StoreError, match=r"tokens=True: .* has no patch tokens"):
        ViewDataset(store, tokens=True)
    with pytest.raises(StoreError, match="seed 3 is needed"):
        ViewDataset(store, seeds=7)
    with pytest.raises(OptionError, match="the store keeps no pixels of it"):
        ViewDataset(small)


def test_a_launcher_without_torch_distributed(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise every rank would train on the same batches."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(OptionError, match=r"WORLD_SIZE is 2, but torch.distributed is not initialised"):
        ViewDataset(store, **SETTINGS)
    assert ViewDataset(store, rank=1, world=2, **SETTINGS).epoch_views > 0


@pytest.mark.slow
def test_rank_and_world_of_torch_distributed(store: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    with context.Pool(2) as pool:
        jobs = [pool.apply_async(first_of_rank, (store, tmp_path / "meet", rank)) for rank in (0, 1)]
        found = [job.get(120) for job in jobs]
    assert found == [expected(store, 3, 0, rank, 2) for rank in (0, 1)]


def first_of_rank(store: Path, meet: Path, rank: int) -> list[Bytes]:
    torch.distributed.init_process_group("gloo", f"file://{meet}", rank=rank, world_size=2)
    try:
        return of_dataset(itertools.islice(ViewDataset(store, **SETTINGS), 3))
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_processes_that_read(store: Path) -> None:
    dataset = ViewDataset(store, readers="processes", **SETTINGS)
    assert of_dataset(taken(dataset, 3, 0)) == expected(store, 3)
    with pytest.raises(OptionError, match="allowed is threads when num_workers is above 0"):
        taken(dataset, 3, 1)


@pytest.mark.slow
def test_a_changed_view_is_noticed(copy: Path, slides: Path, tmp_path: Path) -> None:
    """Before the first batch, in the process that makes the dataset."""
    from stores.format import layout, manifest

    commit = next(manifest.commits(copy, "a"))
    table = commit.read()
    position = table.column_names.index("hflip")
    import pyarrow as pa
    import pyarrow.parquet as pq

    drawn = zip(table["hflip"].to_pylist(), table["seed"].to_pylist(), strict=True)
    flipped = pa.array([value != (seed > 0) for value, seed in drawn])
    pq.write_table(table.set_column(position, "hflip", flipped), commit.path)
    (copy / layout.INDEX).unlink()  # it notices before a view is made
    with pytest.raises(ViewMismatch, match="slide a row"):
        ViewDataset(copy, slides=[slides], batch_size=BATCH)


@pytest.mark.slow
@pytest.mark.parametrize("context", ["forkserver", "spawn"])
def test_workers_end_with_the_loop(store: Path, context: str) -> None:
    before = set(multiprocessing.active_children())
    taken(ViewDataset(store, **SETTINGS), 2, 2, context)
    until = time.monotonic() + 30
    while set(multiprocessing.active_children()) - before and time.monotonic() < until:
        time.sleep(0.05)
    assert not set(multiprocessing.active_children()) - before
