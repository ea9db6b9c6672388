"""Draw the two pictures of docs/concepts/views.md: ``python -m tests.bench.picture_views SLIDE.svs``."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import openslide
from PIL import Image, ImageDraw, ImageFont

from pipeline.views.draw import JITTER_ORDERS, ViewParams, draw
from pipeline.views.policy import POLICIES
from pipeline.views.render import render

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "concepts"
CORNER = (900, 1550)
TILE_PX, LABEL_PX, GAP_PX, COLUMNS = 224, 20, 6, 4


def main(slide_path: str) -> None:
    with openslide.OpenSlide(slide_path) as slide:
        patch = np.array(slide.read_region(CORNER, 0, (256, 256)).convert("RGB"))
        fingerprint = slide.properties["openslide.quickhash-1"]
    g2l = POLICIES["g2l"]
    seeds = [draw(g2l, fingerprint, *CORNER, seed) for seed in range(8)]
    views = {f"seed {i}{_what(p)}": render(patch, p, g2l) for i, p in enumerate(seeds)}
    _grid(views).save(FOLDER / "views-seeds.png", optimize=True)

    centre = seeds[0]
    single = {
        "centre crop": centre,
        "brightness 0.85": replace(centre, jitter=True, brightness=0.85),
        "contrast 1.15": replace(centre, jitter=True, contrast=1.15),
        "saturation 0.90": replace(centre, jitter=True, saturation=0.9),
        "hue -0.05": replace(centre, jitter=True, hue=-0.05),
        "hue +0.05": replace(centre, jitter=True, hue=0.05),
        "blur, sigma 2": replace(centre, blur=True, sigma=2.0),
        "haematoxylin 1.15, eosin 0.85": replace(centre, stain=True, stain_h=1.15, stain_e=0.85),
    }
    _grid({name: render(patch, p, g2l) for name, p in single.items()}).save(
        FOLDER / "views-operations.png", optimize=True
    )


def _what(params: ViewParams) -> str:
    jitter = ": " + " ".join(name[0] for name in JITTER_ORDERS[params.order]) if params.jitter else ""
    return jitter + (f", blur {params.sigma:.1f}" if params.blur else "")


def _grid(views: dict[str, np.ndarray]) -> Image.Image:
    """Labelled views in rows of four, in 256 colours to keep the file small."""
    rows = -(-len(views) // COLUMNS)
    width, height = TILE_PX + GAP_PX, TILE_PX + LABEL_PX + GAP_PX
    canvas = Image.new("RGB", (COLUMNS * width - GAP_PX, rows * height - GAP_PX), "white")
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(14)
    for i, (name, view) in enumerate(views.items()):
        x, y = i % COLUMNS * width, i // COLUMNS * height
        pen.text((x + 2, y + 2), name, fill="black", font=font)
        canvas.paste(Image.fromarray(view), (x, y + LABEL_PX))
    return canvas.quantize(256, dither=Image.Dither.NONE)


if __name__ == "__main__":
    main(sys.argv[1])
