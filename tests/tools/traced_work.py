"""Every way in which a store is written, once: ``python -m tests.tools.traced_work FOLDER``."""

import sys
from dataclasses import replace
from pathlib import Path

from pipeline.demo.synthetic_slides import write_slide
from pipeline.encoders.torchvision_cpu import make_importable
from pipeline.extract.extract import extract
from pipeline.runtime.progress import Silent
from pipeline.tile.options import TileOptions
from stores.combine.merge import merge
from stores.combine.subset import Selection, subset
from stores.export.export import ExportOptions, export
from stores.remote.objects import Objects
from stores.remote.transfer import pull
from stores.verify.reindex import reindex
from stores.verify.seal import seal
from tests.tools.settings import TEACHER, VIT


def work(folder: Path) -> None:
    """Slides, a store with pixels and tokens, more seeds, copies of it, its records joined, its seal."""
    write_slide(folder / "slides" / "a.tiff", seed=0, width_px=1024, height_px=1024)
    teacher = replace(TEACHER, teacher=VIT, tokens=2, pixels=True, seeds=2)
    for seeds in (2, 3):
        extract([folder / "slides"], folder / "store", replace(teacher, seeds=seeds), TileOptions(), Silent())
    subset(folder / "store", folder / "part", Selection(seeds=2))
    merge([folder / "store", folder / "part"], folder / "deep" / "er" / "merged", False)
    export(folder / "store", folder / "small", ExportOptions(compact="lossless"))
    pull(Objects(f"file://{folder}/part"), folder / "pulled")
    reindex(folder / "store")
    seal(folder / "store")


if __name__ == "__main__":
    make_importable()
    work(Path(sys.argv[1]))
