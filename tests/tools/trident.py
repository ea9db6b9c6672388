"""Folders as TRIDENT and CLAM write them, from the names and attributes in their sources; features by a tiny encoder.

Patches are read as those tools read them, by OpenSlide, Pillow and torchvision alone: the ground truth of what
``store import`` shows a student.
"""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import openslide
import torch
from PIL import Image

from pipeline.encoders.apply import embed
from pipeline.encoders.load import load_encoder
from pipeline.encoders.torchvision_cpu import make_importable

ENCODER = "tests.tools.tiny:teacher"
DECLARED: dict[str, Any] = {
    "encoder": ENCODER,
    "mean": "0.7,0.6,0.7",
    "std": "0.2,0.2,0.2",
    "image_px": 224,
    "threads": 2,
}
"""What `ENCODER` is, as a user has to say it, since it is no preset."""
Pixels = npt.NDArray[np.uint8]


def grid(width_px0: int, height_px0: int, step_px0: int) -> npt.NDArray[np.int64]:
    """Corners column by column, over the right and lower edge, as TRIDENT's patcher lays them."""
    return np.array([(x, y) for x in range(0, width_px0, step_px0) for y in range(0, height_px0, step_px0)])


def views(slide: Path, corners: npt.NDArray[np.int64], level: int, read_px: int, cut_px: int) -> Pixels:
    """The patches as the encoder sees them: read, bicubic to `cut_px`, then ``Resize(224)``."""
    make_importable()
    from torchvision.transforms import Resize

    with openslide.OpenSlide(slide) as file:
        found = []
        for x, y in corners.tolist():
            image = file.read_region((x, y), level, (read_px, read_px)).convert("RGB")
            image = Resize(224)(image.resize((cut_px, cut_px), Image.Resampling.BICUBIC))
            found.append(np.asarray(image))
    return np.stack(found)


def features(seen: Pixels, random_weights: int = 0) -> npt.NDArray[np.float32]:
    """Features of views by the tiny encoder."""
    encoder = load_encoder(ENCODER, random_weights=random_weights)
    found = embed(encoder, seen, 64, torch.device("cpu"), torch.float32)
    return np.asarray(found.numpy(), np.float32)


def write_trident(
    path: Path, corners: npt.NDArray[np.int64], values: npt.NDArray[Any], **attributes: object
) -> None:
    """A file of features of TRIDENT, patches of 256 px at 20x unless `attributes` say otherwise."""
    about = {
        "patch_size": 256,
        "patch_size_level0": 256,
        "level0_magnification": 20,
        "target_magnification": 20,
        "overlap": 0,
        "name": path.stem,
        "savetodir": "/data/job",
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file.create_dataset("features", data=values)
        file["features"].attrs.update({"name": "tiny", "savetodir": "/data/job"})
        file.create_dataset("coords", data=corners)
        file["coords"].attrs.update(about | attributes)


def write_clam(
    folder: Path, name: str, corners: npt.NDArray[np.int64], values: npt.NDArray[Any], size: int, level: int
) -> None:
    """CLAM's two files of a slide: ``patches/ID.h5`` says how it was cut, ``h5_files/ID.h5`` has the features."""
    for place in ("patches", "h5_files"):
        (folder / place).mkdir(parents=True, exist_ok=True)
    with h5py.File(folder / "patches" / f"{name}.h5", "w") as file:
        file.create_dataset("coords", data=corners.astype(np.int32))
        about = {
            "patch_size": size,
            "patch_level": level,
            "downsample": 4.0,
            "level_dim": (384, 384),
            "name": name,
        }
        file["coords"].attrs.update(about | {"save_path": "/data"})
    with h5py.File(folder / "h5_files" / f"{name}.h5", "w") as file:
        file.create_dataset(
            "features", data=values, chunks=(1, values.shape[1]), maxshape=(None, values.shape[1])
        )
        file.create_dataset("coords", data=corners.astype(np.int32), chunks=(1, 2), maxshape=(None, 2))
