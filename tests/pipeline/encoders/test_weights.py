"""Checkpoint layouts, what is refused, weights in the package, and the identity of weights."""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from pipeline.encoders import weights
from pipeline.encoders.encoder import Encoder
from pipeline.encoders.export import weights_sha256
from pipeline.encoders.load import load_encoder
from pipeline.encoders.presets import PRESETS, Preset
from pipeline.encoders.state_dict_layouts import to_native
from pipeline.encoders.timm_models import create, timm_preset
from tests.tools.encoders import (
    SWIGLU,
    TINY,
    State,
    as_safetensors,
    make_views,
    prefixed,
    refusal,
    shaken,
    state_of,
    trained_encoder,
)
from tests.tools.layouts import chunked


@pytest.fixture(scope="module")
def trained() -> Encoder:
    return trained_encoder()


def saved(
    wrap: Callable[[State], object], name: str = "any.pth", **how: Any
) -> Callable[[State, Path], Path]:
    def write(state: State, folder: Path) -> Path:
        torch.save(wrap(state), folder / name, **how)
        return folder / name

    return write


def as_folder(state: State, folder: Path) -> Path:
    save_file(state, folder / "model.safetensors")
    return folder


def dino(state: State) -> object:
    """As DINOv2 training saves it: student and teacher, each a backbone with heads."""
    heads = {"dino_head.mlp.0.weight": torch.zeros(3, 3), "ibot_head.last_layer.weight": torch.zeros(2)}
    student = {name: torch.zeros_like(value) for name, value in state.items()}
    return {
        "student": {**prefixed("backbone.", student), **heads},
        "teacher": {**prefixed("module.backbone.", state), **prefixed("module.", heads)},
        "iteration": 12,
    }


LAYOUTS: Mapping[str, Callable[[State, Path], Path]] = {
    "safetensors": as_safetensors,
    "folder": as_folder,
    "bin": saved(dict, "pytorch_model.bin"),
    "folder-bin": lambda state, folder: saved(dict, "pytorch_model.bin")(state, folder).parent,
    "before-torch-1.6": saved(dict, _use_new_zipfile_serialization=False),
    "model": saved(lambda state: {"model": state, "epoch": 3, "optimizer": {"lr": 0.1}}),
    "state_dict-module": saved(lambda state: {"state_dict": prefixed("module.", state)}),
    "compiled": saved(lambda state: prefixed("_orig_mod.", state)),
    "averaged": saved(lambda state: {"state_dict": {}, "state_dict_ema": state}),
    "dino": saved(dino),
    "with-classifier": saved(
        lambda state: {**state, "head.weight": torch.ones(7, 24), "head.bias": torch.ones(7)}
    ),
    "half": saved(lambda state: {name: value.double() for name, value in state.items()}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_give_the_same_features_and_identity(trained: Encoder, layout: str, tmp_path: Path) -> None:
    path = LAYOUTS[layout](state_of(trained), tmp_path)
    loaded = load_encoder(TINY, weights=path)
    assert weights_sha256(loaded) == weights_sha256(trained)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    with torch.inference_mode():
        assert torch.equal(loaded(make_views()), trained(make_views()))


def native_dinov2(state: State) -> State:
    """A timm state dict in the names and shapes of facebookresearch/dinov2 (``w12``, ``w3``, registers apart)."""
    cls_position = torch.randn(1, 1, 24, generator=torch.Generator().manual_seed(3))
    native = {"mask_token": torch.zeros(1, 24), "register_tokens": state.pop("reg_token")}
    native["pos_embed"] = torch.cat([cls_position, state.pop("pos_embed")], dim=1)
    native["cls_token"] = state.pop("cls_token") - cls_position
    for name, value in state.items():
        native[name.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3")] = value
    return native


def test_native_dinov2_layout_becomes_timms(tmp_path: Path) -> None:
    source = shaken(load_encoder(SWIGLU, random_weights=1))
    native = native_dinov2(state_of(source))
    torch.save({"teacher": prefixed("backbone.", native)}, tmp_path / "hibou.pth")
    loaded = load_encoder(SWIGLU, weights=tmp_path / "hibou.pth")
    views = make_views(side=28)
    with torch.inference_mode():
        torch.testing.assert_close(loaded(views), source(views), atol=1e-5, rtol=1e-5)


def test_position_embedding_of_a_larger_image_is_resampled(tmp_path: Path) -> None:
    large = load_encoder(TINY.replace("img_size=32", "img_size=64"), random_weights=1)
    assert load_encoder(TINY, weights=as_safetensors(state_of(large), tmp_path)).image_px == 32


def test_blocks_in_stages_are_not_taken_for_chunks(tmp_path: Path) -> None:
    """``blocks.1.2.`` is a name of timm's EfficientNet and MobileNet, and a chunk where DINOv2 trains."""
    source = load_encoder("mobilenetv3_small_050", random_weights=1)
    loaded = load_encoder("mobilenetv3_small_050", weights=as_safetensors(state_of(source), tmp_path))
    assert weights_sha256(loaded) == weights_sha256(source)


@pytest.mark.parametrize(
    "arch", ["crossvit_tiny_240", "davit_tiny", "twins_pcpvt_small", "test_efficientnet"]
)
def test_stages_of_other_families_keep_their_names(arch: str) -> None:
    """Also where a stage has transformer blocks: each stage numbers its own from 0."""
    with torch.device("meta"):
        state = create(timm_preset(arch)).state_dict()
    assert to_native(state).keys() == state.keys()


@pytest.mark.parametrize("size", [1, 2, 3])
def test_chunks_are_those_whose_blocks_are_numbered_through(size: int) -> None:
    state = {f"blocks.{block}.ls1.gamma": torch.ones(1) for block in range(3)}
    assert to_native(chunked(state, size)).keys() == state.keys()
    assert (
        to_native(prefixed("backbone.", chunked(state, size))).keys() == prefixed("backbone.", state).keys()
    )
    other = {**chunked(state, size), "blocks.0.0.conv.weight": torch.ones(1)}
    assert to_native(other).keys() == other.keys()


class Wrapped(nn.Module):
    """A user's module around another: its names are its own, whatever layout they look like."""

    def __init__(self, names: Iterable[str]) -> None:
        super().__init__()
        for name in names:
            *path, last = name.split(".")
            inside: nn.Module = self
            for part in path:
                if part not in dict(inside.named_children()):
                    inside.add_module(part, nn.Module())
                inside = inside.get_submodule(part)
            inside.register_buffer(last, torch.ones(2, 2))


@pytest.mark.parametrize(
    "names",
    [
        ["trunk.blocks.0.0.conv_pw.weight", "trunk.blocks.1.0.conv_pw.weight"],
        ["net.blocks.0.0.attn.qkv.weight", "net.blocks.0.1.attn.qkv.weight"],
        ["net.embeddings.cls_token", "net.layernorm.weight", "net.encoder.layer.0.mlp.gate_proj.weight",
         "net.encoder.layer.0.mlp.up_proj.weight"],
    ],
    ids=["stages", "chunks", "transformers"],
)  # fmt: skip
def test_what_fills_a_users_module_is_not_renamed(names: list[str]) -> None:
    state = Wrapped(names).state_dict()
    assert weights.fit(state, Wrapped(names), "student", "mine:make").keys() == set(names)
    assert weights.fit(prefixed("module.", state), Wrapped(names), "any", "mine:make").keys() == set(names)


def test_buffers_that_no_checkpoint_holds_are_computed(tmp_path: Path) -> None:
    source = shaken(load_encoder("test_vit_relpos", random_weights=1))
    loaded = load_encoder("test_vit_relpos", weights=as_safetensors(state_of(source), tmp_path))
    views = make_views(1, source.image_px)
    with torch.inference_mode():
        assert torch.equal(loaded(views), source(views))


def without(name: str) -> Callable[[State], State]:
    return lambda state: {key: value for key, value in state.items() if key != name}


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (without("norm.weight"), "1 missing (norm.weight)"),
        (lambda state: {**state, "norm.gamma": torch.zeros(1)}, "1 unexpected (norm.gamma)"),
        (lambda state: {**state, "cls_token": torch.zeros(1, 1, 25)}, "cls_token 1x1x25 instead of 1x1x24"),
        (lambda state: {k: v for k, v in state.items() if "blocks.1." not in k}, "14 missing (blocks.1.attn"),
        (lambda state: {"encoder.layer.0.output.weight": torch.zeros(2)}, "missing"),
        (
            lambda state: {**state, "patch_embed.proj.weight": torch.zeros(24, 3, 14, 14)},
            "patch_embed.proj.weight 24x3x14x14 instead of 24x3x16x16",
        ),
        (
            lambda state: {**prefixed("a.", state), **prefixed("b.", state)},
            "holds two models, under 'a.' and 'b.'",
        ),
        (lambda state: {"epoch": 3}, "holds no state dict"),
        (lambda state: list(state.values()), "holds no state dict"),
        (lambda state: {"mask_token": torch.zeros(1)}, "does not fit"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_by_name(
    trained: Encoder, change: Callable[[State], object], part: str, tmp_path: Path
) -> None:
    torch.save(change(state_of(trained)), tmp_path / "wrong.pth")
    message = refusal(TINY, tmp_path / "wrong.pth")
    assert part in message
    assert "wrong.pth" in message


def foreign(*names: str) -> Callable[[State], object]:
    return lambda state: {name: torch.zeros(2) for name in names}


@pytest.mark.parametrize(
    ("names", "layout"),
    [
        ((f"vit.encoder.layer.{i}.intermediate.dense.weight" for i in range(12)), "those of transformers"),
        (("embeddings.cls_token", "embeddings.position_embeddings"), "those of transformers"),
        ((f"encoder.layers.encoder_layer_{i}.ln_1.weight" for i in range(12)), "torchvision's ViT"),
        (("visual.transformer.resblocks.0.ln_1.weight",), "CLIP or open_clip"),
        (("_conv_stem.weight", "_blocks.0._bn1.weight"), "efficientnet-pytorch"),
        (("conv1.weight", "layer1.0.conv1.weight"), "a ResNet"),
        (("something.else",), ""),
    ],
)
def test_another_packages_names_are_said_briefly_with_their_owner(
    names: Iterable[str], layout: str, tmp_path: Path
) -> None:
    torch.save(foreign(*names)({}), tmp_path / "other.pth")
    message = refusal("vit_tiny_patch16_224", tmp_path / "other.pth")
    assert "150 missing (blocks.{0-11}.attn.proj.bias, " in message
    assert "and 15 more forms)" in message
    assert layout in message
    assert ("look like" in message) == bool(layout)
    assert len(message) < 600 + len(str(tmp_path))


def test_one_missing_tensor_is_no_other_layout(trained: Encoder, tmp_path: Path) -> None:
    torch.save(without("norm.weight")(state_of(trained)), tmp_path / "wrong.pth")
    assert "look like" not in refusal(TINY, tmp_path / "wrong.pth")


def test_weights_of_another_preset_are_refused_before_memory_is_taken(
    trained: Encoder, tmp_path: Path
) -> None:
    path = as_safetensors(state_of(trained), tmp_path)
    began = time.perf_counter()
    assert "does not fit h-optimus-0" in refusal("h-optimus-0", path)
    assert time.perf_counter() - began < 5  # building its 4.5 GB takes 15 s and more


class Payload:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("how", [{}, {"_use_new_zipfile_serialization": False}])
def test_a_pickle_that_runs_code_is_refused(how: dict[str, bool], tmp_path: Path) -> None:
    torch.save(
        {"state_dict": {"x": torch.zeros(1)}, "args": Payload(tmp_path / "ran")}, tmp_path / "evil.pth", **how
    )
    message = refusal(TINY, tmp_path / "evil.pth")
    assert "system" in message
    assert "refused" in message
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("layout", ["safetensors", "bin", "before-torch-1.6"])
@pytest.mark.parametrize("keep", [0.0, 0.001, 0.5, 0.999])
def test_a_truncated_file_is_refused(trained: Encoder, layout: str, keep: float, tmp_path: Path) -> None:
    path = LAYOUTS[layout](state_of(trained), tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * keep)])
    assert "is damaged or no" in refusal(TINY, path)


def test_files_that_are_no_checkpoints(tmp_path: Path) -> None:
    pointer = tmp_path / "pytorch_model.bin"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert "git lfs pull" in refusal(TINY, tmp_path)
    (tmp_path / "readme.txt").touch()
    assert ".safetensors, .bin" in refusal(TINY, tmp_path / "readme.txt")
    assert "do not exist" in refusal(TINY, tmp_path / "absent.pth")
    (tmp_path / "empty").mkdir()
    assert "neither model.safetensors nor pytorch_model.bin" in refusal(TINY, tmp_path / "empty")


def reference_sha256(state: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(state):
        array = state[name]
        digest.update(
            (json.dumps([name, str(array.dtype), list(array.shape)]) + "\n").encode() + array.tobytes()
        )
    return digest.hexdigest()


class Bag(nn.Module):
    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        super().__init__()
        for name, array in arrays.items():
            self.register_buffer(name, torch.from_numpy(array.copy()))


def bag(arrays: Mapping[str, np.ndarray]) -> Encoder:
    return Encoder(Preset(name="bag", dim=1, mean=(0, 0, 0), std=(1, 1, 1)), Bag(arrays))


arrays_of_any_type = st.dictionaries(
    st.sampled_from("abcdef"),
    st.tuples(
        st.sampled_from(["float32", "float16", "int64", "bool", "uint8"]),
        st.lists(st.integers(0, 3), max_size=3),
    ),
    min_size=1,
)


@settings(deadline=None, max_examples=50)
@given(arrays_of_any_type, st.integers(0, 9))
def test_sha256_equals_its_definition(types: dict[str, tuple[str, list[int]]], seed: int) -> None:
    rng = np.random.default_rng(seed)
    arrays = {name: rng.integers(0, 2, shape).astype(dtype) for name, (dtype, shape) in types.items()}
    backwards = dict(reversed(arrays.items()))
    assert weights_sha256(bag(arrays)) == weights_sha256(bag(backwards)) == reference_sha256(arrays)


def test_sha256_sees_one_bit_a_name_a_shape_and_a_type() -> None:
    base = np.arange(6, dtype=np.int32).reshape(2, 3)
    flipped = base.copy()
    flipped[1, 2] ^= 1
    variants: list[dict[str, npt.NDArray[Any]]] = [
        {"a": base},
        {"a": flipped},
        {"b": base},
        {"a": base.reshape(3, 2)},
        {"a": base.view(np.float32)},
    ]
    assert len({weights_sha256(bag(variant)) for variant in variants}) == len(variants)


def test_sha256_does_not_depend_on_strides(trained: Encoder) -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    encoder = bag({"a": array})
    encoder.backbone.a = encoder.backbone.get_buffer("a").t().contiguous().t()
    assert weights_sha256(encoder) == reference_sha256({"a": array})


def test_weights_shipped_in_the_package(
    trained: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file(state_of(trained), tmp_path / "demo.safetensors")
    monkeypatch.setattr(weights.importlib.resources, "files", lambda package: tmp_path)
    monkeypatch.setitem(
        PRESETS, "demo", replace(trained.preset, name="demo", hub=None, asset="demo.safetensors")
    )
    assert weights_sha256(load_encoder("demo")) == weights_sha256(trained)
    monkeypatch.setitem(PRESETS, "demo", replace(PRESETS["demo"], asset=None))
    assert "has no published weights" in refusal("demo")
