"""Several processes of one training, as ``torchrun`` starts them."""

import socket
import time
from pathlib import Path
from typing import Any

from pipeline.distill.options import DistillOptions
from tests.tools.kill import Trained, ranks_job, start


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def several(store: Trained, run: Path, options: DistillOptions, world: int) -> list[Any]:
    """The processes that ``torchrun`` would start, with everything imported."""
    return [start(ranks_job, (environment, store, run, options)) for environment in environments(world)]


def run_several(store: Trained, run: Path, options: DistillOptions, world: int) -> None:
    """A training by several processes, to its end."""
    for process in several(store, run, options, world):
        process.join()
        assert process.exitcode == 0


def environments(world: int) -> list[dict[str, str]]:
    """What ``torchrun`` tells each of its processes."""
    port = str(free_port())
    return [
        {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(world),
            "LOCAL_WORLD_SIZE": str(world),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        for rank in range(world)
    ]


def children_of(process: int) -> list[int]:
    """The processes that a process started."""
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def _live(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def ended(processes: list[int], within_s: float) -> bool:
    """Whether all of them end in time."""
    until = time.monotonic() + within_s
    while any(_live(process) for process in processes) and time.monotonic() < until:
        time.sleep(0.02)
    return not any(_live(process) for process in processes)
