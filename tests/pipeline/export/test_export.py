"""`g2l export`: what is written agrees with the original, is the same each time, and appears whole or not at all."""

import json
import re
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from click.testing import Result

from pipeline.encoders.class_tokens import with_class_tokens
from pipeline.encoders.encoder import Encoder
from pipeline.encoders.export import export_encoder
from pipeline.encoders.load import load_encoder
from pipeline.export import onnx_file, torchscript
from pipeline.export.graph import normalised
from stores.errors import OptionError
from stores.format.terms import Fact, Terms
from tests.tools.commands import g2l as command
from tests.tools.commands import one_error
from tests.tools.deploy import deploy, views_of, write_tiles
from tests.tools.encoders import SWIGLU, TINY, shaken
from tests.tools.settings import ROOT

WIDE = "vit_tiny_patch16_224?img_size=32&depth=1&embed_dim=96&num_heads=3"
ND = Terms("strict", Fact("CC-BY-NC-ND-4.0", "its page", "2026-11"))


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiles(tmp_path_factory.mktemp("tiles") / "tiles")


def student(folder: Path, spec: str = TINY, shrink: int = 1, pooling: str | None = None, **kept: Any) -> Path:
    """The folder of a student whose tensors are those of no start."""
    made = shaken(load_encoder(spec, random_weights=1, pooling=pooling))
    terms = kept.pop("terms", ())
    made = Encoder(
        replace(made.preset, mean=(0.7, 0.6, 0.7), std=(0.2, 0.3, 0.2), terms=terms), made.backbone
    )
    export_encoder(made.eval().shrinking(shrink), folder, kept)
    return folder


@pytest.mark.parametrize(
    ("spec", "chosen"),
    [
        (TINY, {"format": "onnx"}),
        (SWIGLU, {"format": "onnx", "pooling": "cls+mean"}),
        ("test_resnet", {"format": "onnx", "dtype": "float16"}),
        (WIDE, {"format": "onnx", "dtype": "int8"}),
        (SWIGLU, {"format": "torchscript", "input": "float"}),
        (TINY, {"format": "torchscript", "dtype": "float16"}),
        (TINY, {"format": "hf", "pooling": "cls+mean"}),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else value[:12],
)
def test_every_format_agrees_with_the_original(
    spec: str, chosen: dict[str, Any], tiles: Path, tmp_path: Path
) -> None:
    side = load_encoder(spec, random_weights=1).image_px
    if side > 40:
        tiles = write_tiles(tmp_path / "tiles", side)
    done = deploy(spec, tmp_path / "out", tiles, **chosen)
    assert done.agrees
    assert done.agreement.views == 5
    facts = json.loads((tmp_path / "out/export.json").read_text())
    assert facts["comparison"]["cosine_min"] == done.agreement.cosine_min
    assert facts["files"].keys() | {"README.md", "export.json"} == {
        p.name for p in (tmp_path / "out").iterdir()
    }
    assert "smallest cosine" in (tmp_path / "out/README.md").read_text()


@pytest.mark.parametrize(
    ("kind", "pooling", "dim", "words"),
    [
        ("onnx", "cls", 72, "is 3 class tokens, one after another"),
        ("hf", "cls+mean", 96, "is 3 class tokens, one after another"),
        ("hf", "cls-average", 24, "is the mean of 3 class tokens."),
    ],
)
def test_several_class_tokens(
    kind: str, pooling: str, dim: int, words: str, tiles: Path, tmp_path: Path
) -> None:
    """Of which timm's own `forward` returns the first alone."""
    made = shaken(with_class_tokens(load_encoder(TINY, random_weights=1, pooling="cls"), 3))
    export_encoder(made, tmp_path / "student", {})
    done = deploy(tmp_path / "student", tmp_path / "out", tiles, format=kind, pooling=pooling)
    assert done.facts["output"]["dim"] == dim
    assert words in (tmp_path / "out/README.md").read_text()


@pytest.mark.parametrize(
    ("kind", "takes"),
    [
        ("onnx", "uint8"),
        ("onnx", "float"),
        ("torchscript", "uint8"),
        ("torchscript", "float"),
        ("hf", "float"),
    ],
)
def test_the_code_of_a_card_runs(
    kind: str, takes: str, tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it stands there, on the black views that it begins with; of a student that averages squares."""
    folder = student(
        tmp_path / "student", SWIGLU.replace("img_size=28", "img_size=14"), shrink=2, pooling="cls+mean"
    )
    deploy(folder, tmp_path / "out", tiles, format=kind, input=takes)
    (code,) = re.findall(r"```python\n(.*?)```", (tmp_path / "out/README.md").read_text(), re.S)
    monkeypatch.chdir(tmp_path / "out")
    names: dict[str, Any] = {}
    with onnx_file.quiet():  # torch.jit.load warns of itself
        exec(code.replace("hf-hub:OWNER/NAME", f"local-dir:{tmp_path / 'out'}"), names)
    original = load_encoder(str(folder))
    views = torch.zeros(4, 28, 28, 3, dtype=torch.uint8)
    if (kind, takes) == ("torchscript", "float"):  # there the zeros are normalised already
        assert names["features"].shape == (4, original.dim)
        return
    with torch.inference_mode():
        np.testing.assert_allclose(names["features"], original(views).numpy(), atol=1e-5)


@pytest.mark.parametrize("takes", ["uint8", "float"])
def test_means_of_squares_are_inside(takes: str, tiles: Path, tmp_path: Path) -> None:
    folder = student(tmp_path / "student", SWIGLU.replace("img_size=28", "img_size=14"), shrink=2)
    done = deploy(folder, tmp_path / "out", tiles, format="onnx", input=takes)
    assert done.agreement.difference_max is not None
    assert done.agreement.difference_max < 1e-5
    session = onnxruntime.InferenceSession(tmp_path / "out/model.onnx", providers=["CPUExecutionProvider"])
    original, views = load_encoder(str(folder)), views_of(tiles, 28)
    given = views if takes == "uint8" else normalised(views, original.mean, original.std)
    with torch.inference_mode():
        expected = original(torch.from_numpy(views)).numpy()
    for count in (1, 3):
        (found,) = session.run(["features"], {onnx_file.input_name(takes): given[:count]})
        np.testing.assert_allclose(found, expected[:count], atol=1e-5)


def test_the_same_bytes_each_time_and_no_path_of_this_machine(tiles: Path, tmp_path: Path) -> None:
    """Also after another encoder was traced, which moves the numbers that torch gives to classes."""
    kinds = {"onnx": onnx_file.FILE, "torchscript": torchscript.FILE}
    first = {kind: deploy(TINY, tmp_path / f"{kind}-1", tiles, format=kind) for kind in kinds}
    deploy(SWIGLU, tmp_path / "other", tiles, format="torchscript")
    for kind, name in kinds.items():
        again = deploy(TINY, tmp_path / f"{kind}-2", tiles, format=kind)
        assert again.facts["files"] == first[kind].facts["files"]
        content = (tmp_path / f"{kind}-2" / name).read_bytes()
        if kind == "torchscript":
            with zipfile.ZipFile(tmp_path / f"{kind}-2" / name) as archive:
                content = b"".join(map(archive.read, archive.namelist()))
        assert str(ROOT).encode() not in content
        assert b"site-packages" not in content


@pytest.mark.slow
def test_torchscript_opens_where_neither_g2l_nor_timm_is(tiles: Path, tmp_path: Path) -> None:
    deploy(TINY, tmp_path / "out", tiles, format="torchscript")
    np.save(tmp_path / "views.npy", views_of(tiles, 32))
    code = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("pipeline", "stores", "timm", "torchvision"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
import numpy, torch
model = torch.jit.load("out/torchscript_model.pt").eval()
with torch.inference_mode():
    numpy.save("features.npy", model(torch.from_numpy(numpy.load("views.npy"))).numpy())
"""
    subprocess.run([sys.executable, "-I", "-W", "ignore", "-c", code], cwd=tmp_path, check=True)
    with torch.inference_mode():
        expected = load_encoder(TINY, random_weights=1)(torch.from_numpy(views_of(tiles, 32)))
    np.testing.assert_array_equal(np.load(tmp_path / "features.npy"), expected.numpy())


def test_the_configuration_of_wsinfer_is_what_its_schema_asks_for(tiles: Path, tmp_path: Path) -> None:
    """The rules of ``model-config.schema.json`` of wsinfer-zoo 0.6, and that of its client on the number of names."""
    folder = student(tmp_path / "run/student", patch_mpp=0.25)
    deploy(folder.parent, tmp_path / "out", tiles, format="wsinfer")
    config = json.loads((tmp_path / "out/config.json").read_text())
    kinds = {
        "spec_version": str,
        "architecture": str,
        "num_classes": int,
        "patch_size_pixels": int,
        "spacing_um_px": float,
        "class_names": list,
        "transform": list,
    }
    assert {name: type(value) for name, value in config.items()} == kinds
    assert (config["spec_version"], config["spacing_um_px"]) == ("1.0", 0.25)
    assert len(set(config["class_names"])) == config["num_classes"] == 25
    assert [step["name"] for step in config["transform"]] == ["Resize", "ToTensor", "Normalize"]
    assert all(step.keys() <= {"name", "arguments"} for step in config["transform"])
    assert config["transform"][2]["arguments"] == {"mean": [0.7, 0.6, 0.7], "std": [0.2, 0.3, 0.2]}


def test_features_come_back_through_the_softmax_of_wsinfer(tiles: Path, tmp_path: Path) -> None:
    folder = student(tmp_path / "student")
    deploy(folder, tmp_path / "out", tiles, format="wsinfer", mpp=0.5)
    original, views = load_encoder(str(folder)), views_of(tiles, 32)
    images = torch.from_numpy(normalised(views, original.mean, original.std))
    with torch.inference_mode(), onnx_file.quiet():
        shares = torch.jit.load(str(tmp_path / "out/torchscript_model.pt"))(images).softmax(1).numpy()
        expected = original(torch.from_numpy(views)).numpy()
    np.testing.assert_allclose(np.log(shares[:, 1:] / shares[:, :1]), expected, atol=1e-5)


def test_a_run_is_exported_with_its_card_and_the_prefixes_that_were_trained(
    store: Path, tmp_path: Path
) -> None:
    spec = "vit_tiny_patch16_224?patch_size=56&depth=1&embed_dim=24&num_heads=3"
    folder = student(
        tmp_path / "run/student", spec, patch_mpp=0.5, nested={"8": {}, "24": {}}, distilled_from="a teacher"
    )
    (folder / "README.md").write_text("# How it was trained\n")
    arguments = [tmp_path / "run", "--store", store, "--format", "hf", "--out", tmp_path / "out"]
    done = command("export", *arguments, "--views", 7, "--threads", 1)
    assert done.exit_code == 0, done.output
    assert "7 views compared with the original: smallest cosine 1.000000" in done.stdout
    text = (tmp_path / "out/README.md").read_text()
    assert "features[:, :8]" in text
    assert "store recipe" in text
    assert (tmp_path / "out/STUDENT.md").read_text() == "# How it was trained\n"
    loaded = json.loads((tmp_path / "out/config.json").read_text())["g2l"]["extra"]
    assert loaded["distilled_from"] == "a teacher"
    one_error(command("export", *arguments), "exists already")


def test_terms_that_forbid_it_are_quoted_and_a_permission_is_recorded(tiles: Path, tmp_path: Path) -> None:
    folder, out = student(tmp_path / "student", terms=(Terms("mine", Fact("MIT")), ND)), tmp_path / "out"
    arguments = ["export", folder, "--format", "onnx", "--out", out, "--patches", tiles]
    refused = command(*arguments)
    one_error(refused, "strict: CC-BY-NC-ND-4.0, under which changed material may not be passed on")
    assert "its page, 2026-11" in refused.stderr
    assert "--permission TEXT" in refused.stderr
    assert not out.exists()
    done = command(*arguments, "--permission", "stays in our hospital, says *Legal*")
    assert done.exit_code == 0, done.output
    assert "commercial use is barred by the licence of strict" in done.stdout
    facts = json.loads((out / "export.json").read_text())
    assert facts["permission"] == "stays in our hospital, says *Legal*"
    assert facts["licence"] == "MIT AND CC-BY-NC-ND-4.0"
    text = (out / "README.md").read_text()
    assert "stays in our hospital, says &#42;Legal&#42;" in text
    assert "license: other" in text


def failed(result: Result, tmp_path: Path) -> None:
    assert result.exit_code == 1, result.output
    assert "nothing was written" in result.stdout
    assert not list(tmp_path.glob("*out*"))
    assert not list(tmp_path.glob(".*"))


def test_what_differs_is_not_written(tiles: Path, tmp_path: Path) -> None:
    options = ["--format", "onnx", "--out", tmp_path / "out", "--patches", tiles, "--random-weights", 1]
    failed(command("export", TINY, *options, "--dtype", "float16", "--min-cosine", 1), tmp_path)


def test_float16_that_overflows_is_found(tmp_path: Path) -> None:
    """Its features are finite, and wrong: the last module hides that numbers inside are infinite."""
    tiles = write_tiles(tmp_path / "tiles", 224)
    options = ["--format", "onnx", "--out", tmp_path / "out", "--patches", tiles, "--random-weights", 1]
    loud = "tests.tools.tiny:loud_teacher"
    failed(command("export", loud, *options, "--dtype", "float16"), tmp_path)
    assert command("export", loud, *options).exit_code == 0


def test_an_export_that_fails_leaves_nothing(
    tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(job: object, folder: Path) -> None:
        (folder / "half").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(onnx_file, "ONNX", replace(onnx_file.ONNX, write=cut))
    with pytest.raises(KeyboardInterrupt):
        deploy(TINY, tmp_path / "out", tiles, format="onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named(tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_file, "PACKAGES", ("onnx", "no_such_runtime"))
    with pytest.raises(OptionError, match=r"needs no_such_runtime; .* pip install 'g2l\[onnx\]'"):
        deploy(TINY, tmp_path / "out", tiles, format="onnx")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "coreml"}, "onnx, torchscript, wsinfer, hf"),
        ({"format": "torchscript", "dtype": "int8"}, "allowed is float32, float16 with --format torchscript"),
        ({"format": "hf", "dtype": "float16"}, "allowed is float32 with --format hf"),
        ({"format": "wsinfer", "input": "uint8"}, "is fed normalised floats"),
        ({"format": "wsinfer"}, "does not say at which resolution it was trained"),
        ({"format": "onnx", "mpp": 0.5}, "only written for --format wsinfer"),
        ({"format": "onnx", "min_cosine": 1.5}, "above 0, up to 1"),
        ({"format": "onnx", "permission": " "}, "say in a sentence by what right"),
        ({"format": "onnx", "slides": ["a.svs"]}, "are the slides of --store"),
        ({"format": "onnx", "patches": []}, "--store and --patches: give one of them"),
        (
            {"format": "onnx", "dtype": "int8", "encoder": "test_resnet"},
            "which are 0% of those of test_resnet",
        ),
        ({"format": "onnx", "encoder": "vit_tiny_patch16_224"}, "40x40 px; the encoder takes 224 px"),
        ({"format": "hf", "encoder": "tests.tools.tiny:student"}, "was made by a function"),
    ],
)
def test_what_is_not_allowed(options: dict[str, Any], message: str, tiles: Path, tmp_path: Path) -> None:
    import pipeline as g2l

    given = {"random_weights": 1, "patches": [tiles], **options}
    with pytest.raises(OptionError) as caught:
        g2l.export(given.pop("encoder", TINY), tmp_path / "out", **given)
    assert message in str(caught.value)
    assert not (tmp_path / "out").exists()
