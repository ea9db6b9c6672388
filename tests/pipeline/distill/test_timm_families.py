"""Students of many timm families: a step of training, the exported folder, and that folder opened again.

Names of tensors mean different things in different families, and files that come from other labs are renamed on the
way in; what g2l wrote itself must come back as it is.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.distill import ranks
from pipeline.distill.inputs import Data
from pipeline.distill.model import Targets, Teaching
from pipeline.distill.options import DistillOptions
from pipeline.distill.trainer import make_trainer
from pipeline.encoders.export import export_encoder, weights_sha256
from pipeline.encoders.load import load_encoder
from tests.tools.encoders import make_views

_VIT: dict[str, object] = {"img_size": 32, "depth": 2, "embed_dim": 24, "num_heads": 3}
_STAGES: dict[str, object] = {"depths": [1, 1, 1, 1]}
_SWIN = {**_STAGES, "img_size": 64, "window_size": 4, "embed_dim": 12, "num_heads": [1, 1, 2, 2]}
FAMILIES: dict[str, dict[str, object]] = {
    "vit_tiny_patch16_224": _VIT,
    "deit_tiny_distilled_patch16_224": _VIT,
    "vit_giant_patch14_reg4_dinov2": {**_VIT, "img_size": 28, "mlp_ratio": 5.33334},  # SwiGLU, as Hibou-L
    "beit_base_patch16_224": _VIT,
    "eva02_tiny_patch14_224": {**_VIT, "img_size": 28},
    "hiera_tiny_224": {"img_size": 64, "embed_dim": 12},
    "swin_tiny_patch4_window7_224": _SWIN,
    "swinv2_tiny_window8_256": _SWIN,
    "coatnet_pico_rw_224": {**_STAGES, "img_size": 64, "embed_dim": [32, 32, 64, 64]},
    "pvt_v2_b0": _STAGES,
    "fastvit_t8": {"layers": [1, 1, 1, 1]},
    "test_convnext": {},
    "test_efficientnet": {},
    "mobilenetv3_small_050": {},
    "test_resnet": {},
    "regnetx_002": {},
    "densenet121": {},
}
TIMM_ALONE = """
import sys
sys.modules |= {"pipeline": None, "stores": None, "cli": None}  # as if this project were not installed
import numpy, torch
try:
    import torchvision
except RuntimeError:  # a CPU-only torch beside torchvision's CUDA wheels lacks two operators
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor a, Tensor b, float c) -> Tensor")
    library.define("qnms(Tensor a, Tensor b, float c) -> Tensor")
import timm

for folder, views, features in zip(sys.argv[1::3], sys.argv[2::3], sys.argv[3::3], strict=True):
    model = timm.create_model("local-dir:" + folder, pretrained=True).eval()
    mean, std = (torch.tensor(model.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    images = torch.from_numpy(numpy.load(views)).permute(0, 3, 1, 2).contiguous().float() / 255
    with torch.inference_mode():
        numpy.save(features, model((images - mean) / std).numpy())
"""
"""Arguments: a folder, a file of uint8 views (B, H, W, 3) and a file of features to write, for each student."""


class Student(NamedTuple):
    """A student after a step, where it was exported to, and what it computes."""

    folder: Path
    sha256: str
    views: Tensor
    features: Tensor


def make_student(family: str, folder: Path) -> Student:
    config = {"architecture": family, "model_args": FAMILIES[family], "pretrained_cfg": {}}
    side = cast(int, FAMILIES[family].get("img_size", 32))
    (folder / "described").mkdir()
    (folder / "described/config.json").write_text(json.dumps({**config, "g2l": {"image_px": side}}))
    encoder = load_encoder(str(folder / "described"), random_weights=1)
    before = weights_sha256(encoder)
    teaching = Teaching(8, np.zeros(8), np.ones(8))
    data = SimpleNamespace(crop_px=side, teachings=[teaching])
    views, generator = make_views(3, side), torch.Generator().manual_seed(0)
    with ranks.join("cpu") as alone:
        options = DistillOptions(student=family, random_weights=1)
        trainer = make_trainer(encoder, cast(Data, data), options, alone)
        targets = Targets(
            torch.randn(3, 8, generator=generator), torch.zeros(3, 0, 1), torch.zeros(3, 0).long()
        )
        trainer.step(views, targets, 1e-3, 0.05)
    student = trainer.model.student.eval()
    export_encoder(student, folder / "student", {})
    assert weights_sha256(student) != before
    with torch.inference_mode():
        return Student(folder / "student", weights_sha256(student), views, student(views))


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Student]:
    """The student of a family, made once."""
    made: dict[str, Student] = {}

    def of(family: str) -> Student:
        if family not in made:
            made[family] = make_student(family, tmp_path_factory.mktemp(family))
        return made[family]

    return of


@pytest.mark.parametrize("family", FAMILIES)
def test_what_was_trained_and_exported_opens_here(family: str, student: Callable[[str], Student]) -> None:
    made = student(family)
    loaded: Any = load_encoder(str(made.folder))
    assert weights_sha256(loaded) == made.sha256
    with torch.inference_mode():
        assert torch.equal(loaded(made.views), made.features)


@pytest.mark.slow
def test_every_family_opens_in_timm_without_this_project(
    student: Callable[[str], Student], tmp_path: Path
) -> None:
    """In a process where ``pipeline`` cannot be imported."""
    students = [student(family) for family in FAMILIES]
    for index, made in enumerate(students):
        np.save(tmp_path / f"{index}.views.npy", made.views.numpy())
    names = [
        str(name)
        for index, made in enumerate(students)
        for name in (made.folder, tmp_path / f"{index}.views.npy", tmp_path / f"{index}.features.npy")
    ]
    # torch's threads may add in another order than ours
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    subprocess.run([sys.executable, "-c", TIMM_ALONE, *names], check=True, env=environment, timeout=300)
    for index, (family, made) in enumerate(zip(FAMILIES, students, strict=True)):
        found = np.load(tmp_path / f"{index}.features.npy")
        np.testing.assert_array_equal(found, made.features.numpy(), err_msg=family)
