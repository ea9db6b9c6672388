"""The commands that open a large store, on stores of several sizes: how their time and memory grow.

For each size a store is made (`tests.bench.large_store`), unless it is there, and each command runs in a process of
its own. What is printed: seconds, CPU seconds of the process and its children, peak memory, opened commit records.
Training is on a student that takes no time, to its first step; also from ``s3://``, where the server of the tests has
the store in memory, in a process of its own.

    python -m tests.bench.bench_scale FOLDER --slides 100 1000

A store of 1,000 slides takes 7 GB of disk, and its server 6 GB of memory. `--without-index` also runs what reads the
records of a store that has no index, `--far MS` what reads a bucket that answers each request after so many
milliseconds: files by their URL, so that no server takes part of the CPUs.
"""

import argparse
import contextlib
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from stores.format import layout
from tests.bench import large_store
from tests.tools.s3_server import BUCKET, environment, s3_server

STEPS = 1
_KEY = "large"


def _distill(store: str, out: Path) -> float:
    """As ``g2l distill``; seconds to the end of the first step."""
    from pipeline.distill import train
    from pipeline.distill.metrics_log import read_metrics
    from pipeline.distill.options import DistillOptions
    from pipeline.runtime.progress import Silent
    from stores.remote.store import open_store

    options = DistillOptions(
        student="tests.bench.large_store:student", random_weights=0, steps=STEPS, device="cpu", threads=2
    )
    began = time.monotonic()
    with open_store(store) as opened:
        waited = time.monotonic() - began
        train.distill(opened, out, options, False, Silent())
    return waited + float(
        next(
            r["first_step_seconds"] for r in read_metrics(out / "metrics.jsonl") if "first_step_seconds" in r
        )
    )


def _info(store: str, out: Path) -> None:
    from stores.info import store_info
    from stores.remote.store import open_store

    with open_store(store) as opened:
        store_info(opened)


def _plan(store: str, out: Path) -> None:
    """What ``extract-teacher`` finds to do in a finished store: nothing."""
    from pipeline.extract.options import ExtractOptions
    from pipeline.extract.tasks import plan_tasks
    from pipeline.inference.task import Tally
    from pipeline.slides.sources import Source, StoreSource
    from stores.format import manifest, recipe

    class Place:
        def __init__(self, name: str) -> None:
            self.name = name

        def source(self, row: object, stored: object) -> Source:
            return StoreSource(self.name, Path(store))

    path = Path(store)
    places = {row["slide_id"]: Place(row["slide_id"]) for row in manifest.read_slides(path)}
    options = ExtractOptions(teacher="made-up", seeds=large_store.SEEDS)
    assert plan_tasks(path, recipe.load(path), places, options, Tally()) == []


def _reindex(store: str, out: Path) -> None:
    from stores.format.index import write_index

    write_index(Path(store))


def _verify(store: str, out: Path) -> None:
    from stores.verify.structure import verify_structure

    assert verify_structure(Path(store)).findings == []


def _subset(store: str, out: Path) -> None:
    from stores.combine.subset import Selection, subset

    subset(Path(store), out, Selection(splits=("val",)))


def _merge(store: str, out: Path) -> None:
    """Of two halves, which are stores beside `store`."""
    from stores.combine.merge import merge

    merge([Path(f"{store}-{half}") for half in (1, 2)], out)


COMMANDS: dict[str, tuple[str, Callable[[str, Path], float | None]]] = {
    "info": ("store info", _info),
    "distill": ("distill, to the first step", _distill),
    "plan": ("extract-teacher, plan of a finished store", _plan),
    "index": ("the index, written anew", _reindex),
    "verify": ("store verify, structure", _verify),
    "subset": ("store subset --split val", _subset),
    "merge": ("store merge of two halves", _merge),
}


def _answer_later(seconds: float) -> None:
    """Let every request of this process take longer."""
    from stores.remote.objects import Objects

    at_once = Objects._try

    def later(self: Objects, what: str, call: Callable[[], object]) -> object:
        time.sleep(seconds)
        return at_once(self, what, call)

    Objects._try = later  # type: ignore[method-assign]


def _side(name: str, store: str, out: Path, far_ms: float) -> None:
    """Run one command here and print what it took, as JSON."""
    import torch

    from pipeline.distill import train  # noqa: F401  (imports are no part of what is measured)

    torch.set_num_threads(2)
    _answer_later(far_ms / 1000)
    opened = 0

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal opened
        opened += event == "open" and layout.VIEWS in str(arguments[0]) and ".parquet" in str(arguments[0])

    def cpu() -> float:
        usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        return sum(used.ru_utime + used.ru_stime for used in usages)

    sys.addaudithook(hook)
    began, cpu_began = time.monotonic(), cpu()
    wall = COMMANDS[name][1](store, out) or time.monotonic() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    took = {"wall": wall, "cpu": cpu() - cpu_began, "peak": peak, "records": opened}
    print(json.dumps(took), flush=True)


def run(name: str, store: str, out: Path, what: str = "", far_ms: float = 0) -> None:
    """Run a command in a process of its own, print its line of the table, and remove what it wrote."""
    command = [sys.executable, "-m", "tests.bench.bench_scale", "--side", name, store, str(out), str(far_ms)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    took = json.loads(done.stdout.splitlines()[-1])
    shutil.rmtree(out, ignore_errors=True)
    print(
        f"{what + COMMANDS[name][0]:<52} {took['wall']:8.1f} s {took['cpu']:8.1f} CPU s {took['peak']:7.0f} MB "
        f"{took['records']:7} records opened",
        flush=True,
    )


def serve(store: Path) -> None:
    """The server of the tests with the files of a store, put into it without HTTP; until standard input is closed."""
    from moto.core import DEFAULT_ACCOUNT_ID
    from moto.s3.models import s3_backends

    with s3_server() as endpoint:
        backend = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
        for name in layout.list_files(store):
            backend.put_object(BUCKET, f"{_KEY}/{name}", (store / name).read_bytes())
        print(endpoint, flush=True)
        sys.stdin.read()


@contextlib.contextmanager
def served(store: Path) -> Iterator[str]:
    """The URL of a store behind that server; the environment names the server meanwhile."""
    command = [sys.executable, "-m", "tests.bench.bench_scale", "--serve", str(store)]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    os.environ |= environment(server.stdout.readline().strip())
    try:
        yield f"s3://{BUCKET}/{_KEY}"
    finally:
        server.communicate("")


def _made(folder: Path, n_slides: int, first: int = 0, ending: str = "") -> Path:
    store = folder / f"{n_slides if not ending else 2 * n_slides}-slides{ending}"
    if not (store / layout.SLIDES).exists():
        began = time.monotonic()
        large_store.make(store, n_slides, first=first)
        print(f"made {store.name} in {time.monotonic() - began:.0f} s", flush=True)
    return store


def measure(
    folder: Path, n_slides: int, only: list[str], remote: bool, without_index: bool, far_ms: float | None
) -> None:
    """Print the table of one size."""
    store = _made(folder, n_slides)
    print(f"{n_slides} slides of {large_store.PATCHES:,} patches under {large_store.SEEDS} seeds", flush=True)
    out = folder / "out"
    for name in only:
        if name == "merge":
            halves = [_made(folder, n_slides // 2, n_slides // 2 * half, f"-{half + 1}") for half in (0, 1)]
            run(name, str(store), out)
            for half in halves:
                shutil.rmtree(half)
        else:
            run(name, str(store), out)
    if without_index:
        index = store / layout.INDEX
        raw = index.read_bytes()
        index.unlink()
        for name in ("info", "distill", "plan"):
            run(name, str(store), out, "without an index: ")
        index.write_bytes(raw)
    if far_ms is not None:
        for name in ("info", "distill"):
            run(name, store.absolute().as_uri(), out, f"{far_ms:g} ms away: ", far_ms)
    if remote:
        with served(store) as url:
            for name in ("info", "distill"):
                run(name, url, out, "s3: ")


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--slides", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--only", nargs="+", choices=COMMANDS, default=list(COMMANDS))
    parser.add_argument("--no-remote", action="store_true")
    parser.add_argument("--without-index", action="store_true")
    parser.add_argument("--far", type=float, metavar="MS")
    parser.add_argument("--side", nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        _side(given.side[0], given.side[1], Path(given.side[2]), float(given.side[3]))
    elif given.serve:
        serve(given.serve)
    else:
        for n_slides in given.slides:
            measure(given.folder, n_slides, given.only, not given.no_remote, given.without_index, given.far)


if __name__ == "__main__":
    main()
