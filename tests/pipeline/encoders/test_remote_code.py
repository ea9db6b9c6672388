"""Encoders that bring code of their own: what has to be said first, and what is made of their outputs.

A stand-in plays ``transformers.AutoModel``; nothing here runs code from elsewhere.
"""

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.embed.options import EmbedOptions
from pipeline.encoders import remote_code
from pipeline.encoders.load import load_encoder
from pipeline.inference.loaded import EncoderSpec, load_on_device
from stores.errors import EncoderError, WeightsError
from tests.tools.commands import g2l, one_error
from tests.tools.encoders import make_views, refusal
from tests.tools.settings import ROOT

COMMIT = "0123456789abcdef" * 2 + "01234567"
SPEC = f"hf-auto:owner/model@{COMMIT}"
IMAGES = {"image_mean": [0.7, 0.6, 0.5], "image_std": [0.2, 0.25, 0.5], "size": {"shortest_edge": 32}}


class Stranger(nn.Module):
    """Class token, three registers, and 4 x 4 patches of 8 px, each a mean colour."""

    def __init__(self, returns: str) -> None:
        super().__init__()
        self.returns = returns
        self.scale = nn.Parameter(torch.full((3,), 2.0, dtype=torch.float64))

    def forward(self, images: Tensor) -> Any:
        patches = nn.functional.avg_pool2d(images, 8).flatten(2).transpose(1, 2) * self.scale
        if self.returns == "features":
            return patches.mean(1)
        if self.returns == "nothing":
            return SimpleNamespace(last_hidden_state=None)
        begin = patches.amax(1, keepdim=True).expand(-1, 4, -1)
        return SimpleNamespace(last_hidden_state=torch.cat([begin, patches], dim=1))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Files of the repository, what the model returns, and the calls of ``from_pretrained``."""
    state: dict[str, Any] = {
        "files": {"config.json": {"patch_size": 8}, "preprocessor_config.json": IMAGES},
        "returns": "tokens",
        "calls": [],
    }

    def fetch(repo: str, names: list[str]) -> Path:
        assert repo == f"owner/model@{COMMIT}"
        (tmp_path / names[0]).write_text(json.dumps(state["files"][names[0]]))
        return tmp_path / names[0]

    def from_pretrained(repo: str, **how: Any) -> nn.Module:
        state["calls"].append((repo, how))
        if state["returns"] == "raises":
            raise RuntimeError("no such\nfile")
        return Stranger(state["returns"])

    monkeypatch.setattr(remote_code, "fetch", fetch)
    fake = SimpleNamespace(AutoModel=SimpleNamespace(from_pretrained=from_pretrained))
    monkeypatch.setitem(sys.modules, "transformers", fake)
    return state


def said(spec: str = SPEC) -> str:
    with pytest.raises(Exception) as caught:  # noqa: PT011  # its type is checked by `one_error`
        load_encoder(spec, trust_remote_code=True)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "spec",
    [
        "hf-auto:owner/model",
        "hf-auto:owner/model@main",
        f"hf-auto:owner/model@{COMMIT[:39]}",
        f"hf-auto:owner/model@{COMMIT.upper()}",
        f"hf-auto:../model@{COMMIT}/x",
        f"hf-auto:model@{COMMIT}",
        "hf-auto:",
    ],
)
def test_only_a_commit_is_a_revision(hub: dict[str, Any], spec: str) -> None:
    assert "40 hexadecimal digits" in said(spec)
    assert hub["calls"] == []


def test_nothing_is_imported_before_the_user_says_so(
    hub: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib, "import_module", lambda name: pytest.fail(f"{name} was imported"))
    message = refusal(SPEC)
    assert "--trust-remote-code" in message
    assert "runs the code of that repository" in message
    assert hub["calls"] == []


def test_without_transformers_the_line_says_how_to_install_it(
    hub: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert "pip install transformers" in said()


@torch.inference_mode()
def test_tokens_are_pooled_and_the_code_is_pinned(hub: dict[str, Any]) -> None:
    encoder = load_encoder(SPEC, trust_remote_code=True)
    assert hub["calls"] == [
        ("owner/model", {"revision": COMMIT, "code_revision": COMMIT, "trust_remote_code": True})
    ]
    assert (encoder.name, encoder.dim, encoder.image_px, encoder.pooling) == (SPEC, 3, 32, "cls")
    assert (encoder.mean, encoder.std, encoder.licence) == ((0.7, 0.6, 0.5), (0.2, 0.25, 0.5), "unknown")
    views = make_views(2, 32)
    mean, std = (torch.tensor(IMAGES[key]).view(3, 1, 1) for key in ("image_mean", "image_std"))
    images = (views.permute(0, 3, 1, 2) / 255 - mean) / std
    patches = 2 * nn.functional.avg_pool2d(images, 8).flatten(2).transpose(1, 2)
    torch.testing.assert_close(encoder(views), patches.amax(1))
    both = load_encoder(SPEC, trust_remote_code=True, pooling="cls+mean")
    torch.testing.assert_close(both(views), torch.cat([patches.amax(1), patches.mean(1)], dim=1))


def test_the_users_word_reaches_the_workers(hub: dict[str, Any]) -> None:
    said = EmbedOptions(encoder=SPEC, device="cpu", trust_remote_code=True)
    assert load_on_device(EncoderSpec.of(SPEC, said)).identity.name == SPEC
    with pytest.raises(EncoderError, match="give --trust-remote-code"):
        load_on_device(EncoderSpec.of(SPEC, EmbedOptions(encoder=SPEC)))


def test_a_model_that_returns_features(hub: dict[str, Any]) -> None:
    hub["returns"] = "features"
    encoder = load_encoder(SPEC, trust_remote_code=True)
    assert (encoder.pooling, encoder(make_views(2, 32)).shape) == ("forward", (2, 3))


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"returns": "nothing"}, "features or last_hidden_state expected"),
        ({"returns": "raises"}, "transformers cannot load it (no such"),
        ({"config.json": {"auto_map": {"AutoModel": "other/repo--modeling.Model"}}}, "in another repository"),
        ({"config.json": []}, "config.json of owner/model@"),
        ({"preprocessor_config.json": {**IMAGES, "image_mean": None}}, "mean or std of preprocessor_config"),
        (
            {"preprocessor_config.json": {**IMAGES, "size": {"height": 8, "width": 9}}},
            "a square side is expected",
        ),
        ({"preprocessor_config.json": {**IMAGES, "size": 1 << 20}}, "allowed is 1 to 4096"),
    ],
)
def test_what_does_not_fit_is_one_line(hub: dict[str, Any], change: dict[str, Any], part: str) -> None:
    if "returns" in change:
        hub |= change
    else:
        hub["files"] |= change
    assert part in said()


@pytest.mark.slow
def test_code_of_a_repository_may_import_torchvision(tmp_path: Path) -> None:
    """Beside a CPU-only torch, torchvision does not import by itself: `pipeline.encoders.torchvision_cpu`."""
    (tmp_path / "transformers.py").write_text(
        "class AutoModel:\n"
        "    @staticmethod\n"
        "    def from_pretrained(*_, **__):\n"
        "        import torchvision\n"
        "        from torch import nn\n"
        "        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())\n"
    )
    for name, found in (("config.json", {}), ("preprocessor_config.json", IMAGES)):
        (tmp_path / name).write_text(json.dumps(found))
    run = (
        f"import pathlib, sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from pipeline.encoders import remote_code\n"
        f"remote_code.fetch = lambda repo, names: pathlib.Path({str(tmp_path)!r}, names[0])\n"
        f"print(remote_code.load_remote({SPEC!r}, trusted=True).dim)"
    )
    done = subprocess.run([sys.executable, "-c", run], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "3\n", done.stderr


@pytest.mark.parametrize(
    ("size", "side"),
    [
        ({"size": 48}, 48),
        ({"size": 40, "crop_size": {"height": 24, "width": 24}}, 24),
        ({"size": {"height": 32, "width": 32}}, 32),
    ],
)
def test_the_side_in_the_forms_of_processors(hub: dict[str, Any], size: dict[str, Any], side: int) -> None:
    hub["files"]["preprocessor_config.json"] = {**IMAGES, **size}
    assert load_encoder(SPEC, trust_remote_code=True).image_px == side


def test_it_brings_its_own_weights(hub: dict[str, Any]) -> None:
    assert "brings its own weights" in refusal(SPEC, random_weights=0)


def test_a_file_of_options_cannot_trust(hub: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(f"teacher: {SPEC}\ntrust_remote_code: true\n")
    result = g2l("extract-teacher", tmp_path, "--store", tmp_path / "s", "--config", tmp_path / "c.yaml")
    assert result.exit_code == 2
    assert "trust_remote_code is set on the command line alone" in result.output
    assert hub["calls"] == []


def test_a_student_and_a_report_do_not_take_it(hub: dict[str, Any], store: Path, tmp_path: Path) -> None:
    one_error(g2l("report", store, "--student", SPEC, "--out", tmp_path / "r.html"), "--trust-remote-code")
    one_error(
        g2l("distill", "--store", store, "--student", SPEC, "--out", tmp_path / "run"), "--trust-remote-code"
    )
    assert hub["calls"] == []


def test_a_repository_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pytest.importorskip("transformers")
    with pytest.raises(WeightsError, match="HF_HUB_OFFLINE is set"):
        load_encoder(SPEC, trust_remote_code=True)
