"""A config.json from elsewhere describes an architecture; it downloads, reads, writes and runs nothing."""

import http.server
import json
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.encoders import weights
from pipeline.encoders.encoder import Encoder
from pipeline.encoders.export import export_encoder
from pipeline.encoders.load import load_encoder
from pipeline.encoders.presets import PRESETS
from pipeline.encoders.timm_arguments import ARGUMENTS, require_architecture, require_arguments
from stores.errors import EncoderError
from tests.tools.encoders import refusal, trained_encoder
from tests.tools.settings import ROOT


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder") / "student"
    export_encoder(trained_encoder(), folder, {})
    return folder


def changed(student: Path, folder: Path, change: Any) -> Path:
    """A copy of a student folder with another config: keys of objects are joined, anything else is replaced."""

    def joined(old: Any, new: Any) -> Any:
        if isinstance(old, dict) and isinstance(new, dict):
            return {**old, **{key: joined(old.get(key), value) for key, value in new.items()}}
        return new

    copy = Path(shutil.copytree(student, folder))
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(joined(config, change)))
    return copy


@pytest.fixture
def server() -> Iterator[tuple[str, list[str]]]:
    """An address that answers nothing, and the requests that it got."""
    seen: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.path)
            self.send_error(404)

        def log_message(self, *args: Any) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}", seen
        running.shutdown()
        thread.join()


def test_a_config_neither_downloads_nor_chooses_a_folder(
    student: Path, server: tuple[str, list[str]], tmp_path: Path
) -> None:
    address, seen = server
    cache, url = tmp_path / "chosen", f"{address}/weights.pth"
    hostile = {"pretrained": True, "cache_dir": str(cache), "pretrained_cfg": {"url": url}}
    for number, change in enumerate(
        (
            {"model_args": hostile},
            {"model_args": {"pretrained": True, "pretrained_cfg_overlay": {"url": url}}},
            {"model_args": {"checkpoint_path": str(student / "model.safetensors")}},
        )
    ):
        message = refusal(str(changed(student, tmp_path / str(number), change)))
        assert "cannot be set" in message
    inert = changed(
        student, tmp_path / "inert", {"pretrained_cfg": {"url": url, "file": "x", "hf_hub_id": "a/b"}}
    )
    load_encoder(str(inert))  # where its weights once were is nothing that we read
    assert seen == []
    assert not cache.exists()


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ({"img_size": 10**9}, "img_size is 1000000000; allowed is a whole number from 1 to 4096"),
        ({"img_size": "224"}, "img_size is '224'"),
        ({"depth": 10**9}, "1 to 256 blocks in all"),
        ({"depths": [200, 200]}, "1 to 256 blocks in all"),
        ({"depth": True}, "1 to 256 blocks"),
        ({"embed_dim": 10**12}, "a number from 0 to 65536"),
        ({"embed_dim": -1}, "a number from 0 to 65536"),
        ({"mlp_ratio": [[[4]]]}, "a number from 0 to 65536"),
        ({"channels": [1] * 1000}, "a number from 0 to 65536"),
        ({"qkv_bias": "yes"}, "true or false"),
        ({"act_layer": "os.system"}, "act_layer is 'os.system'; allowed is gelu"),
        ({"norm_layer": {"__reduce__": 1}}, "allowed is batchnorm2d"),
        ({"mlp_layer": "SwiGLUPacked"}, "'mlp_layer' cannot be set"),
        ({"in_chans": 4}, "3: views are RGB"),
        ({"device": "cuda"}, "'device' cannot be set"),
        ({"depht": 2}, "did you mean depth"),
        ({"a\n\x1b[31mb": 1}, "cannot be set"),
    ],
)
def test_arguments_that_a_config_may_not_set(
    student: Path, arguments: dict[str, Any], part: str, tmp_path: Path
) -> None:
    message = refusal(str(changed(student, tmp_path / "s", {"model_args": arguments})))
    assert part in message
    assert message.isprintable()


@pytest.mark.parametrize(
    "name",
    [
        "hf-hub:timm/resnet18",
        "hf_hub:a/b",
        "local-dir:/tmp",
        "../resnet18",
        "resnet18.a/b",
        "a" * 500,
        "",
        "x\ny",
    ],
)
def test_an_architecture_is_a_name_of_timm(student: Path, name: str, tmp_path: Path) -> None:
    assert "is no timm name" in refusal(str(changed(student, tmp_path / "s", {"architecture": name})))
    with pytest.raises(EncoderError, match="is no timm name"):
        require_architecture(name, "here")


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"g2l": {"dim": 10**9}}, "dim is 1000000000; allowed is a whole number from 1 to 65535"),
        ({"g2l": {"image_px": 0}}, "image_px is 0"),
        ({"g2l": {"image_px": 10**9}}, "image_px is 1000000000"),
        ({"g2l": {"mpp": -1}}, "mpp is -1.0"),
        ({"g2l": {"mean": [10**400, 0, 0]}}, "has more than 64 bits"),
        ({"g2l": {"terms": [{"encoder": "x"}]}}, "terms have the fields encoder, licence, access, outputs"),
        ({"model_args": [1]}, "does not have timm's form"),
        ({"model_args": {"patch_size": 4}}, "does not fit"),
        ({"model_args": {"img_size": 4096, "embed_dim": 60000, "num_heads": 1, "depth": 256}}, "parameters"),
    ],
)
def test_values_of_a_config_are_judged(student: Path, change: Any, part: str, tmp_path: Path) -> None:
    assert part in refusal(str(changed(student, tmp_path / "s", change)))


def test_a_config_that_is_no_file_or_too_deep(student: Path, tmp_path: Path) -> None:
    copy = changed(student, tmp_path / "s", {})
    (copy / "config.json").write_text("[" * 100_000)
    assert "not a readable JSON file" in refusal(str(copy))
    (copy / "config.json").write_text('{"architecture": NaN}')
    assert "not a readable JSON file" in refusal(str(copy))


def test_a_name_is_one_line(student: Path, tmp_path: Path) -> None:
    loaded = load_encoder(str(changed(student, tmp_path / "s", {"g2l": {"name": "a\n\x1b[31m" + "b" * 999}})))
    assert loaded.name.isprintable()
    assert len(loaded.name) <= 200


def test_arguments_in_a_name_are_judged_like_those_of_a_config() -> None:
    assert "'pretrained' cannot be set" in refusal("test_vit?pretrained=true", random_weights=0)
    assert "'checkpoint_path' cannot be set" in refusal("timm:test_vit?checkpoint_path=x", random_weights=0)


def test_no_memory_is_taken_for_what_the_weights_do_not_hold(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A config of 2 kB could ask for position embeddings of 16 million patches, made of the four in the file."""
    monkeypatch.setattr(weights, "_timm_filter", lambda *_: pytest.fail("the conversion has begun"))
    large = {"model_args": {"img_size": 4096, "patch_size": 1}}
    message = refusal(str(changed(student, tmp_path / "s", large)))
    assert re.search(r"does not fit .*; [\d,]+ numbers in all instead of [\d,]+", message)


def test_what_presets_and_common_repositories_set_is_allowed() -> None:
    for preset in PRESETS.values():
        require_architecture(preset.arch, preset.name)
        require_arguments(preset.kwargs, preset.name)
    for arguments in (
        {"img_size": 224, "init_values": 1e-5, "dynamic_img_size": True},  # UNI
        {"img_size": [224, 224], "mlp_ratio": 5.3375, "reg_tokens": 4, "global_pool": ""},  # Virchow2
        {"act_layer": "silu", "patch_size": 14, "no_embed_class": True, "class_token": None},
        {"layers": [2, 2, 2, 2], "stem_type": "deep", "avg_down": True},
    ):
        require_arguments(arguments, "here")


@pytest.mark.parametrize(
    "form",
    [
        {"architecture": "test_vit", "num_classes": 10, "global_pool": "token", "input_size": [3, 160, 160]},
        {
            "architecture": "test_vit",
            "num_classes": 0,
            "num_features": 64,
            "pretrained_cfg": {"tag": "x", "input_size": [3, 160, 160], "fixed_input_size": True,
                               "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "license": "mit",
                               "label_names": ["a"], "url": "https://x", "hf_hub_id": "a/b"},
        },
    ],
)  # fmt: skip
def test_forms_that_timm_writes(form: dict[str, Any], tmp_path: Path) -> None:
    source = load_encoder("test_vit", random_weights=0)
    export_encoder(source, tmp_path, {})
    (tmp_path / "config.json").write_text(json.dumps(form))
    loaded = load_encoder(str(tmp_path))
    views = torch.zeros(1, 160, 160, 3, dtype=torch.uint8)
    same = Encoder(loaded.preset, source.backbone)
    with torch.inference_mode():
        assert torch.equal(loaded(views), same(views))
    # not timm's of the architecture
    assert loaded.licence == ("MIT" if "pretrained_cfg" in form else "unknown")


def test_the_documentation_lists_every_argument() -> None:
    page = (ROOT / "docs" / "reference" / "encoders.md").read_text(encoding="utf-8")
    section = page.split("### Arguments of an architecture\n")[1].split("\n## ")[0]
    assert set(re.findall(r"`(\w+)`", section)) == ARGUMENTS
