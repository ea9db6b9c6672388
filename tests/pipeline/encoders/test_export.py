"""Exported folders: timm and `load_encoder` open them with equal features, and bad ones are refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.encoders import export
from pipeline.encoders.encoder import Encoder
from pipeline.encoders.export import export_encoder, weights_sha256
from pipeline.encoders.load import load_encoder
from pipeline.encoders.presets import PRESETS, Preset
from pipeline.encoders.timm_models import create
from pipeline.encoders.torchvision_cpu import make_importable
from pipeline.encoders.weights import read_checkpoint
from stores.errors import DiskFull
from tests.tools.encoders import (
    SWIGLU,
    TINY,
    as_safetensors,
    make_views,
    refusal,
    shaken,
    state_of,
    trained_encoder,
)


@pytest.fixture(scope="module")
def trained() -> Encoder:
    return trained_encoder()


def timm_features(folder: Path, encoder: Encoder, views: Tensor) -> Tensor:
    make_importable()
    import timm

    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    config: Any = model.pretrained_cfg
    mean, std = (torch.tensor(config[key]).view(3, 1, 1) for key in ("mean", "std"))
    assert tuple(config["input_size"]) == (3, encoder.image_px, encoder.image_px)
    return model((views.permute(0, 3, 1, 2).contiguous() / 255 - mean) / std)


@pytest.mark.parametrize("spec", [TINY, SWIGLU, f"{SWIGLU}&dynamic_img_size=true", "test_resnet"])
def test_export_opens_in_timm_and_here_with_equal_features(spec: str, tmp_path: Path) -> None:
    source = shaken(load_encoder(spec, random_weights=1))
    source = Encoder(
        replace(source.preset, mean=(0.7, 0.6, 0.7), std=(0.2, 0.3, 0.2), mpp=0.5), source.backbone
    ).eval()
    folder = tmp_path / "run" / "student"
    export_encoder(source, folder, {"steps": 12})
    views = make_views(side=source.image_px)
    loaded = load_encoder(str(folder))
    with torch.inference_mode():
        expected = source(views)
        assert torch.equal(loaded(views), expected)
        assert torch.equal(timm_features(folder, source, views), expected)
    for field in ("name", "dim", "mean", "std", "image_px", "mpp", "pooling", "licence"):
        assert getattr(loaded, field) == getattr(source, field)
    config = json.loads((folder / "config.json").read_text())
    assert config["g2l"]["extra"] == {"steps": 12}
    assert config["g2l"]["weights_sha256"] == weights_sha256(source) == weights_sha256(loaded)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("name", [name for name, preset in PRESETS.items() if preset.hub is not None])
def test_every_published_preset_can_be_exported(name: str, tmp_path: Path) -> None:
    preset = PRESETS[name]
    small = {"depth": 1, "embed_dim": 48, "num_heads": 4}
    dim = 96 if preset.pooling == "cls+mean" else 48
    preset = replace(preset, kwargs={**preset.kwargs, **small}, dim=dim, mpp=0.5)
    source = shaken(Encoder(preset, create(preset)).eval())
    export_encoder(source, tmp_path, {})
    views = make_views(1, 224)
    loaded = load_encoder(str(tmp_path))
    with torch.inference_mode():
        assert torch.equal(loaded(views), source(views))
        if preset.pooling == "cls":
            assert torch.equal(timm_features(tmp_path, source, views), source(views))
    assert (loaded.name, loaded.pooling, loaded.licence) == (name, preset.pooling, preset.licence)


def test_an_exported_folder_can_be_untrained_or_filled_from_elsewhere(
    trained: Encoder, tmp_path: Path
) -> None:
    export_encoder(load_encoder(TINY, random_weights=9), tmp_path / "student", {})
    spec = str(tmp_path / "student")
    other = as_safetensors(state_of(trained), tmp_path)
    assert weights_sha256(load_encoder(spec, weights=other)) == weights_sha256(trained)
    assert weights_sha256(load_encoder(spec, random_weights=9)) == weights_sha256(load_encoder(spec))


def test_a_new_export_does_not_change_the_file_that_a_reader_has_open(
    trained: Encoder, tmp_path: Path
) -> None:
    export_encoder(trained, tmp_path, {})
    old = (tmp_path / "model.safetensors").read_bytes()
    with (tmp_path / "model.safetensors").open("rb") as reader:
        export_encoder(load_encoder(TINY, random_weights=3), tmp_path, {})
        assert reader.read() == old
    assert (tmp_path / "model.safetensors").read_bytes() != old


def test_a_failed_export_leaves_the_old_folder_as_it_was(
    trained: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "README.md").write_text("card")
    export_encoder(trained, tmp_path, {})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full_disk(tensors: object, path: Path, **how: object) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export.safetensors.torch, "save_file", full_disk)
    with pytest.raises(DiskFull, match=r"model\.safetensors: the disk is full"):
        export_encoder(load_encoder(TINY, random_weights=3), tmp_path, {"new": True})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_folder_that_timm_wrote_opens(trained: Encoder, tmp_path: Path) -> None:
    make_importable()
    from timm.models import save_for_hf

    save_for_hf(trained.backbone, str(tmp_path), safe_serialization=True)
    loaded = load_encoder(str(tmp_path))
    with torch.inference_mode():
        assert torch.equal(loaded(make_views()), trained(make_views()))
    assert (loaded.name, loaded.pooling, loaded.mpp) == (tmp_path.name, "forward", None)


def test_a_module_that_stands_under_two_names_is_exported_under_both(tmp_path: Path) -> None:
    """As in timm's CoaT; safetensors refuses tensors that share memory."""
    inner = nn.Linear(3, 3)
    preset = Preset(name="mine:make", dim=3, mean=(0, 0, 0), std=(1, 1, 1))
    export_encoder(Encoder(preset, nn.Sequential(inner, nn.ReLU(), inner)), tmp_path, {})
    found = read_checkpoint(tmp_path)
    assert sorted(found) == ["0.bias", "0.weight", "2.bias", "2.weight"]
    assert torch.equal(found["0.weight"], inner.weight)
    assert torch.equal(found["2.weight"], inner.weight)


def test_an_encoder_made_by_a_function_is_kept_and_says_how_it_opens(tmp_path: Path) -> None:
    preset = Preset(name="mine:make", dim=3, mean=(0, 0, 0), std=(1, 1, 1))
    source = Encoder(preset, nn.Linear(3, 3))
    export_encoder(source, tmp_path, {})
    message = refusal(str(tmp_path))
    assert "made by a function" in message
    assert "--weights" in message
    assert torch.equal(read_checkpoint(tmp_path)["weight"], source.backbone.get_parameter("weight"))


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ("not json", "not a readable JSON file"),
        ({"architecture": "transformers_model"}, "which timm does not know"),
        ({"model_type": "dinov2"}, "has architecture None"),
        ({"g2l": {"pooling": "max"}}, "pooling 'max'; allowed: cls, cls+mean, cls-average, forward"),
        ({"g2l": {"mean": "red"}}, "three numbers"),
        ({"g2l": {"std": [1, 1, 0]}}, "positive numbers"),
        ({"g2l": {"mpp": "fine"}}, "does not have timm's form (ValueError"),
        ({"g2l": []}, "does not have timm's form (AttributeError"),
        ({"pretrained_cfg": {"fixed_input_size": True}}, "does not have timm's form (KeyError"),
        ({"model_args": {"img_size": [32, 64]}}, "only square ones"),
        ({"model_args": {"stem_width": 1}}, "timm cannot build"),
        ({"model_args": {"embed_dim": 3000, "num_heads": 3, "img_size": 32}}, "does not fit"),
    ],
)
def test_a_folder_with_a_bad_config(trained: Encoder, change: object, part: str, tmp_path: Path) -> None:
    export_encoder(trained, tmp_path, {})
    config = json.loads((tmp_path / "config.json").read_text())
    if isinstance(change, dict):
        change = json.dumps({**change} if "model_type" in change else {**config, **change})
    (tmp_path / "config.json").write_text(str(change))
    assert part in refusal(str(tmp_path))


def test_a_folder_without_config_points_to_the_student(trained: Encoder, tmp_path: Path) -> None:
    assert "holds no config.json" in refusal(str(tmp_path))
    export_encoder(trained, tmp_path / "student", {})
    assert f"its subfolder {tmp_path / 'student'} has one" in refusal(str(tmp_path))
