"""Published layouts against the models that they are written by: equal outputs, gate and value in their places.

The transformers layout is written by transformers itself; the native block is written out here from
facebookresearch/dinov2 (``layers/block.py``, ``attention.py``, ``swiglu_ffn.py``, ``models/vision_transformer.py``).
"""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pipeline.encoders import load as encoders
from pipeline.encoders.encoder import Encoder
from pipeline.encoders.presets import PRESETS, Preset
from pipeline.encoders.state_dict_layouts import to_native
from pipeline.encoders.timm_models import create
from pipeline.encoders.torchvision_cpu import make_importable
from stores.errors import WeightsError
from tests.tools.encoders import State, make_views, prefixed
from tests.tools.layouts import NativeEncoder, at_random, chunked

pytestmark = pytest.mark.slow

DEPTH = 2
HIBOU = replace(PRESETS["hibou-l"], kwargs={**PRESETS["hibou-l"].kwargs, "depth": DEPTH})
"""True width and image, two of the 24 blocks."""


def transformers_model() -> nn.Module:
    make_importable()
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    config = Dinov2WithRegistersConfig(
        hidden_size=1024,
        num_hidden_layers=DEPTH,
        num_attention_heads=16,
        mlp_ratio=4,  # two thirds of it, a multiple of 8: 2736
        image_size=224,
        patch_size=14,
        num_register_tokens=4,
        use_swiglu_ffn=True,
        layer_norm_eps=1e-6,
    )
    return Dinov2WithRegistersModel(config)


def load(path: Path, preset: Preset = HIBOU) -> Encoder:
    return encoders._build(preset, path, None)


def normalised(encoder: Encoder, views: Tensor) -> Tensor:
    return encoder.normalized(views)


VIEWS = make_views(2, 224)


@pytest.fixture(scope="module")
def native() -> NativeEncoder:
    model = at_random(NativeEncoder())
    assert isinstance(model, NativeEncoder)
    return model


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    """A model of transformers and the folder that it wrote."""
    model = at_random(transformers_model())
    folder = tmp_path_factory.mktemp("hub")
    model.save_pretrained(folder)  # type: ignore[operator]
    return model, folder / "model.safetensors"


@pytest.mark.parametrize(
    "wrap",
    [dict, chunked, lambda state: {"teacher": prefixed("backbone.", chunked(state))}],
    ids=["native", "chunked", "trainer"],
)
@torch.inference_mode()
def test_native_layout_computes_the_same(
    native: NativeEncoder, wrap: Callable[[State], Any], tmp_path: Path
) -> None:
    torch.save(wrap(native.state_dict()), tmp_path / "hibou.pth")
    encoder = load(tmp_path / "hibou.pth")
    tokens = native(normalised(encoder, VIEWS))
    ours = encoder.backbone.forward_features(normalised(encoder, VIEWS))  # type: ignore[operator]
    torch.testing.assert_close(ours, tokens, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(encoder(VIEWS), tokens[:, 0], atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_h0_mini_begins_from_a_dinov2_checkpoint(tmp_path: Path) -> None:
    """Its own width and SwiGLU, in the layout that DINOv2 trains and saves."""
    model = at_random(NativeEncoder(dim=768, heads=12, hidden=2048))
    torch.save({"teacher": prefixed("backbone.", chunked(model.state_dict()))}, tmp_path / "h0.pth")
    preset = replace(PRESETS["h0-mini"], kwargs={**PRESETS["h0-mini"].kwargs, "depth": DEPTH})
    encoder = load(tmp_path / "h0.pth", preset)
    tokens = model(normalised(encoder, VIEWS))
    torch.testing.assert_close(encoder(VIEWS), tokens[:, 0], atol=1e-5, rtol=1e-5)
    both = Encoder(replace(preset, dim=1536, pooling="cls+mean"), encoder.backbone)(VIEWS)
    expected = torch.cat([tokens[:, 0], tokens[:, 5:].mean(dim=1)], dim=1)  # four registers stay out
    torch.testing.assert_close(both, expected, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_transformers_layout_computes_the_same(hub: tuple[nn.Module, Path]) -> None:
    model, path = hub
    assert "encoder.layer.0.attention.attention.query.weight" in load_file(path)
    encoder = load(path)
    tokens = model(normalised(encoder, VIEWS)).last_hidden_state
    ours = encoder.backbone.forward_features(normalised(encoder, VIEWS))  # type: ignore[operator]
    torch.testing.assert_close(ours, tokens, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(encoder(VIEWS), tokens[:, 0], atol=1e-5, rtol=1e-5)


def test_what_transformers_has_in_memory_is_known_too(hub: tuple[nn.Module, Path], tmp_path: Path) -> None:
    model, path = hub
    assert any(".q_proj." in name for name in model.state_dict())
    torch.save({"model": prefixed("backbone.", model.state_dict())}, tmp_path / "any.pth")
    inner, published = load(tmp_path / "any.pth").backbone.state_dict(), load(path).backbone.state_dict()
    assert all(torch.equal(inner[name], published[name]) for name in published)


@pytest.mark.parametrize("layout", ["native", "transformers"])
@torch.inference_mode()
def test_gate_and_value_may_not_be_swapped(
    native: NativeEncoder, hub: tuple[nn.Module, Path], layout: str, tmp_path: Path
) -> None:
    """With the halves of ``w12`` exchanged the shapes still fit; only the numbers tell."""
    state = dict(native.state_dict()) if layout == "native" else load_file(hub[1])
    swapped = {
        name: torch.cat(value.chunk(2)[::-1]) if re.search(r"mlp\.(w12|weights_in)\.", name) else value
        for name, value in state.items()
    }
    save_file({name: value.contiguous() for name, value in swapped.items()}, tmp_path / "swapped.safetensors")
    encoder = load(tmp_path / "swapped.safetensors")
    images = normalised(encoder, VIEWS)
    tokens = native(images) if layout == "native" else hub[0](images).last_hidden_state
    ours = encoder.backbone.forward_features(images)  # type: ignore[operator]
    assert (ours - tokens).abs().max() > 0.01


@pytest.mark.parametrize(
    ("drop", "said"),
    [
        (r"\.0\..*key\.weight", "1 missing (blocks.0.attn.qkv.weight)"),
        (r"\.0\..*key\.weight", "2 unexpected (encoder.layer.0.attention.attention.query.weight, "),
        (r"layer_scale1", "2 missing (blocks.{0-1}.ls1.gamma)"),
        (r"\.1\.mlp\.weights_in", "2 missing (blocks.1.mlp.fc1.bias, blocks.1.mlp.fc1.weight)"),
        (r"layernorm\.bias", "1 missing (norm.bias)"),
    ],
)
def test_a_partial_checkpoint_is_refused_with_its_keys(
    hub: tuple[nn.Module, Path], drop: str, said: str, tmp_path: Path
) -> None:
    state = {name: value for name, value in load_file(hub[1]).items() if not re.search(drop, name)}
    save_file(state, tmp_path / "partial.safetensors")
    with pytest.raises(WeightsError) as caught:
        load(tmp_path / "partial.safetensors")
    assert said in str(caught.value)
    assert "partial.safetensors does not fit hibou-l" in str(caught.value)


def test_a_checkpoint_of_another_depth_or_kind_is_refused(
    hub: tuple[nn.Module, Path], tmp_path: Path
) -> None:
    with pytest.raises(WeightsError, match=r"missing \(blocks\.\{2-23\}\.attn\.proj\.bias, "):
        load(hub[1], PRESETS["hibou-l"])
    make_importable()
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(
        hidden_size=48, num_hidden_layers=1, num_attention_heads=3, image_size=28, patch_size=14
    )
    Dinov2Model(config).save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match=r"does not fit hibou-l: 323 missing .*instead of 1024"):
        load(tmp_path, PRESETS["hibou-l"])


@pytest.mark.parametrize("name", ["h-optimus-0", "h0-mini"])
@torch.inference_mode()
def test_keys_of_timm_repositories(name: str, tmp_path: Path) -> None:
    """H-optimus-0 and H0-mini are published as the state dicts of timm models that their cards create."""
    make_importable()
    import timm

    cards: dict[str, tuple[str, dict[str, Any]]] = {
        "h-optimus-0": ("vit_giant_patch14_reg4_dinov2", {"init_values": 1e-5, "dynamic_img_size": False}),
        "h0-mini": (
            "vit_base_patch14_reg4_dinov2",
            {"mlp_layer": timm.layers.SwiGLUPacked, "act_layer": nn.SiLU, "mlp_ratio": 5.33334},
        ),
    }
    arch, kwargs = cards[name]
    card: Any = at_random(timm.create_model(arch, num_classes=0, img_size=224, depth=DEPTH, **kwargs))
    save_file(card.state_dict(), tmp_path / "model.safetensors")
    preset = replace(PRESETS[name], kwargs={**PRESETS[name].kwargs, "depth": DEPTH})
    encoder = load(tmp_path, preset)
    images = normalised(encoder, VIEWS)
    torch.testing.assert_close(encoder(VIEWS), card.forward_features(images)[:, 0], atol=1e-5, rtol=1e-5)
    assert sum(p.numel() for p in create(PRESETS["h0-mini"]).parameters()) == 85_739_520


def test_other_layouts_pass_unchanged() -> None:
    state = {"blocks.0.attn.qkv.weight": torch.ones(2), "encoder.layer.0.output.dense.weight": torch.ones(3)}
    assert to_native(state).keys() == state.keys()
