"""What ``embed`` keeps of a block; runs in the workers."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.embed.parts import PartSink
from pipeline.inference.encoding import Encoded, Kept
from pipeline.inference.loaded import OnDevice
from pipeline.inference.task import Task
from pipeline.runtime import devices
from pipeline.views.policy import Policy
from stores.errors import FeatureError
from stores.format import manifest

TILING = "tiling"
"""The folder with the manifest of tiled slides."""


@dataclass(frozen=True, slots=True)
class PartStage:
    """``embed`` of the centre crops of patches, block by block into parts."""

    out: Path
    """Absolute: workers may stand in another folder."""
    patch_px: int
    crop_px: int
    tiles: bool
    """Whether the patches are tiles of a CSV, which have no place in a slide."""

    def kept(self, encoder: OnDevice) -> Kept:
        """Float32 features of the centre crop."""
        return Kept(Policy("none", patch_px=self.patch_px, crop_px=self.crop_px), _encode, np.float32)

    def patches(self, task: Task) -> manifest.Patches:
        """The slide's patches as they were tiled; tiles all lie at (0, 0)."""
        if self.tiles:
            zeros = np.zeros(task.n_patches, np.int32)
            return manifest.Patches(zeros, zeros, np.ones(task.n_patches, np.float32))
        return manifest.read_patches(self.out / TILING, task.source.slide_id, task.n_patches)

    def sink(self, task: Task) -> PartSink:
        """What writes a task's part."""
        return PartSink(self.out, task)


def _encode(
    encoder: OnDevice, views: npt.NDArray[np.uint8], positions: npt.NDArray[np.int32] | None
) -> Encoded:
    """Features of views (B, crop_px, crop_px, 3), float32 (B, dim)."""
    values: npt.NDArray[np.float32] = encoder.launch(views).cpu().numpy()
    if not np.isfinite(values).all():
        raise FeatureError(
            f"the encoder returned {values[~np.isfinite(values)][0]}: {devices.remedy(encoder.dtype)}"
        )
    return Encoded(values)
