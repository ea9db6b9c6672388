"""Several processes of one training, as ``torchrun`` starts them."""

import socket
from pathlib import Path
from typing import Any

from pipeline.distill.options import DistillOptions
from tests.tools.kill import ranks_job, start


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def several(store: Path, run: Path, options: DistillOptions, world: int) -> list[Any]:
    """The processes that ``torchrun`` would start, with everything imported."""
    return [start(ranks_job, (environment, store, run, options)) for environment in environments(world)]


def run_several(store: Path, run: Path, options: DistillOptions, world: int) -> None:
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
