"""A step of training with and without ``--channels-last``, in turn, of several students on a CPU.

python -m tests.bench.bench_layouts [STUDENT ...]
"""

import argparse
from types import SimpleNamespace
from typing import cast

import torch

from pipeline.distill.inputs import Data
from pipeline.distill.options import DistillOptions
from pipeline.distill.trainer import Trainer, make_trainer
from pipeline.encoders.load import load_encoder
from tests.bench.measure import Ratio, race, ratios, say, spread
from tests.tools.distill import ALONE
from tests.tools.steps import a_teaching, targets_of

STUDENTS = (
    "mobilenetv3_small_100",
    "efficientnet_b0",
    "resnet18",
    "resnet50",
    "convnext_atto",
    "vit_tiny_patch16_224",
)
PX, BATCH, ROUNDS = 224, 16, 6


def _trainer(student: str, channels_last: bool) -> Trainer:
    options = DistillOptions(student=f"timm:{student}", random_weights=0, channels_last=channels_last)
    data = SimpleNamespace(crop_px=PX, teachings=(a_teaching(),))
    return make_trainer(load_encoder(options.student, random_weights=0), cast(Data, data), options, ALONE)


def measure(student: str) -> Ratio:
    """How many times as fast a step is with the option."""
    plain, last = (_trainer(student, channels_last) for channels_last in (False, True))
    made = torch.Generator().manual_seed(0)
    views = torch.randint(0, 256, (BATCH, PX, PX, 3), dtype=torch.uint8, generator=made)
    targets = targets_of(BATCH, made)
    took = race(
        {
            "last": lambda: last.step(views, targets, 1e-3, 0.05, 0),
            "plain": lambda: plain.step(views, targets, 1e-3, 0.05, 0),
        },
        ROUNDS,
    )
    seconds = (spread([1000 * s / BATCH for s in took[name]], 1) for name in ("last", "plain"))
    return Ratio(
        f"a step with --channels-last, {student}",
        ratios(took["plain"], took["last"]),
        detail="{} ms a view, {} without".format(*seconds),
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("students", nargs="*", default=STUDENTS, metavar="STUDENT")
    for student in parser.parse_args().students:
        say(measure(student).line())


if __name__ == "__main__":
    main()
