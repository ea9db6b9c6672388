"""Encoders: architectures, Normalize, pooling, names, random weights and users' functions."""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.encoders.encoder import Encoder
from pipeline.encoders.export import weights_sha256
from pipeline.encoders.load import load_encoder
from pipeline.encoders.presets import PRESETS, Preset
from pipeline.encoders.timm_models import create, timm_preset
from pipeline.encoders.torchvision_cpu import make_importable
from pipeline.inference.loaded import EncoderSpec, load_on_device
from stores.errors import EncoderError, OptionError
from stores.format.terms import OPEN
from tests.tools.encoders import TINY, make_views, refusal
from tests.tools.settings import ROOT


def tiny(**changes: Any) -> Encoder:
    """A small ViT with four registers, under a preset that is like TINY except for `changes`."""
    encoder = load_encoder(TINY, random_weights=0)
    return Encoder(replace(encoder.preset, **changes), encoder.backbone).eval()


PUBLISHED_PARAMS = {
    "h-optimus-0": 1_134_774_272,
    "h-optimus-1": 1_134_774_272,
    "h0-mini": 85_739_520,
    "h0-mini-cls-mean": 85_739_520,
    "hibou-l": 303_657_216,
    "uni2-h": 681_394_176,
    "virchow2": 631_239_424,
    "prov-gigapath": 1_134_953_984,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED_PARAMS)
def test_preset_has_the_published_number_of_parameters(name: str) -> None:
    with torch.device("meta"):
        backbone = create(PRESETS[name])
    count = sum(parameter.numel() for parameter in backbone.parameters())
    assert count == PRESETS[name].params == PUBLISHED_PARAMS[name]


def card_recipe(name: str) -> tuple[str, dict[str, Any]]:
    """How the model cards create the encoder with timm."""
    make_importable()
    from timm.layers import SwiGLUPacked

    swiglu: dict[str, Any] = {"mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU, "img_size": 224}
    recipes: dict[str, tuple[str, dict[str, Any]]] = {
        "h-optimus-0": ("vit_giant_patch14_reg4_dinov2", {"img_size": 224, "init_values": 1e-5}),
        "h0-mini": ("vit_base_patch14_reg4_dinov2", {**swiglu, "mlp_ratio": 5.33334}),
        "hibou-l": ("vit_large_patch14_reg4_dinov2", {**swiglu, "mlp_ratio": 5.34375, "init_values": 1e-5}),
        "uni2-h": (
            "vit_giant_patch14_224",
            {
                **swiglu,
                "patch_size": 14,
                "num_heads": 24,
                "init_values": 1e-5,
                "embed_dim": 1536,
                "mlp_ratio": 2.66667 * 2,
                "no_embed_class": True,
                "reg_tokens": 8,
                "dynamic_img_size": True,
            },
        ),
        "virchow2": (
            "vit_huge_patch14_224",
            {
                **swiglu,
                "init_values": 1e-5,
                "mlp_ratio": 5.3375,
                "reg_tokens": 4,
                "global_pool": "",
                "dynamic_img_size": True,
            },
        ),
        "prov-gigapath": (
            "vit_giant_patch14_dinov2",
            {"img_size": 224, "patch_size": 16, "num_heads": 24, "mlp_ratio": 5.33334, "init_values": 1e-5},
        ),
    }
    return recipes[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["h-optimus-0", "h0-mini", "hibou-l", "uni2-h", "virchow2", "prov-gigapath"])
def test_preset_computes_what_the_model_card_creates(name: str) -> None:
    make_importable()
    import timm

    preset = replace(PRESETS[name], kwargs={**PRESETS[name].kwargs, "depth": 1})
    ours: Any = create(preset).eval()
    arch, kwargs = card_recipe(name)
    theirs: Any = timm.create_model(arch, num_classes=0, **kwargs, depth=1).eval()
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.uniform_(-0.05, 0.05)
    theirs.load_state_dict(ours.state_dict())
    images = torch.rand(1, 3, 224, 224)
    with torch.inference_mode():
        assert torch.equal(ours.forward_features(images), theirs.forward_features(images))
        features = Encoder(preset, ours)(make_views(1, 224))
    assert features.shape == (1, PRESETS[name].dim)


def test_a_registry_entry_says_where_its_weights_are_and_what_they_permit() -> None:
    for name, preset in PRESETS.items():
        assert preset.name == name
        assert preset.licence != "unknown"
        for terms in preset.terms:
            assert terms.licence.source
            assert terms.licence.date
    for name in PUBLISHED_PARAMS:
        assert PRESETS[name].mpp == 0.5
        assert PRESETS[name].source.startswith("hf-hub:")
    assert "commercial use of models trained on its outputs" in PRESETS["uni2-h"].terms[0].outputs.says
    assert PRESETS["prov-gigapath"].terms[0].licence.says == "Apache-2.0"
    assert "terms of its own" in PRESETS["prov-gigapath"].terms[0].access.says
    open_ones = {name for name, preset in PRESETS.items() if preset.hub is not None and not preset.gated}
    assert {"midnight-12k", "openpath", "phikon-v2", "kaiko-s16"} <= open_ones
    assert all(preset.terms[0].access.says == OPEN for preset in map(PRESETS.get, open_ones) if preset)
    real = {(preset.hub, preset.arch) for preset in PRESETS.values() if preset.hub is not None}
    assert len(real) >= 16
    for preset in PRESETS.values():
        assert bool(preset.revision) == bool(preset.sha256)
        assert set(preset.sha256) <= set(preset.files)
        assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in preset.sha256.values())
    assert "LicenseRef-kaiko-non-commercial" in PRESETS["distillpath-ks16-hopt0"].licence
    assert "Apache-2.0" in PRESETS["distillpath-ks16-hopt0"].licence
    assert replace(PRESETS["hibou-l"], asset="demo.safetensors").source == "shipped"


@pytest.mark.slow
def test_listing_presets_needs_no_torch_and_importing_encoders_no_timm() -> None:
    code = (
        "import sys, pipeline.encoders.presets; assert 'torch' not in sys.modules\n"
        "import pipeline.encoders.load; assert not {'timm', 'torchvision', 'huggingface_hub'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.parametrize("name", ["h-optimus-0", "hibou-l"])
def test_own_normalize_equals_torchvision_to_the_last_bit(name: str) -> None:
    make_importable()
    from torchvision.transforms import functional

    preset = PRESETS[name]
    encoder = tiny(mean=preset.mean, std=preset.std)
    views = make_views()
    images = torch.stack([functional.to_tensor(view.numpy()) for view in views])
    images = functional.normalize(images, list(preset.mean), list(preset.std))
    with torch.inference_mode():
        assert torch.equal(encoder(views), encoder.backbone(images))
        other = tiny(mean=(0.5, 0.5, 0.5), std=preset.std)
        assert not torch.allclose(encoder(views), other(views))


@pytest.mark.parametrize("name", ["resnet10t", TINY])
@torch.inference_mode()
def test_channels_last_is_the_same_arithmetic_in_another_order(name: str) -> None:
    plain = load_on_device(EncoderSpec(name, random_weights=0, device="cpu"))
    last = load_on_device(EncoderSpec(name, random_weights=0, device="cpu", channels_last=True))
    assert last.identity == plain.identity
    views = make_views(2, plain.identity.image_px)
    images = last.encoder.normalized(views)
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(images, plain.encoder.normalized(views))
    torch.testing.assert_close(last.launch(views.numpy()), plain.launch(views.numpy()), rtol=1e-4, atol=1e-5)
    if last.encoder.takes(64):
        assert last.encoder.for_views(64)._layout == torch.channels_last


def test_normalize_stays_float32_and_out_of_the_state_dict() -> None:
    encoder = tiny(mean=PRESETS["hibou-l"].mean)
    seen: list[Tensor] = []
    encoder.backbone.get_submodule("patch_embed").register_forward_pre_hook(
        lambda module, args: seen.append(args[0])
    )
    views = make_views()
    encoder(views)
    assert encoder.to(torch.bfloat16)(views).dtype == torch.bfloat16
    assert torch.equal(seen[1], seen[0].to(torch.bfloat16))
    assert all(key.startswith("backbone.") for key in encoder.state_dict())


def test_views_are_not_changed() -> None:
    views = make_views()
    before = views.clone()
    tiny()(views)
    assert torch.equal(views, before)


def test_poolings_on_a_vit_with_registers() -> None:
    cls, both, forward = (
        tiny(pooling=pooling, dim=dim) for pooling, dim in (("cls", 24), ("cls+mean", 48), ("forward", 24))
    )
    views = make_views()
    tokens: list[Tensor] = []
    both.backbone.get_submodule("norm").register_forward_hook(
        lambda module, args, output: tokens.append(output)
    )
    with torch.inference_mode():
        concatenated = both(views).numpy()
        assert torch.equal(cls(views), forward(views))
    after_norm = tokens[0].numpy()
    assert after_norm.shape == (3, 1 + 4 + 4, 24)  # class token, four registers, 2 x 2 patches
    np.testing.assert_array_equal(concatenated[:, :24], after_norm[:, 0])
    np.testing.assert_allclose(concatenated[:, 24:], after_norm[:, [5, 6, 7, 8]].mean(1), atol=1e-6)
    np.testing.assert_array_equal(cls(views).detach().numpy(), after_norm[:, 0])


def test_pooling_by_class_token_needs_one() -> None:
    encoder = load_encoder("resnet10t", random_weights=0)
    with pytest.raises(EncoderError, match="has no class token"):
        Encoder(replace(encoder.preset, pooling="cls"), encoder.backbone)


def test_views_of_another_size_are_refused_with_both_sizes() -> None:
    with pytest.raises(EncoderError, match=r"views are 48x32 px, .* takes 32x32 px"):
        tiny()(torch.zeros(1, 32, 48, 3, dtype=torch.uint8))


def test_what_takes_any_size_takes_the_size_of_the_views() -> None:
    encoder = load_encoder("resnet10t", random_weights=0)
    assert (encoder.image_px, encoder.for_views(224).image_px) == (176, 224)
    assert encoder.for_views(224).backbone is encoder.backbone
    dynamic = load_encoder(f"{TINY}&dynamic_img_size=true", random_weights=0)
    assert (dynamic.takes(48), dynamic.takes(40), tiny().takes(48)) == (True, False, False)
    assert dynamic.for_views(48)(make_views(1, 48)).shape == (1, 24)


def test_a_cnn_whose_layers_shrink_a_view_to_nothing_refuses_it_beforehand() -> None:
    """As Inception-v3 does views of 64 px; timm says of it, too, that it takes any size."""
    backbone = nn.Sequential(
        nn.Conv2d(3, 4, 9, stride=4), nn.Conv2d(4, 4, 5), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    backbone.pretrained_cfg = {"fixed_input_size": False}  # type: ignore[assignment]
    preset = Preset(name="cnn", dim=4, mean=(0, 0, 0), std=(1, 1, 1), image_px=64)
    encoder = Encoder(preset, backbone).train()
    assert encoder.for_views(32).image_px == 32
    with pytest.raises(
        EncoderError, match=r"cnn takes 64 px and cannot take 20 px \(.*Kernel size.*\); choose"
    ):
        encoder.for_views(20)
    assert encoder.training


def test_a_size_that_does_not_fit_is_refused_with_the_name_that_does() -> None:
    encoder = load_encoder("timm:vit_small_patch14_dinov2?depth=1", random_weights=0)
    advice = r"vit_small_patch14_dinov2\?depth=1&img_size=224"
    with pytest.raises(
        EncoderError, match=f"takes 518 px, not 224, or have it built for such views: {advice}"
    ):
        encoder.for_views(224)
    with pytest.raises(EncoderError, match=advice):
        encoder(make_views(1, 224))
    named = load_encoder("vit_small_patch14_dinov2?depth=1&img_size=224", random_weights=0)
    assert named.image_px == 224
    with pytest.raises(EncoderError, match=r"dinov2\?depth=1&img_size=112$"):
        named.for_views(112)
    preset = replace(encoder.preset, name="h-optimus-0")  # a preset's size is part of it
    assert Encoder(preset, encoder.backbone).resizable is None


def test_dynamic_size_takes_multiples_of_the_patch() -> None:
    encoder = load_encoder(f"{TINY}&dynamic_img_size=true", random_weights=0)
    assert encoder(make_views(1, 48)).shape == (1, 24)
    with pytest.raises(EncoderError, match="multiples of 16 px"):
        encoder(make_views(1, 40))


@pytest.mark.parametrize(
    "views",
    [
        torch.zeros(1, 32, 32, 3),
        torch.zeros(1, 3, 32, 32, dtype=torch.uint8),
        torch.zeros(32, 32, 3, dtype=torch.uint8),
    ],
)
def test_anything_but_uint8_bhwc_is_refused(views: Tensor) -> None:
    with pytest.raises(EncoderError, match=r"uint8 \(B, H, W, 3\) expected"):
        tiny()(views)


def test_timm_name_brings_its_own_normalize_size_and_dim() -> None:
    encoder = load_encoder("timm:vit_tiny_patch16_224?depth=1", random_weights=1)
    assert (encoder.dim, encoder.image_px, encoder.mpp, encoder.pooling) == (192, 224, None, "forward")
    assert (encoder.mean, encoder.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert timm_preset("vit_tiny_patch16_224").licence == "Apache-2.0"
    assert encoder.licence == "unknown"  # timm's is of timm's weights
    assert not encoder.training
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.float32}


def test_timm_tag_and_arguments_reach_the_architecture() -> None:
    preset = timm_preset("vit_small_patch14_dinov2.lvd142m?img_size=224")
    assert (preset.image_px, preset.hub, preset.dim) == (224, "timm/vit_small_patch14_dinov2.lvd142m", 384)
    assert timm_preset("mobilenetv3_small_100").dim == 1024  # its features are wider than its num_features


@pytest.mark.parametrize(
    ("spec", "part"),
    [
        ("hoptimus0", "did you mean h-optimus-0"),
        ("HIBOU-L", "did you mean hibou-l"),
        ("vit_smal_patch16_224", "did you mean vit_small_patch16_224"),
        ("qqqq", "`g2l models` lists presets"),
        ("a\nb", "unknown encoder"),
        ("", "unknown encoder"),
        ("timm:nothing", "unknown encoder 'nothing'"),
        ("bioptimus/H-optimus-0", "did you mean hf-hub:bioptimus/H-optimus-0"),
        ("no/such/folder", "no such folder 'no/such/folder'"),
        ("vit_tiny_patch16_224.zzz", "allowed: vit_tiny_patch16_224.augreg_in21k"),
        ("vit_tiny_patch16_224?depht=2", "did you mean depth"),
        ("no_module_of_this_name:make", "no module 'no_module_of_this_name'"),
        (".:make", "'.' is no module's name"),
        ("hf-hub", "unknown encoder"),
        ("timm:", "unknown encoder"),
        ("json:", "json has no function ''"),
        (":make", "'' is no module's name"),
        ("missing.py:make", "there is no file missing.py"),
        ("json:nothing", "json has no function 'nothing'"),
        ("json:dumps", "needs arguments"),
        ("os:getcwd", "returned str"),
    ],
)
def test_unknown_encoder_is_one_line_with_a_way_out(spec: str, part: str) -> None:
    assert part in refusal(spec, random_weights=0)


def test_a_file_is_no_architecture(tmp_path: Path) -> None:
    weights, code = tmp_path / "teacher.pth", tmp_path / "mine.py"
    weights.touch()
    code.touch()
    assert f"--weights {weights}" in refusal(str(weights))
    assert f"{code}:FUNCTION" in refusal(str(code))


def test_weights_and_random_weights_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="exclude each other"):
        load_encoder(TINY, weights=tmp_path, random_weights=0)


def test_random_weights_repeat_and_leave_torch_alone() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first = weights_sha256(load_encoder(TINY, random_weights=5))
    assert torch.equal(torch.rand(3), expected)
    assert weights_sha256(load_encoder(TINY, random_weights=5)) == first
    assert weights_sha256(load_encoder(TINY, random_weights=6)) != first


def test_documentation_agrees_with_the_registry(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "reference" / "encoders.md").read_text(encoding="utf-8")
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in page.splitlines()
        if line.startswith("| `")
    ]
    table = {row[0].strip("`"): row for row in rows if row[0].strip("`") in PRESETS}
    for name, preset in PRESETS.items():
        _, dim, params, pooling, _, source, licence = table[name]
        assert (dim, pooling) == (str(preset.dim), f"`{preset.pooling}`")
        assert params == f"{preset.params / 1e6:,.1f} M"
        assert preset.hub is None or source == f"`{preset.hub}`" + (", gated" if preset.gated else "")
        assert licence.startswith(preset.licence)
    example = page.split("```python\n")[1].split("```")[0]
    (tmp_path / "example.py").write_text(example)
    encoder = load_encoder(f"{tmp_path}/example.py:make")
    assert encoder(make_views(2, 224)).shape == (2, 32)
