"""`g2l push-student`: what arrives on the hub is the student, once; nothing is overwritten or sent unasked."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pipeline as g2l
from pipeline.encoders.encoder import Encoder
from pipeline.encoders.export import weights_sha256
from pipeline.encoders.load import load_encoder
from stores.errors import OptionError, StoreError
from stores.io.files import write_json
from tests.pipeline.export.test_export import ND, student
from tests.tools.commands import g2l as command
from tests.tools.commands import one_error
from tests.tools.deploy import COUNT, views_of, write_tiles
from tests.tools.encoders import SWIGLU
from tests.tools.hub_server import FakeHub, log_in, serving

# of the HTTP library, on what the hub's client does
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
TO = "hf:lab/student"


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiles(tmp_path_factory.mktemp("tiles") / "tiles")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run as `distill` leaves it, as far as an export looks at it."""
    folder = tmp_path_factory.mktemp("run")
    student(folder / "student", SWIGLU, pooling="cls+mean")
    write_json(
        folder / "summary.json", {"cka_before": 0.25, "cka_after": 0.875, "cosine_after": 0.5, "x": "<b>"}
    )
    return folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[FakeHub]]:
    with serving(tmp_path, monkeypatch) as server:
        log_in(monkeypatch)
        yield server


def push(encoder: Path, tiles: Path, to: str = TO, **options: Any) -> Any:
    return g2l.push_student(encoder, to, patches=[tiles], views=COUNT, **options)


def features(encoder: Encoder, tiles: Path) -> np.ndarray:
    with torch.inference_mode():
        return encoder(torch.from_numpy(views_of(tiles, encoder.image_px))).numpy()


def test_what_arrives_is_the_student(hub: type[FakeHub], run: Path, tiles: Path) -> None:
    done = push(run, tiles)
    assert done.agrees
    assert set(done.uploaded) >= {"README.md", "config.json", "export.json", "model.safetensors"}
    repo = hub.repos["models/lab/student"]
    assert repo.private
    assert [len(names) for names in repo.commits] == [len(done.uploaded)]
    assert len(hub.uploads) == 1  # the weights; the rest is small
    back = load_encoder("hf-hub:lab/student")
    assert weights_sha256(back) == weights_sha256(load_encoder(str(run / "student")))
    np.testing.assert_array_equal(features(back, tiles), features(load_encoder(str(run / "student")), tiles))
    card = repo.branches["main"]["README.md"].decode()
    for part in (
        "| linear CKA to the teacher | 0.2500 | 0.8750 |",
        "| cosine to the teacher's features, after the projector | - | 0.5000 |",
        f"SHA-256 `{hub.uploads[0]}`",
        "hf-hub:lab/student",
        "library_name: timm",
    ):
        assert part in card
    assert "OWNER/NAME" not in card


def test_the_code_of_the_card_runs_in_timm_and_transformers(
    hub: type[FakeHub], run: Path, tiles: Path
) -> None:
    """On the black views that it begins with, from the repository itself."""
    push(run, tiles, revision="v1")
    card = hub.repos["models/lab/student"].branches["v1"]["README.md"].decode()
    assert hub.repos["models/lab/student"].branches["main"].keys() == {".gitattributes"}
    names: dict[str, Any] = {}
    original = load_encoder(str(run / "student"))
    with torch.inference_mode():
        expected = original(
            torch.zeros(4, original.image_px, original.image_px, 3, dtype=torch.uint8)
        ).numpy()
    codes = re.findall(r"```python\n(.*?)```", card, re.S)
    assert len(codes) == 2
    for code in codes:
        exec(code, names)
        np.testing.assert_allclose(names.pop("features").numpy(), expected, atol=1e-5)


def test_pushing_again_sends_nothing(hub: type[FakeHub], run: Path, tiles: Path) -> None:
    push(run, tiles)
    before = len(hub.requests)
    again = push(run, tiles, public=True)
    assert again.uploaded == {}
    assert "nothing was uploaded, all of it is there" in again.lines()[1]
    assert again.private  # as it was made
    repo = hub.repos["models/lab/student"]
    assert (len(repo.commits), len(hub.uploads)) == (1, 1)
    assert not any("commit" in path for path in hub.requests[before:])


def test_another_content_is_not_overwritten(
    hub: type[FakeHub], run: Path, tiles: Path, tmp_path: Path
) -> None:
    push(run, tiles)
    repo = hub.repos["models/lab/student"]
    repo.branches["main"]["notes.txt"] = b"mine"
    before = dict(repo.branches["main"])
    other = student(tmp_path / "other")
    with pytest.raises(OptionError, match=r"hf:lab/student: holds something else: .* differs.*--replace"):
        push(other, tiles)
    assert repo.branches["main"] == before
    done = push(other, tiles, replace=True)
    assert done.others == ["notes.txt"]
    assert repo.branches["main"]["notes.txt"] == b"mine"
    assert weights_sha256(load_encoder("hf-hub:lab/student")) == weights_sha256(load_encoder(str(other)))
    hub.repos["models/lab/full"] = type(repo)(False)
    hub.repos["models/lab/full"].branches["main"]["pytorch_model.bin"] = b"x"
    with pytest.raises(OptionError, match=r"pytorch_model\.bin is not of this student"):
        push(other, tiles, "hf:lab/full")


def test_terms_that_forbid_it(hub: type[FakeHub], tiles: Path, tmp_path: Path) -> None:
    folder = student(tmp_path / "student", terms=(ND,))
    with pytest.raises(OptionError, match=r"may not be passed on .* --permission TEXT"):
        push(folder, tiles)
    assert not hub.repos
    push(folder, tiles, permission="agreement of 2026-03")
    there = hub.repos["models/lab/student"].branches["main"]
    assert "agreement of 2026-03" in there["README.md"].decode()
    assert json.loads(there["config.json"])["g2l"]["extra"]["permission"] == "agreement of 2026-03"
    assert load_encoder("hf-hub:lab/student").terms == (ND,)


def test_what_the_hub_refuses_is_one_line_without_the_token(
    hub: type[FakeHub], run: Path, tiles: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.refuse = staticmethod(lambda method, path: 403 if path.endswith("/commit/main") else 0)
    with pytest.raises(StoreError, match="hf:lab/student: you may not write there") as error:
        push(run, tiles)
    assert hub.token not in str(error.value)
    hub.refuse = staticmethod(lambda method, path: 0)
    push(run, tiles)  # the weights are there from before
    assert len(hub.uploads) == 1
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(StoreError, match="the hub does not know you; log in with `hf auth login`"):
        push(run, tiles, "hf:lab/another")


def test_on_the_command_line(hub: type[FakeHub], run: Path, tiles: Path) -> None:
    done = command("push-student", run, TO, "--patches", tiles, "--views", COUNT, "--public", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert (found["private"], found["repository"]) == (False, TO)
    assert hub.token not in done.output
    for name in ("lab/student", "hf:student", "hf:../x", "hf:lab/stu dent"):
        one_error(command("push-student", run, name, "--patches", tiles), "allowed is hf:OWNER/NAME")
    wrong = command("push-student", run, TO, "--patches", tiles, "--revision", "a b")
    one_error(wrong, "the name of a branch")
