"""Checkpoint layouts, their refusal, the hub, identity of weights, and export."""

import hashlib
import http.server
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline import hub, weights
from pipeline.encoders import Encoder, load_encoder
from pipeline.presets import PRESETS, Preset
from pipeline.timm_models import create
from pipeline.torchvision_cpu import make_importable
from pipeline.weights import export_encoder, read_checkpoint, weights_sha256
from stores.errors import G2LError, WeightsError

TINY = "vit_tiny_patch16_224?img_size=32&depth=2&embed_dim=24&num_heads=3&reg_tokens=4&init_values=1.0"
SWIGLU = "vit_giant_patch14_reg4_dinov2?img_size=28&depth=2&embed_dim=24&num_heads=3&mlp_ratio=5.33334&init_values=1.0"
State = dict[str, Tensor]


def make_views(count: int = 3, side: int = 32) -> Tensor:
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.integers(0, 256, (count, side, side, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def trained() -> Encoder:
    """An encoder whose every tensor is distinct from every start that timm gives."""
    return shaken(load_encoder(TINY, random_weights=1))


def shaken(encoder: Encoder) -> Encoder:
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    return encoder


def state_of(encoder: Encoder) -> State:
    return {name: value.clone() for name, value in encoder.backbone.state_dict().items()}


def refusal(spec: str, path: Path | None = None) -> str:
    with pytest.raises(G2LError) as caught:
        load_encoder(spec, weights=path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Layouts


def as_safetensors(state: State, folder: Path) -> Path:
    save_file(state, folder / "any.safetensors")
    return folder / "any.safetensors"


def saved(
    wrap: Callable[[State], object], name: str = "any.pth", **how: Any
) -> Callable[[State, Path], Path]:
    def write(state: State, folder: Path) -> Path:
        torch.save(wrap(state), folder / name, **how)
        return folder / name

    return write


def prefixed(prefix: str, state: State) -> State:
    return {prefix + name: value for name, value in state.items()}


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


def test_buffers_that_no_checkpoint_holds_are_computed(tmp_path: Path) -> None:
    source = shaken(load_encoder("test_vit_relpos", random_weights=1))
    loaded = load_encoder("test_vit_relpos", weights=as_safetensors(state_of(source), tmp_path))
    views = make_views(1, source.image_px)
    with torch.inference_mode():
        assert torch.equal(loaded(views), source(views))


# Refusals


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


# Identity


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
    variants = [
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
    encoder.backbone.a = encoder.backbone.a.t().contiguous().t()
    assert weights_sha256(encoder) == reference_sha256({"a": array})


# Export


def timm_features(folder: Path, encoder: Encoder, views: Tensor) -> Tensor:
    make_importable()
    import timm

    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    config = model.pretrained_cfg
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

    monkeypatch.setattr(weights.safetensors.torch, "save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
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


def test_an_encoder_made_by_a_function_is_kept_and_says_how_it_opens(tmp_path: Path) -> None:
    preset = Preset(name="mine:make", dim=3, mean=(0, 0, 0), std=(1, 1, 1))
    source = Encoder(preset, nn.Linear(3, 3))
    export_encoder(source, tmp_path, {})
    message = refusal(str(tmp_path))
    assert "made by a function" in message
    assert "--weights" in message
    assert torch.equal(read_checkpoint(tmp_path)["weight"], source.backbone.weight)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ("not json", "is not JSON"),
        ({"architecture": "transformers_model"}, "which timm does not know"),
        ({"model_type": "dinov2"}, "has architecture None"),
        ({"g2l": {"pooling": "max"}}, "pooling 'max'; allowed: cls, cls+mean, forward"),
        ({"g2l": {"mean": "red"}}, "three numbers"),
        ({"g2l": {"std": [1, 1, 0]}}, "positive numbers"),
        ({"g2l": {"mpp": "fine"}}, "does not have timm's form (ValueError"),
        ({"g2l": []}, "does not have timm's form (AttributeError"),
        ({"pretrained_cfg": {"fixed_input_size": True}}, "does not have timm's form (KeyError"),
        ({"model_args": {"img_size": [32, 64]}}, "only square ones"),
        ({"model_args": {"no_such": 1}}, "timm cannot build"),
        ({"model_args": {"embed_dim": 30000, "num_heads": 3, "img_size": 32}}, "does not fit"),
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


def test_weights_shipped_in_the_package(
    trained: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "assets").mkdir()
    save_file(state_of(trained), tmp_path / "assets" / "demo.safetensors")
    monkeypatch.setattr(weights.importlib.resources, "files", lambda package: tmp_path)
    monkeypatch.setitem(
        PRESETS, "demo", replace(trained.preset, name="demo", hub=None, asset="demo.safetensors")
    )
    assert weights_sha256(load_encoder("demo")) == weights_sha256(trained)
    monkeypatch.setitem(PRESETS, "demo", replace(PRESETS["demo"], asset=None))
    assert "has no published weights" in refusal("demo")


# The hub

COMMIT = "0" * 40


class FakeHub(http.server.BaseHTTPRequestHandler):
    """The hub's answers to HEAD and GET of ``/OWNER/NAME/resolve/REVISION/FILE``."""

    files: ClassVar[Mapping[str, bytes]] = {}
    requests: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.requests.append(self.path)
        repo, _, rest = self.path.strip("/").partition("/resolve/")
        body = self.files.get(f"{repo}/{rest.partition('/')[2]}", b"")
        status, error = 200, ""
        if repo == "owner/gated":
            status, error = 403, "GatedRepo"
        elif repo == "owner/private":
            status, error = 401, "RepoNotFound"
        elif rest.startswith("nowhere/"):
            status, error = 404, "RevisionNotFound"
        elif rest and not body:
            status, error = 404, "EntryNotFound"
        self.send_response(status)
        headers = {
            "X-Error-Code": error,
            "X-Repo-Commit": COMMIT,
            "ETag": f'"{hashlib.sha256(body).hexdigest()}"',
        }
        for name, value in headers.items():
            if value:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def fake_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[FakeHub]]:
    import huggingface_hub

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), FakeHub)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    point_hub_to(f"http://127.0.0.1:{server.server_port}", tmp_path, monkeypatch)
    FakeHub.files, FakeHub.requests = {}, []
    yield FakeHub
    huggingface_hub.close_session()
    server.shutdown()
    server.server_close()
    thread.join()


def point_hub_to(endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


def file_bytes(state: State, folder: Path, write: Callable[[State, Path], Path] = as_safetensors) -> bytes:
    return write(state, folder).read_bytes()


@pytest.mark.parametrize(
    ("name", "write"), [("model.safetensors", as_safetensors), ("pytorch_model.bin", LAYOUTS["bin"])]
)
def test_a_preset_downloads_once_and_then_needs_no_network(
    trained: Encoder,
    fake_hub: type[FakeHub],
    name: str,
    write: Callable[[State, Path], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake_hub.files = {f"owner/teacher/{name}": file_bytes(state_of(trained), tmp_path, write)}
    monkeypatch.setitem(PRESETS, "mine", replace(trained.preset, name="mine", hub="owner/teacher"))
    assert hub.find_cached("owner/teacher", [name]) is None
    assert weights_sha256(load_encoder("mine")) == weights_sha256(trained)
    fake_hub.requests.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert weights_sha256(load_encoder("mine")) == weights_sha256(trained)
    assert fake_hub.requests == []


def test_a_student_on_the_hub_opens_with_its_own_pooling(
    trained: Encoder, fake_hub: type[FakeHub], tmp_path: Path
) -> None:
    student = Encoder(
        replace(trained.preset, name="student", pooling="cls+mean", dim=48, mpp=0.5), trained.backbone
    )
    export_encoder(student.eval(), tmp_path, {})
    fake_hub.files = {
        f"owner/student/{name}": (tmp_path / name).read_bytes()
        for name in ("config.json", "model.safetensors")
    }
    loaded = load_encoder("hf-hub:owner/student")
    with torch.inference_mode():
        assert torch.equal(loaded(make_views()), student(make_views()))
    assert (loaded.name, loaded.mpp) == ("student", 0.5)


def test_a_repository_of_a_preset_is_that_preset(fake_hub: type[FakeHub]) -> None:
    assert "bioptimus/H0-mini@main" in refusal("hf-hub:bioptimus/H0-mini@main")
    assert any("/bioptimus/H0-mini/resolve/main/model.safetensors" in path for path in fake_hub.requests)
    assert not any("config.json" in path for path in fake_hub.requests)


@pytest.mark.parametrize(
    ("repo", "part"),
    [
        ("owner/gated", "access is not granted to you): request access on its page"),
        ("owner/private", "does not exist or is private"),
        ("owner/empty", "holds neither config.json"),
        ("owner/empty@nowhere", "no such revision"),
        ("owner//x", "cannot fetch owner//x"),
        ("", "cannot fetch"),
    ],
)
def test_what_the_hub_refuses(fake_hub: type[FakeHub], repo: str, part: str) -> None:
    message = refusal(f"hf-hub:{repo}")
    assert part in message
    assert "HF_TOKEN" in message


@pytest.mark.parametrize("value", ["1", "true"])
def test_offline_says_what_to_do(value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    point_hub_to("http://127.0.0.1:9", tmp_path, monkeypatch)
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    message = refusal("h-optimus-1")
    for part in ("bioptimus/H-optimus-1", "HF_HUB_OFFLINE is set", "request access", "HF_TOKEN"):
        assert part in message
    assert "--weights PATH" in message
    assert "--random-weights SEED" in message
    assert "request access" not in refusal("h-optimus-0")


def test_no_network_is_noticed_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    point_hub_to("http://127.0.0.1:9", tmp_path, monkeypatch)
    began = time.perf_counter()
    with pytest.raises(WeightsError, match="the hub cannot be reached"):
        hub.fetch("owner/name", ["model.safetensors"])
    assert time.perf_counter() - began < 5  # the hub's own client retries for 23 s


def test_a_hub_that_does_not_answer_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        point_hub_to(f"http://127.0.0.1:{silent.getsockname()[1]}", tmp_path, monkeypatch)
        began = time.perf_counter()
        problem = hub.hub_problem(timeout_s=0.3)
    assert problem is not None
    assert "cannot be reached" in problem
    assert time.perf_counter() - began < 3
