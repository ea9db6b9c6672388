"""Encoders that misbehave in workers; healthy they compute what ``tests.tools.tiny:teacher`` computes."""

import ctypes
import os
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from tests.tools.tiny import Tiny

POISON = 0.5
"""Mean of the red channel, from 0 to 1, below which a view is poison: no tissue is so blue."""


class Faulty(Tiny):
    """A tiny teacher with a fault, whose name it is made with."""

    def __init__(self, fault: str) -> None:
        super().__init__(24)
        self.fault = fault

    def forward(self, images: Tensor) -> Tensor:
        if self.fault == "slow":
            time.sleep(0.15)
        if self.fault == "deaf":
            # holds the interpreter lock; dask allows ten heartbeats, 5 s, in any case
            ctypes.PyDLL(None).usleep(7_000_000)
        red = images[:, 0].mean(dim=(1, 2)) * self.std[0] + self.mean[0]
        if self.fault in ("raises", "kills") and float(red.min()) < POISON:
            if "FAULTY_LOG" in os.environ:
                with open(os.environ["FAULTY_LOG"], "a", encoding="utf-8") as file:
                    file.write(f"{os.getpid()}\n")
            if self.fault == "kills":
                if "FAULTY_LEAVES" in os.environ:  # in the middle of a file
                    Path(os.environ["FAULTY_LEAVES"], f".zarr.json.{os.getpid()}.partial").touch()
                os._exit(1)
            raise RuntimeError("this view is poison")
        return super().forward(images)


class Idle(Tiny):
    """A student with a parameter that its features do not depend on."""

    def __init__(self) -> None:
        super().__init__(12)
        self.idle = nn.Parameter(torch.zeros(3))


def idle() -> nn.Module:
    return Idle()


def slow() -> nn.Module:
    return Faulty("slow")


def deaf() -> nn.Module:
    return Faulty("deaf")


def raises() -> nn.Module:
    return Faulty("raises")


def kills() -> nn.Module:
    return Faulty("kills")
