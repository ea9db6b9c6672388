"""Time per view on one core: ``python -m tests.bench.bench_views``.

torchvision's v2 uint8 operations run on the same patches with the same drawn parameters, taking turns with
ours round by round, so that a busy machine slows both.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from pipeline.views.draw import JITTER_ORDERS, ViewParams, draw
from pipeline.views.operations import Image
from pipeline.views.policy import POLICIES, Policy
from pipeline.views.render import render, view_crc32
from tests.bench.measure import Ratio, milliseconds, race, ratios, say

SLIDE = Path(__file__).resolve().parents[3] / "shared" / "data" / "slides" / "CMU-1-Small-Region.svs"
ROUNDS, VIEWS = 6, 300
G2L, HED = POLICIES["g2l"], POLICIES["hed"]


def main() -> list[Ratio]:
    """Measure and print."""
    cv2.setNumThreads(1)
    patches, source = _patches()
    drawn = [draw(G2L, "bench", 256 * i, 0, i + 1) for i in range(VIEWS)]
    plain = replace(drawn[0], hflip=True, vflip=True, jitter=False, blur=False, stain=False)
    cases = {
        "g2l, average": drawn,
        "g2l, worst (flips, jitter and blur)": [replace(p, **WORST) for p in drawn],
        "g2l, jitter alone": [replace(p, jitter=True, blur=False) for p in drawn],
        "g2l, blur alone": [replace(p, jitter=False, blur=True) for p in drawn],
        "g2l, crop and flips alone": [plain] * VIEWS,
    }
    torchvision = _torchvision()
    found = []
    say(f"{VIEWS} views of 224 px a round; {source}; CPU time of one thread; torchvision v2 on uint8")
    for name, params in cases.items():
        ours, theirs = _race(patches, params, torchvision)
        detail = f"{milliseconds(ours, VIEWS)} a view, torchvision {milliseconds(theirs, VIEWS)}"
        found.append(Ratio(f"rendering, {name}", ratios(theirs, ours), LEAST.get(name), detail))
        say(found[-1].line())
    views = [render(patch, drawn[0], G2L) for patch in patches]
    stains = [draw(HED, "bench", 256 * i, 0, i + 1) for i in range(VIEWS)]
    alone: dict[str, Callable[[int], object]] = {
        "hed, average": lambda i: render(patches[i % len(patches)], stains[i], HED),
        "draw": lambda i: draw(G2L, "bench", i, 0, 5),
        "view_crc32": lambda i: view_crc32(views[i % len(views)]),
    }
    took = race({name: _every(call) for name, call in alone.items()}, ROUNDS, time.thread_time, patience=0)
    for name, seconds in took.items():
        say(f"  {milliseconds(seconds, VIEWS)}  {name}")
    return found


LEAST = {"g2l, average": 2.0}
WORST: dict[str, Any] = {"hflip": True, "vflip": True, "jitter": True, "blur": True, "sigma": 2.0}


def _patches() -> tuple[list[Image], str]:
    if not SLIDE.exists():
        return list(np.random.default_rng(0).integers(0, 256, (16, 256, 256, 3), dtype=np.uint8)), "noise"
    import openslide

    with openslide.OpenSlide(SLIDE) as slide:
        corners = [(x, y) for x in range(512, 1536, 256) for y in range(512, 1536, 256)]
        patches = [np.array(slide.read_region(corner, 0, (256, 256)).convert("RGB")) for corner in corners]
    return patches, SLIDE.stem


def _torchvision() -> Callable[[Any, ViewParams, Policy], Any]:
    """The same view by torchvision: uint8 (3, H, W) in and out."""
    import torch

    from pipeline.encoders.torchvision_cpu import make_importable

    make_importable()
    from torchvision.transforms.v2 import functional as f

    torch.set_num_threads(1)

    def view(image: Any, p: ViewParams, policy: Policy) -> Any:
        image = f.crop(image, p.crop_y_px, p.crop_x_px, policy.crop_px, policy.crop_px)
        image = f.horizontal_flip(image) if p.hflip else image
        image = f.vertical_flip(image) if p.vflip else image
        if p.jitter:
            for name in JITTER_ORDERS[p.order]:
                image = getattr(f, f"adjust_{name}")(image, getattr(p, name))
        if p.blur:
            image = f.gaussian_blur(image, [policy.blur_kernel_px] * 2, [p.sigma] * 2)
        return image.contiguous()

    return view


def _race(
    patches: list[Image], params: list[ViewParams], theirs: Callable[[Any, ViewParams, Policy], Any]
) -> tuple[list[float], list[float]]:
    import torch

    tensors = [torch.from_numpy(patch).permute(2, 0, 1).contiguous() for patch in patches]
    took = race(
        {
            "ours": _every(lambda i: render(patches[i % len(patches)], params[i], G2L)),
            "theirs": _every(lambda i: theirs(tensors[i % len(tensors)], params[i], G2L)),
        },
        ROUNDS,
        time.thread_time,  # other programs on the core do not lengthen it by waiting
        warm=False,
    )
    return took["ours"], took["theirs"]


def _every(call: Callable[[int], object]) -> Callable[[], None]:
    def views() -> None:
        for i in range(VIEWS):
            call(i)

    return views


if __name__ == "__main__":
    main()
