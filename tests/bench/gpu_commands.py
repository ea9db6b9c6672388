"""Whole commands, each in a process of its own: views a second from the first second, and peak memory.

Called by `bench_gpu`, which has the sizes and paints the slides.
"""

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench.measure import say


@dataclass(frozen=True)
class Case:
    """What the commands are given. Tokens need a vision transformer on both sides."""

    teacher: str
    student: str
    slides: int
    seeds: int
    batch: int
    steps: int
    prototypes: int
    """At most as many as there are views to train on."""


DISTILL: dict[str, list[str]] = {
    "as it is": [],
    "--checkpointing": ["--checkpointing"],
    "--micro-batch, a quarter": ["--micro-batch", "{quarter}"],
    "both": ["--checkpointing", "--micro-batch", "{quarter}"],
    "--compile": ["--compile"],
    "--compile --checkpointing": ["--compile", "--checkpointing"],
    "--dtype float16, with scaling": ["--dtype", "float16"],
}
"""Options that change memory or time of a step, not what is learnt."""


def command(name: str, *arguments: object) -> dict[str, Any]:
    """Run a command of g2l, print its figures, return what it printed; empty when it failed."""
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "cli.py", *map(str, arguments), "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.perf_counter() - began
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["nothing said"])[-1]
        say(f"{name}: FAILED with {done.returncode}: {last}")
        return {}
    found: dict[str, Any] = json.loads(done.stdout)
    views = found.get("views_seen", found.get("views", found.get("computed")))
    parts = [f"{seconds:.0f} s from the start of the process"]
    if views:
        parts.append(f"{views:,} views, {views / seconds:.1f} a second")
    for key, wording in (
        ("seconds_to_first_step", "first step after {:.1f} s"),
        ("views_per_s", "{:.1f} views/s after the start"),
        ("data_wait", "data wait {:.1%}"),
        ("validation_share", "validation {:.1%} of the time"),
    ):
        if found.get(key) is not None:
            parts.append(wording.format(found[key]))
    for key, where in (("peak_device_bytes", "device"), ("peak_rss_bytes", "process")):
        if found.get(key):
            parts.append(f"peak of the {where} {found[key] / 1e9:.1f} GB")
    say(f"{name}: {', '.join(parts)}")
    return found


def commands(folder: Path, case: Case, device: str) -> bool:
    """Stage one with tokens, another teacher, prototypes, ways of training, deployment; False when one failed."""
    on = ["--device", device]
    a, b, run = folder / "A", folder / "B", folder / "runs"
    one = ["extract-teacher", folder, "--teacher", case.teacher, *on]
    done = [
        command("extract-teacher --tokens 16", *one, "--store", a, "--random-weights", 0, "--tokens", 16,
                "--seeds", case.seeds, "--slides-csv", folder / "slides.csv"),
        command("extract-teacher --like, another teacher", *one, "--store", b, "--random-weights", 1, "--like", a),
        command("prototypes", "prototypes", "--store", a, "--out", folder / "prototypes", "--k", case.prototypes, *on),
    ]  # fmt: skip
    train = ["distill", "--student", case.student, "--random-weights", 0, "--slides", folder, *on,
             "--steps", case.steps, "--batch-size", case.batch]  # fmt: skip
    for number, (name, options) in enumerate(DISTILL.items()):
        given = [option.format(quarter=max(2, case.batch // 4)) for option in options]
        done.append(command(f"distill, {name}", *train, "--store", a, "--out", run / str(number), *given))
    done += [
        command("distill, tokens and prototypes (dino+ibot)", *train, "--store", a, "--out", run / "tokens",
                "--loss", "dino+ibot", "--prototypes", folder / "prototypes"),
        command("distill, two teachers", *train, "--store", a, "--store", b, "--out", run / "two"),
        command("embed, with the student", "embed", folder, "--encoder", run / "0" / "student", "--out",
                folder / "embedded", *on),
    ]  # fmt: skip
    return all(done)
