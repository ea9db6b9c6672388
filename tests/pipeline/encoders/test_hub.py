"""The Hugging Face hub, played by a server on this machine: downloads, the cache, refusals, no network."""

import hashlib
import json
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline.encoders import hub
from pipeline.encoders.encoder import Encoder
from pipeline.encoders.export import export_encoder, weights_sha256
from pipeline.encoders.load import load_encoder
from pipeline.encoders.presets import PRESETS, Preset
from pipeline.encoders.timm_models import hub_preset
from pipeline.inference.facts import EncoderFacts
from pipeline.inference.loaded import EncoderSpec, load_on_device
from stores.errors import WeightsError
from stores.remote.hub import hub_problem
from tests.tools.encoders import TINY, State, as_safetensors, make_views, refusal, state_of, trained_encoder
from tests.tools.hub_server import COMMIT, FakeHub, point_hub_to, serving


@pytest.fixture(scope="module")
def trained() -> Encoder:
    return trained_encoder()


def as_bin(state: State, folder: Path) -> Path:
    torch.save(state, folder / "pytorch_model.bin")
    return folder / "pytorch_model.bin"


@pytest.fixture
def fake_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[FakeHub]]:
    with serving(tmp_path, monkeypatch) as hub_server:
        yield hub_server


@pytest.mark.parametrize(
    ("name", "write"), [("model.safetensors", as_safetensors), ("pytorch_model.bin", as_bin)]
)
def test_a_preset_downloads_once_and_then_needs_no_network(
    trained: Encoder,
    fake_hub: type[FakeHub],
    name: str,
    write: Callable[[State, Path], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake_hub.files = {f"owner/teacher/{name}": write(state_of(trained), tmp_path).read_bytes()}
    monkeypatch.setitem(PRESETS, "mine", replace(trained.preset, name="mine", hub="owner/teacher"))
    assert hub.find_cached("owner/teacher", [name]) is None
    assert weights_sha256(load_encoder("mine")) == weights_sha256(trained)
    fake_hub.requests.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert weights_sha256(load_encoder("mine")) == weights_sha256(trained)
    assert fake_hub.requests == []


PINNED = "a" * 40


def pinned(trained: Encoder, name: str, file: str, body: bytes, revision: str = PINNED) -> Preset:
    digest = hashlib.sha256(body).hexdigest()
    about = {"name": name, "hub": f"owner/{name}", "files": (file,), "sha256": {file: digest}}
    return replace(trained.preset, revision=revision, **about)  # type: ignore[arg-type]


def test_a_file_of_another_digest_is_refused_by_name(
    trained: Encoder, fake_hub: type[FakeHub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = as_safetensors(state_of(trained), tmp_path).read_bytes()
    monkeypatch.setitem(PRESETS, "mine", pinned(trained, "mine", "teacher.safetensors", body))
    fake_hub.files = {"owner/mine/teacher.safetensors": body}
    assert weights_sha256(load_encoder("mine")) == weights_sha256(trained)
    assert any(f"/resolve/{PINNED}/" in path for path in fake_hub.requests)
    other = as_safetensors(state_of(load_encoder(TINY, random_weights=8)), tmp_path).read_bytes()
    monkeypatch.setitem(PRESETS, "mine", pinned(trained, "mine", "teacher.safetensors", other, "b" * 40))
    message = refusal("mine")
    for part in (
        "mine: teacher.safetensors of owner/mine",
        hashlib.sha256(body).hexdigest()[:16],
        hashlib.sha256(other).hexdigest()[:16],
        "revision bbbbbbbbbbbb",
        "--weights",
    ):
        assert part in message
    by_word = load_encoder(f"hf-hub:owner/mine@{COMMIT}")  # whoever names a revision means its file
    assert weights_sha256(by_word) == weights_sha256(trained)


def test_the_cache_of_another_revision_spares_the_network(
    trained: Encoder, fake_hub: type[FakeHub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node without network, filled by timm or by hand at the newest revision."""
    body = as_safetensors(state_of(trained), tmp_path).read_bytes()
    fake_hub.files = {"owner/mine/model.safetensors": body}
    hub.fetch("owner/mine", ["model.safetensors"])
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setitem(PRESETS, "mine", pinned(trained, "mine", "model.safetensors", body))
    assert weights_sha256(load_encoder("mine")) == weights_sha256(trained)


def test_the_published_file_of_another_preset_is_refused(
    trained: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Teachers of one architecture: a file of one fits the name of any other."""
    mine, other = tmp_path / "mine.pth", tmp_path / "other.pth"
    torch.save(state_of(trained), mine)
    torch.save(state_of(load_encoder(TINY, random_weights=8)), other)
    for name, file in (("mine", mine), ("other", other)):
        monkeypatch.setitem(PRESETS, name, pinned(trained, name, file.name, file.read_bytes()))
    assert weights_sha256(load_encoder("mine", weights=mine)) == weights_sha256(trained)
    assert "other.pth is the published file of other" in refusal("mine", weights=other)
    converted = as_safetensors(state_of(trained), tmp_path)  # nobody's published file: the user's word counts
    assert weights_sha256(load_encoder("other", weights=converted)) == weights_sha256(trained)


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


@pytest.mark.parametrize(
    ("mean", "std", "warned"),
    [([0.5] * 3, [0.5] * 3, True), ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225], False)],
)
def test_mean_and_std_that_timm_fills_in_are_doubted(
    fake_hub: type[FakeHub], tmp_path: Path, mean: list[float], std: list[float], warned: bool
) -> None:
    """As in the config.json of mSTAR and of Kaiko's ViT-L: those of the architecture, not of the model."""
    args = {"depth": 1, "embed_dim": 24, "num_heads": 3, "img_size": 32}
    about = {"input_size": [3, 32, 32], "mean": mean, "std": std}
    config = {"architecture": "vit_tiny_patch16_224", "model_args": args, "pretrained_cfg": about}
    encoder = load_encoder(
        "vit_tiny_patch16_224?depth=1&embed_dim=24&num_heads=3&img_size=32", random_weights=0
    )
    fake_hub.files = {
        "owner/model/config.json": json.dumps(config).encode(),
        "owner/model/model.safetensors": as_safetensors(state_of(encoder), tmp_path).read_bytes(),
    }
    fake_hub.files |= {key.replace("owner/", "timm/"): value for key, value in fake_hub.files.items()}
    assert load_encoder("hf-hub:timm/model").preset.warning == ""  # whose weights they are
    facts = EncoderFacts.of(load_on_device(EncoderSpec("hf-hub:owner/model", device="cpu")))
    assert ("are timm's for vit_tiny_patch16_224 and may not be those" in facts.described()) == warned
    assert encoder.preset.warning == ""


def test_a_repository_of_a_preset_is_that_preset(fake_hub: type[FakeHub]) -> None:
    assert "bioptimus/H0-mini@main" in refusal("hf-hub:bioptimus/H0-mini@main")
    assert any("/bioptimus/H0-mini/resolve/main/model.safetensors" in path for path in fake_hub.requests)
    assert not any("config.json" in path for path in fake_hub.requests)
    preset = PRESETS["h0-mini"]
    assert hub_preset("Bioptimus/H0-mini") == hub_preset(f"{preset.hub}@{preset.revision}") == preset
    assert preset.sha256  # which the user's own revision does not have
    assert not hub_preset(f"{preset.hub}@main").sha256


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


@pytest.mark.slow
@pytest.mark.parametrize("value", ["1", "true"])
def test_offline_says_what_to_do(value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    point_hub_to("http://127.0.0.1:9", tmp_path, monkeypatch)
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    message = refusal("h-optimus-1")
    for part in ("bioptimus/H-optimus-1", "HF_HUB_OFFLINE is set", "request access", "HF_TOKEN"):
        assert part in message
    assert "--weights PATH" in message
    assert "--random-weights SEED" in message
    assert "request access" not in refusal("hf-hub:owner/open")


def test_no_network_is_noticed_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    point_hub_to("http://127.0.0.1:9", tmp_path, monkeypatch)
    began = time.perf_counter()
    with pytest.raises(WeightsError, match="the hub cannot be reached"):
        hub.fetch("owner/name", ["model.safetensors"])
    assert time.perf_counter() - began < 5  # the hub's own client retries for 23 s


def test_a_hub_that_does_not_answer_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        point_hub_to(f"http://127.0.0.1:{silent.getsockname()[1]}", tmp_path, monkeypatch)
        began = time.perf_counter()
        problem = hub_problem(timeout_s=0.3)
    assert problem is not None
    assert "cannot be reached" in problem
    assert time.perf_counter() - began < 3
