"""A student as a custom model of THUNDER (thunder-bench 0.2.2).

    G2L_STUDENT=run/student thunder benchmark custom:thunder_student.py crc linear_probing

THUNDER makes an object of the one class here, without arguments.
"""

import hashlib
import os
from pathlib import Path

from thunder.models import PretrainedModel

import pipeline as g2l


class Student(PretrainedModel):
    vlm = False  # no text

    def __init__(self):
        super().__init__()
        folder = Path(os.environ["G2L_STUDENT"]).resolve()
        self.encoder = g2l.load_encoder(str(folder))
        # THUNDER keeps embeddings by name: another student must have another one
        digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
        self.name = f"{folder.parent.name}-{digest[:8]}"
        self.emb_dim = self.encoder.dim
        self.emb_dim_seg = self.encoder.backbone.num_features

    def get_transform(self):
        return self.encoder.transform

    def get_linear_probing_embeddings(self, x):
        return self.encoder.of_images(x)

    def get_segmentation_embeddings(self, x):
        """Patch tokens of a transformer, or places of a CNN's last map: (B, places, width), row by row."""
        found = self.encoder.backbone.forward_features(x)
        if found.ndim == 3:
            return found[:, self.encoder.backbone.num_prefix_tokens :]
        if found.shape[1] == self.emb_dim_seg:  # channels first
            found = found.permute(0, 2, 3, 1)
        return found.flatten(1, 2)
