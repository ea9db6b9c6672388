"""The real tissue of the evidence: 256 px patches of slides and labelled images, each image in one of three folds.

Everything is cut once, into PNG files and one table that ``g2l tile`` reads. An image of a labelled set is in the fold
that its place among the images of its class gives, so that folds hold all classes; slides are in no fold, and train.
"""

import csv
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import openslide
import PIL.Image

from stores.io.files import replacing

PATCH_PX = 256
FOLDS, PARTS = 3, 4
RGB = npt.NDArray[np.uint8]

SLIDES: Mapping[str, tuple[float, tuple[float, ...]]] = {
    "CMU-1-Small-Region.svs": (0.499, (0.5, 1.0)),
    "TCGA-CR-7395-01A-01-TS1.svs": (0.25, (0.25, 0.5, 1.0)),
}
"""Micrometres per pixel at level 0 (the second file has none: a scan at 40x), and those that patches are cut at."""
_COLUMNS = ("path", "group", "patient_id", "split", "fold", "part", "judged", "label", "image")
TISSUE = 20.0
"""A patch of a slide is tissue when the mean over its pixels of (largest - smallest channel) is at least this."""


@dataclass(frozen=True)
class LabelledSet:
    """A set of labelled images."""

    name: str
    quarters: bool
    """Whether an image is cut in four, each judged by itself; otherwise the image is one tile."""
    native: bool
    """Whether patches of its own resolution are cut for training beside those that are judged."""


SAME_FIELD = {
    "lungaca220_108": "lungaca1674_113",
    "colonca4271_106": "colonca3978_107",
    "lungn4547_107": "lungn3960_110",
    "lungn462_119": "lungn3790_115",
}
"""Images of `lung_colon` that show the field of another one, turned or mirrored: the set was published augmented.

All pairs of a class were compared, plain and mirrored, by the key points (SIFT) that one similarity transform explains:
563, 185, 47 and 20 in these four, at most 9 in every other.
"""

SETS = (LabelledSet("lung_colon", True, True), LabelledSet("colorectal", False, False))


def make_tissue(slides: Path, tiles: Path, out: Path) -> Path:
    """Write ``out/tissue.csv`` and the patches that it lists; nothing when it is there.

    Columns: ``path``; ``group``, what a store keeps or leaves out as a whole: a part of a slide or of a fold; ``fold``
    (empty for slides), ``part``; ``patient_id``, ``split``; and for what is judged ``judged`` (the set), ``label``,
    ``image`` (that shows its field first).
    """
    table = out / "tissue.csv"
    if table.exists():
        return table
    (out / "patches").mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, str]] = []
    for row, pixels in (*_of_slides(slides), *(pair for of in SETS for pair in _of_set(tiles / of.name, of))):
        name = f"patches/{row['group']}-{len(rows):05d}.png"
        with replacing(out / name) as partial:
            PIL.Image.fromarray(pixels).save(partial, format="PNG")
        rows.append({"path": name, "patient_id": row["group"], "split": "train", **row})
    with replacing(table) as partial, partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, _COLUMNS, restval="")
        writer.writeheader()
        writer.writerows(rows)
    return table


def _of_slides(folder: Path) -> Iterator[tuple[dict[str, str], RGB]]:
    for name, (mpp, wanted) in SLIDES.items():
        with openslide.OpenSlide(folder / name) as slide:
            picture = slide.read_region((0, 0), 0, slide.dimensions).convert("RGB")
        for target in wanted:
            size = (round(picture.width * mpp / target), round(picture.height * mpp / target))
            scaled = picture if size == picture.size else picture.resize(size, PIL.Image.Resampling.BOX)
            kept = [
                patch
                for patch in _grid(np.asarray(scaled), PATCH_PX)
                if np.ptp(patch, axis=2).mean() >= TISSUE
            ]
            for number, patch in enumerate(kept):  # from top to bottom, so that a part is a region
                yield _place(Path(name).stem, "", number * PARTS // len(kept)), patch


def _of_set(folder: Path, of: LabelledSet) -> Iterator[tuple[dict[str, str], RGB]]:
    with (folder / "labels.csv").open(newline="") as file:
        listed = sorted(csv.DictReader(file), key=lambda row: (row["label"], row["image_id"]))
    first = {row["image_id"]: SAME_FIELD.get(row["image_id"], row["image_id"]) for row in listed}
    of_label: dict[str, list[str]] = defaultdict(list)
    for row in listed:
        if first[row["image_id"]] == row["image_id"]:
            of_label[row["label"]].append(row["image_id"])
    for row in listed:
        image = first[row["image_id"]]
        part, fold = divmod(of_label[row["label"]].index(image), FOLDS)
        picture = np.asarray(PIL.Image.open(folder / row["path"]).convert("RGB"))
        place = _place(of.name, str(fold), part % PARTS)
        judged = {"judged": of.name, "label": row["label"], "image": image}
        for tile in _grid(picture, len(picture) // 2) if of.quarters else (picture,):
            yield {**place, **judged}, _resized(tile)
        if of.native:
            for patch in _grid(picture, PATCH_PX):
                yield place, patch


def _place(source: str, fold: str, part: int) -> dict[str, str]:
    return {"group": "-".join((source, *fold, str(part))), "fold": fold, "part": str(part)}


def _grid(picture: RGB, side: int) -> Iterator[RGB]:
    height, width = picture.shape[:2]
    for y in range(0, height - side + 1, side):
        for x in range(0, width - side + 1, side):
            yield picture[y : y + side, x : x + side]


def _resized(picture: RGB) -> RGB:
    return np.asarray(
        PIL.Image.fromarray(picture).resize((PATCH_PX, PATCH_PX), PIL.Image.Resampling.BILINEAR)
    )
