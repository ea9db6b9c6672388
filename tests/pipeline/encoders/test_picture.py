"""Pictures as an encoder takes them, and the classes that hand a student to a benchmark."""

import importlib.util
import pickle
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

from pipeline.embed.tiles import read_tile
from pipeline.encoders.encoder import Encoder
from pipeline.encoders.export import export_encoder
from pipeline.encoders.load import load_encoder
from tests.tools.encoders import TINY, trained_encoder
from tests.tools.settings import ROOT

CNN = "test_efficientnet"


def picture(folder: Path, width: int, height: int) -> Path:
    rng = np.random.default_rng(width * 1000 + height)
    path = folder / f"{width}x{height}.png"
    PIL.Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(path)
    return path


@pytest.mark.parametrize("shrink", [1, 2])
@pytest.mark.parametrize(("width", "height"), [(32, 32), (64, 64), (75, 40), (30, 61), (200, 33)])
def test_a_picture_becomes_what_embed_gives_the_encoder(
    tmp_path: Path, width: int, height: int, shrink: int
) -> None:
    encoder = trained_encoder().shrinking(shrink)
    path = picture(tmp_path, width, height)
    transform = pickle.loads(pickle.dumps(encoder.transform))  # it goes to the workers of a DataLoader
    found = transform(PIL.Image.open(path))
    view = torch.tensor(read_tile(path, encoder.image_px, "resize"))
    assert torch.equal(found, encoder.normalized(view[None])[0])
    assert torch.equal(encoder.of_images(found[None]), encoder(view[None]))


def test_grey_pictures_have_three_colours(tmp_path: Path) -> None:
    path = picture(tmp_path, 40, 40)
    transform = trained_encoder().transform
    grey = PIL.Image.open(path).convert("L")
    assert torch.equal(transform(grey), transform(grey.convert("RGB")))


class _Abstract(torch.nn.Module):
    """What THUNDER's abstract class does; the package itself cannot be installed beside our versions."""

    def get_embeddings(self, x: Any, model: Any, task_type: str) -> Any:
        own: Any = self
        if task_type == "linear_probing":
            return own.get_linear_probing_embeddings(x)
        return own.get_segmentation_embeddings(x)


def _load(name: str, monkeypatch: pytest.MonkeyPatch, **modules: types.SimpleNamespace) -> Any:
    """A file of the how-to, loaded by its path as THUNDER does."""
    for other, content in modules.items():
        monkeypatch.setitem(sys.modules, other.replace("__", "."), content)
    spec = importlib.util.spec_from_file_location("custom_model", ROOT / "docs/how-to" / name)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _exported(spec: str, seed: int, folder: Path) -> Encoder:
    encoder = load_encoder(spec, random_weights=seed)
    export_encoder(encoder, folder, {})
    return encoder


@pytest.mark.parametrize("spec", [TINY, CNN])
def test_thunder_gets_the_features_of_the_student(
    spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = _exported(spec, 0, tmp_path / "run/student")
    _exported(spec, 1, tmp_path / "other/run/student")
    models = types.SimpleNamespace(PretrainedModel=_Abstract)
    module = _load(
        "thunder_student.py",
        monkeypatch,
        thunder=types.SimpleNamespace(models=models),
        thunder__models=models,
    )
    monkeypatch.setenv("G2L_STUDENT", str(tmp_path / "run/student"))
    student = module.Student()
    images = torch.stack([student.get_transform()(PIL.Image.open(picture(tmp_path, 70, 50)))])
    with torch.inference_mode():
        features = student.get_embeddings(images, student, "linear_probing")
        assert torch.equal(features, encoder.of_images(images))
        assert features.shape == (1, student.emb_dim)
        places = student.get_embeddings(images, student, "segmentation")
        whole = encoder.backbone.forward_features(images)  # type: ignore[operator]
    assert places.shape[2] == student.emb_dim_seg
    assert round(places.shape[1] ** 0.5) ** 2 == places.shape[1]  # THUNDER lays them out as a square
    rest = whole[:, 5:] if whole.ndim == 3 else whole[0].reshape(whole.shape[1], -1).T[None]
    assert torch.equal(places, rest)
    monkeypatch.setenv("G2L_STUDENT", str(tmp_path / "other/run/student"))
    assert module.Student().name != student.name  # THUNDER keeps embeddings by name


def test_pathorob_gets_the_features_of_the_student(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = _exported(TINY, 0, tmp_path / "student")
    module = _load(
        "pathorob_student.py",
        monkeypatch,
        pathorob=types.SimpleNamespace(),
        pathorob__features=types.SimpleNamespace(extract_features=None),
        pathorob__models=types.SimpleNamespace(),
        pathorob__models__utils=types.SimpleNamespace(ModelWrapper=object),
    )
    student = module.Student(str(tmp_path / "student"))
    images = student.get_preprocess()(PIL.Image.open(picture(tmp_path, 70, 50)))[None]
    assert torch.equal(student.extract(images), encoder.of_images(images))
    assert student.get_model() is student.encoder
