"""Each preset takes the file that its owner publishes: all names of the full architecture, and equal outputs.

The full architectures are on the meta device, without memory. Outputs are compared at their true depth of layout and a
small width, with a forward pass that knows nothing of this package: timm's names by hand, DINOv2's native encoder
written out, or transformers itself.
"""

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
from pipeline.encoders.timm_models import create
from pipeline.encoders.torchvision_cpu import make_importable
from pipeline.encoders.weights import fit
from tests.tools.encoders import State, make_views, prefixed
from tests.tools.layouts import NativeEncoder, at_random, chunked, forward_timm

pytestmark = pytest.mark.slow

TIMM = [
    *("virchow", "uni", "gigapath-flash", "kaiko-s16", "kaiko-s8", "kaiko-b16", "kaiko-b8", "kaiko-l14"),
    *("distillpath-ks16-hopt0", "distillpath-ks16-virchow2", "distillpath-is16-virchow2"),
]
NATIVE = ["openmidnight", "openpath"]
TRANSFORMERS = ["midnight-12k", "phikon-v2", "hibou-b"]
VIEWS = make_views(1, 224)


def card(name: str) -> tuple[str, dict[str, Any]]:
    """How the owner's page, or the code that it names, creates the encoder with timm."""
    make_importable()
    from timm.layers import SwiGLUPacked

    swiglu: dict[str, Any] = {"mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU, "init_values": 1e-5}
    named: dict[str, tuple[str, dict[str, Any]]] = {
        "virchow": ("vit_huge_patch14_224", {**swiglu, "mlp_ratio": 5.3375}),
        "uni": ("vit_large_patch16_224", {"init_values": 1e-5}),
        # gigapath/tile_encoder.py of prov-gigapath
        "gigapath-flash": ("vit_small_patch16_224", {**swiglu, "mlp_ratio": 2048 / 384}),
        # hubconf.py of kaiko-ai/towards_large_pathology_fms
        "kaiko-s16": ("vit_small_patch16_224", {}),
        "kaiko-s8": ("vit_small_patch8_224", {}),
        "kaiko-b16": ("vit_base_patch16_224", {}),
        "kaiko-b8": ("vit_base_patch8_224", {}),
        "kaiko-l14": ("vit_large_patch14_reg4_dinov2", {}),  # of 518 px
    }
    return named.get(name, named["kaiko-s16"])


def small(name: str, depth: int = 2) -> Preset:
    """The preset with another width and depth; 5.33334 * 48 is 256, of which SwiGLU takes half twice."""
    kwargs = {**PRESETS[name].kwargs, "embed_dim": 48, "depth": depth, "num_heads": 4}
    return replace(PRESETS[name], kwargs=kwargs, dim=96 if PRESETS[name].pooling == "cls+mean" else 48)


def compare(encoder: Encoder, tokens: Tensor) -> None:
    """The tokens and the feature of an encoder against tokens from elsewhere."""
    ours = encoder.backbone.forward_features(encoder.normalized(VIEWS))  # type: ignore[operator]
    torch.testing.assert_close(ours, tokens, atol=1e-5, rtol=1e-5)
    feature = tokens[:, 0]
    if encoder.pooling == "cls+mean":
        feature = torch.cat([feature, tokens[:, encoder.backbone.num_prefix_tokens :].mean(dim=1)], dim=1)
    torch.testing.assert_close(encoder(VIEWS), feature, atol=1e-5, rtol=1e-5)
    assert feature.shape == (1, encoder.dim)


@pytest.mark.parametrize("name", TIMM)
@torch.inference_mode()
def test_timm_layout(name: str, tmp_path: Path) -> None:
    make_importable()
    import timm

    arch, kwargs = card(name)
    narrow: dict[str, Any] = {"embed_dim": 48, "depth": 2, "num_heads": 4, "num_classes": 0}
    published: Any = at_random(timm.create_model(arch, **kwargs, **narrow))
    state = published.state_dict()
    save_file(state, tmp_path / "model.safetensors")
    preset = small(name)
    encoder = encoders._build(preset, tmp_path, None)
    patch = int(published.patch_embed.patch_size[0])
    if name == "kaiko-l14":  # timm's own resampling of its 37 x 37 positions is what everybody uses
        from timm.layers import resample_abs_pos_embed

        state["pos_embed"] = resample_abs_pos_embed(state["pos_embed"], [16, 16], num_prefix_tokens=0)
    compare(encoder, forward_timm(state, encoder.normalized(VIEWS), 4, patch))


@pytest.mark.parametrize("name", NATIVE)
@torch.inference_mode()
def test_native_layout(name: str, tmp_path: Path) -> None:
    model = at_random(NativeEncoder(dim=48, heads=4, hidden=128, depth=8))
    state: Any = model.state_dict()
    if name == "openpath":
        heads = {"dino_head.mlp.0.weight": torch.zeros(2, 2)}
        state = {"teacher": {**prefixed("backbone.", chunked(state, 2)), **heads}, "iteration": 7}
        assert "backbone.blocks.3.7.mlp.w12.weight" in state["teacher"]
    torch.save(state, tmp_path / PRESETS[name].files[0])
    encoder = encoders._build(small(name, depth=8), tmp_path / PRESETS[name].files[0], None)
    compare(encoder, model(encoder.normalized(VIEWS)))


def transformers_model(name: str, image_px: int = 224) -> nn.Module:
    make_importable()
    import transformers

    registers = name == "hibou-b"
    kind = "Dinov2WithRegisters" if registers else "Dinov2"
    config = getattr(transformers, f"{kind}Config")(
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=image_px,
        patch_size=16 if name == "phikon-v2" else 14,
        use_swiglu_ffn=name != "phikon-v2",
        layer_norm_eps=1e-6,
        **({"num_register_tokens": 4} if registers else {}),
    )
    return at_random(getattr(transformers, f"{kind}Model")(config))


@pytest.mark.parametrize("image_px", [224, 448])
@pytest.mark.parametrize("name", TRANSFORMERS)
@torch.inference_mode()
def test_transformers_layout(name: str, image_px: int, tmp_path: Path) -> None:
    """Position embeddings of another size too: transformers resamples them in a way of its own."""
    model: Any = transformers_model(name, image_px)
    model.save_pretrained(tmp_path)
    assert "encoder.layer.0.attention.attention.query.weight" in load_file(tmp_path / "model.safetensors")
    encoder = encoders._build(small(name), tmp_path, None)
    compare(encoder, model(encoder.normalized(VIEWS)).last_hidden_state)


def published(name: str) -> State:
    """Names and shapes of the file that the owner publishes, on the meta device."""
    if name in TIMM:
        import timm

        arch, kwargs = card(name)
        return dict(timm.create_model(arch, num_classes=0, **kwargs).state_dict())
    if name in NATIVE:
        state = NativeEncoder(dim=1536, heads=24, hidden=4096, depth=40).state_dict()
        return dict(state) if name == "openmidnight" else prefixed("backbone.", chunked(state, 10))
    dim, depth, hidden, patch = {
        "midnight-12k": (1536, 40, 4096, 14),
        "phikon-v2": (1024, 24, 4096, 16),
        "hibou-b": (768, 12, 2048, 14),
    }[name]
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.cls_token": (1, 1, dim),
        "embeddings.mask_token": (1, dim),
        "embeddings.position_embeddings": (1, (224 // patch) ** 2 + 1, dim),
        "embeddings.patch_embeddings.projection.weight": (dim, 3, patch, patch),
        "embeddings.patch_embeddings.projection.bias": (dim,),
        "layernorm.weight": (dim,),
        "layernorm.bias": (dim,),
    }
    if name == "hibou-b":
        shapes["embeddings.register_tokens"] = (1, 4, dim)
    for i in range(depth):
        block = f"encoder.layer.{i}"
        for part in ("norm1", "norm2"):
            shapes |= {f"{block}.{part}.{kind}": (dim,) for kind in ("weight", "bias")}
        for part in ("attention.query", "attention.key", "attention.value", "output.dense"):
            shapes |= {
                f"{block}.attention.{part}.weight": (dim, dim),
                f"{block}.attention.{part}.bias": (dim,),
            }
        shapes |= {f"{block}.layer_scale{n}.lambda1": (dim,) for n in (1, 2)}
        into, out = ("fc1", "fc2") if name == "phikon-v2" else ("weights_in", "weights_out")
        wide = hidden if name == "phikon-v2" else 2 * hidden
        shapes |= {f"{block}.mlp.{into}.weight": (wide, dim), f"{block}.mlp.{into}.bias": (wide,)}
        shapes |= {f"{block}.mlp.{out}.weight": (dim, hidden), f"{block}.mlp.{out}.bias": (dim,)}
    return {key: torch.empty(shape) for key, shape in shapes.items()}


@pytest.mark.parametrize("name", [*TIMM, *NATIVE, *TRANSFORMERS])
def test_the_full_file_fills_the_full_architecture(name: str) -> None:
    preset = PRESETS[name]
    make_importable()
    with torch.device("meta"), torch.inference_mode():
        backbone = create(preset)
        filled = fit(published(name), backbone, "the file", name)
    expected = backbone.state_dict()
    assert {key: value.shape for key, value in filled.items()} == {k: v.shape for k, v in expected.items()}
    assert sum(parameter.numel() for parameter in backbone.parameters()) == preset.params
    assert (preset.image_px, preset.mpp) == (224, 0.5)
