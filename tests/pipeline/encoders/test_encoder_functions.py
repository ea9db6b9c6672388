"""Encoders that a user's own function makes: the contract, and what breaks it."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from pipeline.encoders.encoder import Encoder
from pipeline.encoders.export import weights_sha256
from pipeline.encoders.load import load_encoder
from pipeline.encoders.presets import Preset
from stores.errors import EncoderError
from tests.tools.encoders import make_views, refusal
from tests.tools.settings import ROOT

USER_MODULE = """
import torch
from torch import nn
from pipeline.encoders import Encoder
from pipeline.encoders.presets import Preset

class Colour(nn.Module):
    def __init__(self):
        super().__init__()
        self.project = nn.Linear(3, 5)
    def forward(self, images):
        return self.project(images.mean((2, 3)))

class Described(Colour):
    mean, std, image_px, mpp, licence = (0.1, 0.2, 0.3), (1.0, 1.0, 1.0), 64, 0.25, "MIT"

def by_attributes(): return Described()
def by_dict(): return Colour(), {"mean": [0.1, 0.2, 0.3], "std": [1, 1, 1], "image_px": 64, "mpp": 0.25}
def by_encoder():
    return Encoder(Preset(name="mine", dim=5, mean=(0.1, 0.2, 0.3), std=(1.0, 1.0, 1.0), image_px=64), Colour())
def by_timm():
    import timm
    return timm.create_model("resnet10t", num_classes=0)
def undescribed(): return Colour()
def misspelt(): return Colour(), {"mean": [0, 0, 0], "stdev": [1, 1, 1]}
def two_channels(): return Colour(), {"mean": [0, 0], "std": [1, 1, 1]}
def zero_std(): return Colour(), {"mean": [0, 0, 0], "std": [1, 1, 0]}
def wrong_dim(): return Colour(), {"mean": [0, 0, 0], "std": [1, 1, 1], "image_px": 64, "dim": 6}
def tokens():
    return nn.Identity(), {"mean": [0, 0, 0], "std": [1, 1, 1], "image_px": 64}
def one_channel():
    import timm
    return timm.create_model("resnet10t", num_classes=0, in_chans=1)
class Grey(nn.Module):
    mean, std, image_px, dim = (0, 0, 0), (1, 1, 1), 64, 7
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 7, 64)
    def forward(self, images):
        return self.conv(images.mean(1, keepdim=True)).flatten(1)
class Blind(Grey):
    def forward(self, images):
        return self.conv(images).flatten(1)
def grey(): return Grey()
def blind(): return Blind()
class Choice: pass
def needs(path): return Colour()
"""


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "my_encoders.py").write_text(USER_MODULE)
    (tmp_path / "my_broken.py").write_text("import a_library_that_is_not_installed\n")
    monkeypatch.chdir(tmp_path)
    sys.modules.pop("my_encoders", None)
    return "my_encoders"


@pytest.mark.parametrize("function", ["by_attributes", "by_dict", "by_encoder"])
def test_function_describes_its_encoder(user: str, function: str) -> None:
    path_before = list(sys.path)
    encoder = load_encoder(f"{user}:{function}")
    assert sys.path == path_before
    views = make_views(2, 64)
    images = views.permute(0, 3, 1, 2) / 255 - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)
    with torch.inference_mode():
        torch.testing.assert_close(encoder(views), encoder.backbone(images))
    assert (encoder.dim, encoder.image_px) == (5, 64)
    assert encoder.mpp == (None if function == "by_encoder" else 0.25)
    with pytest.raises(EncoderError, match="takes 64x64 px"):
        encoder(make_views(2, 32))


def test_function_in_a_file_and_from_timm(user: str, tmp_path: Path) -> None:
    assert load_encoder(f"{tmp_path}/my_encoders.py:by_dict").dim == 5
    by_timm = load_encoder(f"{user}:by_timm")
    assert (by_timm.dim, by_timm.image_px, by_timm.mean) == (512, 176, (0.485, 0.456, 0.406))


@pytest.mark.parametrize(
    ("function", "part"),
    [
        ("undescribed", "give mean and std"),
        ("misspelt", "described stdev; allowed: mean, std"),
        ("two_channels", "three numbers are expected"),
        ("zero_std", "std"),
        ("tokens", "a tensor (B, dim) is expected"),
        ("one_channel", "takes images of 1 channels, and views have 3 (RGB)"),
        ("blind", "takes images of 1 channels, and views have 3 (RGB)"),
        ("Choice", "returned Choice"),
        ("needs", "needs arguments"),
        ("absent", "has no function 'absent'"),
    ],
)
def test_function_that_breaks_the_contract(user: str, function: str, part: str) -> None:
    assert part in refusal(f"{user}:{function}")


def test_a_function_may_make_other_channels_of_rgb(user: str) -> None:
    assert load_encoder(f"{user}:grey")(make_views(2, 64)).shape == (2, 7)


@pytest.mark.slow
def test_a_users_module_may_import_timm_first(tmp_path: Path) -> None:
    """Beside a CPU-only torch, torchvision does not import by itself: `pipeline.encoders.torchvision_cpu`."""
    (tmp_path / "mine.py").write_text(f"import timm\n{USER_MODULE}")
    run = f"from pipeline.encoders.load import load_encoder; load_encoder({str(tmp_path / 'mine.py:by_dict')!r})"
    done = subprocess.run([sys.executable, "-c", run], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_function_that_returns_another_length_than_it_declared(user: str) -> None:
    with pytest.raises(EncoderError, match="returned 2x5 for 2 views; 2x6 expected"):
        load_encoder(f"{user}:wrong_dim")(make_views(2, 64))


def test_a_library_that_the_users_module_lacks_is_the_users_traceback(user: str) -> None:
    with pytest.raises(ModuleNotFoundError, match="a_library_that_is_not_installed"):
        load_encoder("my_broken:make")


def test_function_is_seeded_and_filled(user: str, tmp_path: Path) -> None:
    spec = f"{user}:by_dict"
    first, again = (weights_sha256(load_encoder(spec, random_weights=3)) for _ in range(2))
    assert first == again
    torch.save(load_encoder(spec, random_weights=3).backbone.state_dict(), tmp_path / "colour.pth")
    assert weights_sha256(load_encoder(spec, weights=tmp_path / "colour.pth")) == first
    torch.save({"project.weight": torch.zeros(5, 3)}, tmp_path / "half.pth")
    assert "1 missing (project.bias)" in refusal(spec, weights=tmp_path / "half.pth")


def test_a_preset_can_be_described_in_five_lines() -> None:
    preset = Preset(name="mine", dim=3, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), image_px=8)
    encoder = Encoder(preset, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    assert encoder(make_views(2, 8)).shape == (2, 3)
