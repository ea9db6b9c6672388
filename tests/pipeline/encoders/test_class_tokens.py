"""Several class tokens: copies of the first at the start, in timm's own model, exported and opened again."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.encoders.attention import class_attention, require_attention, with_attentions
from pipeline.encoders.class_tokens import part_of, places_of, with_class_tokens
from pipeline.encoders.encoder import Encoder
from pipeline.encoders.export import export_encoder, weights_sha256
from pipeline.encoders.load import load_encoder
from pipeline.encoders.torchvision_cpu import make_importable
from pipeline.inference.loaded import EncoderSpec, load_on_device
from pipeline.verify.options import VerifyOptions
from pipeline.verify.slide_views import require_teacher_of
from stores.errors import EncoderError, OptionError, RecipeMismatch
from stores.format import recipe
from tests.tools.encoders import SWIGLU, make_views, shaken
from tests.tools.stores import RECIPE

VIT = "timm:vit_tiny_patch16_224?depth=2&embed_dim=24&num_heads=3&img_size=32"
REGISTERS = f"{VIT}&reg_tokens=2"


def made(spec: str, pooling: str | None = None) -> Encoder:
    return shaken(load_encoder(spec, random_weights=1, pooling=pooling))


@pytest.mark.parametrize("pooling", [None, "cls+mean"])
@pytest.mark.parametrize(
    "spec", [VIT, REGISTERS, f"{VIT}&dynamic_img_size=true", f"{VIT}&pos_embed=none", SWIGLU]
)
@torch.inference_mode()
def test_new_tokens_are_copies_and_timm_opens_them(spec: str, pooling: str | None, tmp_path: Path) -> None:
    one, random = made(spec, pooling), torch.random.get_rng_state()
    digest = weights_sha256(one)
    three = with_class_tokens(one, 3)
    assert torch.equal(torch.random.get_rng_state(), random)
    assert weights_sha256(one) == digest
    assert with_class_tokens(three, 3) is three
    views, width = make_views(3, one.image_px), int(one.backbone.embed_dim)  # type: ignore[arg-type]
    same = [part_of(three(views), places_of(three, number)) for number in range(3)]
    assert torch.equal(same[0], same[1])
    assert torch.equal(same[0], same[2])
    alone = with_class_tokens(one, 1)(views)
    assert same[0].shape == alone.shape == (3, width * (2 if pooling else 1))
    assert float(torch.cosine_similarity(same[0], alone).min()) > 0.9  # attention has two more to look at
    old, new = one.backbone.state_dict(), three.backbone.state_dict()
    if "reg_token" in old:
        assert torch.equal(new["reg_token"][:, 2:], old["reg_token"])
    if len(new.get("pos_embed", [[]])[0]) > len(old.get("pos_embed", [[]])[0]):
        assert torch.equal(new["pos_embed"][:, 2:], old["pos_embed"])
    assert sum(value.numel() for value in new.values()) == three.preset.params

    moved = shaken(three)
    export_encoder(moved, tmp_path, {})
    found = load_encoder(str(tmp_path))
    features = moved(views)
    assert torch.equal(found(views), features)
    assert (found.class_tokens, found.dim, found.pooling) == (3, width * (4 if pooling else 3), moved.pooling)
    assert found.preset.params == three.preset.params
    make_importable()
    import timm

    model: Any = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    images = found.normalized(views)
    tokens = model.forward_features(images)
    assert torch.equal(tokens[:, :3].flatten(1), features[:, : 3 * width])
    assert torch.equal(model(images), features[:, :width])
    assert not torch.equal(features[:, :width], features[:, width : 2 * width])
    if pooling:
        assert torch.equal(tokens[:, model.num_prefix_tokens :].mean(1), features[:, 3 * width :])
    others = {"cls": features[:, : 3 * width]} if pooling else {"cls+mean": None}
    for name, expected in others.items():
        other = load_encoder(str(tmp_path), pooling=name)(views)
        assert torch.equal(other, expected) if expected is not None else other.shape == (3, 4 * width)
    average = load_encoder(str(tmp_path), pooling="cls-average")
    assert average.dim == width
    torch.testing.assert_close(average(views), tokens[:, :3].mean(1))
    export_encoder(average, tmp_path / "average", {})
    again = load_encoder(str(tmp_path / "average"))
    assert torch.equal(again(views), average(views))
    assert torch.equal(with_class_tokens(again, 3)(views), features[:, : 3 * width])


@torch.inference_mode()
def test_each_class_token_has_its_attention() -> None:
    encoder, views = shaken(with_class_tokens(made(REGISTERS), 3)), make_views(2, 32)
    last: Any = encoder.backbone.blocks[-1].attn  # type: ignore[union-attr,index]
    last.fused_attn, seen = False, []
    last.attn_drop.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    _, _, found = with_attentions(encoder, views)
    torch.testing.assert_close(found, seen[0].mean(dim=1)[:, :3, 5:], rtol=1e-5, atol=1e-7)
    with pytest.raises(EncoderError, match="has 3 class tokens, and the attention of one is kept"):
        require_attention(encoder)
    x = torch.randn(2, 9, 24, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(class_attention(last, x, 3)[:, :1], class_attention(last, x))


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (
            "tinynet_e",
            "tinynet_e cannot have several class tokens; allowed is .* class token, such as hibou-l",
        ),
        ("tests.tools.tiny:student", "cannot have several class tokens; allowed is a vision transformer"),
        ("timm:deit_tiny_distilled_patch16_224?depth=1", "cannot have several class tokens"),
        (f"{VIT}&class_token=false&global_pool=avg", "cannot have several class tokens"),
        (f"{VIT}&global_pool=avg", "embeds with 'avg' pooling; .* --pooling cls takes it"),
        (f"{VIT}&fc_norm=true", "embeds with 'token' pooling; .* --pooling cls takes it"),
    ],
)
def test_encoders_that_cannot(spec: str, said: str) -> None:
    with pytest.raises(EncoderError, match=said):
        with_class_tokens(load_encoder(spec, random_weights=0), 2)


def test_another_number_of_class_tokens() -> None:
    with pytest.raises(OptionError, match=r"--pooling cls-average: vit_tiny.* has one class token; take cls"):
        load_encoder(VIT, random_weights=0, pooling="cls-average")
    two = with_class_tokens(made(VIT), 2)
    with pytest.raises(EncoderError, match="has 2 class tokens, not 3; give as many teachers"):
        with_class_tokens(two, 3)
    with pytest.raises(EncoderError, match="65 class tokens; allowed are at most 64"):
        with_class_tokens(made(VIT), 65)


@pytest.mark.parametrize(
    ("said", "pooling", "expected"),
    [
        (0, "cls", "class_tokens is 0; allowed is a whole number from 1 to 64"),
        ("2", "cls", "class_tokens is '2'; allowed"),
        (65, "cls", "class_tokens is 65; allowed"),
        (6, "cls", "class_tokens is 6; the model has 5 that its pooling 'cls' can take"),
        (2, "forward", "class_tokens is 2; the model has 0 that its pooling 'forward' can take"),
    ],
)
def test_a_config_that_says_something_else(tmp_path: Path, said: Any, pooling: str, expected: str) -> None:
    export_encoder(with_class_tokens(made(REGISTERS), 3), tmp_path, {})
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["g2l"]["class_tokens"], config["model_args"]["reg_tokens"]) == (3, 4)
    config["g2l"] |= {"class_tokens": said, "pooling": pooling}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(EncoderError, match=expected):
        load_encoder(str(tmp_path))


def test_weights_under_another_name_would_lose_tokens(tmp_path: Path) -> None:
    export_encoder(with_class_tokens(made(VIT), 3), tmp_path / "three", {})
    export_encoder(made(VIT), tmp_path / "one", {})
    for spec, weights, said in (
        (VIT, tmp_path / "three", "has 3 class tokens, .* 1; give the folder .*three itself as the encoder"),
        (VIT, tmp_path / "three/model.safetensors", "has 3 class tokens"),
        (str(tmp_path / "three"), tmp_path / "one", "has 1 class token, .* 3; give the folder .*one itself"),
    ):
        with pytest.raises(EncoderError, match=said):
            load_encoder(spec, weights=weights)
    export_encoder(load_encoder("tests.tools.tiny:student", random_weights=0), tmp_path / "f", {})
    config = json.loads((tmp_path / "f/config.json").read_text())
    config["g2l"]["class_tokens"] = 2
    (tmp_path / "f/config.json").write_text(json.dumps(config))
    with pytest.raises(EncoderError, match=r"has 2 class tokens, tests.tools.tiny:student 1"):
        load_encoder("tests.tools.tiny:student", weights=tmp_path / "f")


def test_a_recipe_says_how_many(tmp_path: Path) -> None:
    export_encoder(with_class_tokens(made(VIT), 3), tmp_path, {})
    found = load_on_device(EncoderSpec(str(tmp_path), device="cpu", view_px=32))
    identity = found.identity
    assert (identity.class_tokens, identity.dim, identity.pooling) == (3, 72, "cls")
    stored = replace(RECIPE, teacher=identity)
    assert recipe.from_json(stored.to_json(), "here") == stored
    assert stored.digest() != replace(RECIPE, teacher=replace(identity, class_tokens=1)).digest()
    assert "class_tokens" not in RECIPE.to_json()["teacher"]
    require_teacher_of(recipe.require_complete(stored, Path("store")), found, VerifyOptions())
    other = replace(stored, teacher=replace(identity, class_tokens=1))
    with pytest.raises(RecipeMismatch, match="its class_tokens is 3, the store was made with 1"):
        require_teacher_of(recipe.require_complete(other, Path("store")), found, VerifyOptions())
    said = list(recipe.problems(replace(stored, teacher=replace(identity, class_tokens=0))))
    assert "teacher.class_tokens 0; allowed is 1 to teacher.dim 72" in said
    assert not any("class_tokens" in one for one in recipe.problems(stored))
