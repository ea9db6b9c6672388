"""Each format of ``g2l export``: cosine to the original, size, and CPU time of a view against PyTorch.

CPU time of the process with one thread, in turns: other work on the machine changes it least.

    python -m tests.bench.bench_export TILES [--encoder NAME[:BATCH] ...]

TILES is what ``--patches`` takes. Encoders have random weights, unless their name is a folder.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

import pipeline as g2l
from pipeline.encoders.apply import embed
from pipeline.encoders.encoder import Encoder
from pipeline.encoders.load import load_encoder
from pipeline.export.base import Job
from pipeline.export.graph import Views
from pipeline.export.options import DTYPES
from pipeline.export.pixels import tiles_as_views
from pipeline.export.registry import format_of
from stores.errors import OptionError
from tests.bench.measure import race, ratios, say, spread

ENCODERS = ("vit_small_patch16_224:8", "tf_efficientnet_lite0:4", "hibou-l:2")
ROUNDS, VIEWS = 5, 8
WIDE = 0.9
"""Smallest cosine below which nothing is measured; far below what ``export`` asks for, since the table shows it."""


def _weights(name: str) -> int | None:
    return None if Path(name).is_dir() else 0


def rows(name: str, batch: int, tiles: Path) -> Iterator[str]:
    """Lines of a Markdown table, one for each format and arithmetic."""
    encoder = load_encoder(name, random_weights=_weights(name)).eval()
    side_px = encoder.image_px
    views = tiles_as_views([tiles], side_px, VIEWS)[:batch]

    def original() -> None:
        embed(encoder, views, batch, torch.device("cpu"), torch.float32)

    for kind, dtypes in DTYPES.items():
        for dtype in dtypes:
            with tempfile.TemporaryDirectory() as folder:
                out = Path(folder, "out")
                try:
                    yield _row(name, encoder, kind, dtype, out, tiles, views, original)
                except OptionError as error:
                    yield _cells([name, f"{kind}, {dtype}", f"refused: {error}", "", "", "", ""])


def _row(
    name: str,
    encoder: Encoder,
    kind: str,
    dtype: str,
    out: Path,
    tiles: Path,
    views: Views,
    original: Callable[[], object],
) -> str:
    asked: dict[str, Any] = {
        "format": kind,
        "dtype": dtype,
        "patches": [tiles],
        "views": VIEWS,
        "min_cosine": WIDE,
    }
    if kind == "wsinfer":
        asked["mpp"] = 0.5
    done = g2l.export(name, out, random_weights=_weights(name), **asked)
    near = done.agreement
    cells = [name, f"{kind}, {dtype}", f"{near.cosine_min:.6f}, {near.cosine_median:.6f}"]
    cells += [f"{near.difference_max:.2g}", f"{max(done.sizes.values(), default=0) / 1e6:,.1f} MB"]
    if not done.agrees:
        return _cells([*cells, "", "not written"])
    takes = str(done.facts["input"]["kind"])
    job = Job(encoder, takes, dtype, 0.5, {})
    run = format_of(kind).opened(job, out)
    took = race({"exported": lambda: run(views), "torch": original}, ROUNDS, clock=time.process_time)
    ms = [min(took[each]) / len(views) * 1000 for each in ("exported", "torch")]
    return _cells([*cells, f"{ms[0]:,.1f}, {ms[1]:,.1f}", spread(ratios(took["torch"], took["exported"]))])


def _cells(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("tiles", type=Path)
    parser.add_argument("--encoder", action="append", metavar="NAME[:BATCH]")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    say(
        "| encoder | format | cosine | largest difference | largest file | ms a view, PyTorch | as fast as PyTorch |"
    )
    say("|---|---|---|---|---|---|---|")
    for each in chosen.encoder or ENCODERS:
        name, _, batch = each.partition(":")
        for line in rows(name, int(batch or 4), chosen.tiles):
            say(line)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
