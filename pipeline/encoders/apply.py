"""Embed arrays of views with a loaded encoder."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.encoders.encoder import Encoder


@torch.inference_mode()
def embed(
    student: Encoder, views: npt.NDArray[np.uint8], batch_size: int, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """The student's embeddings of views (N, H, W, 3), float32 (N, d_s) on the CPU."""
    training = student.training
    student.eval()
    parts = []
    for start in range(0, len(views), batch_size):
        batch = torch.from_numpy(views[start : start + batch_size]).to(device)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            parts.append(student(batch).float().cpu())
    student.train(training)
    return torch.cat(parts)
