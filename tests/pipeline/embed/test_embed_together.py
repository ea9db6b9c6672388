"""Several encoders that see the same patches: read once, and each folder is that of a run of its own."""

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import pipeline as g2l_api
from pipeline.embed import embed as embedding
from pipeline.slides.openslide_reader import OpenSlidePatches
from stores.errors import OptionError
from stores.format import manifest
from stores.io.location import LOGS
from tests.tools.commands import g2l, one_error

pytestmark = pytest.mark.slow

ONE: dict[str, Any] = {"encoder": "tests.tools.tiny:teacher"}
OTHER: dict[str, Any] = {"encoder": "tests.tools.tiny:student", "format": "trident-h5", "batch_size": 7}
FOR_ALL: dict[str, Any] = {"random_weights": 0, "threads": 2, "max_patches": 6}


def files_of(out: Path) -> dict[str, str]:
    """The digest of each file; logs say what a run did."""
    return {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.rglob("*"))
        if path.is_file() and LOGS not in path.relative_to(out).parts
    }


@pytest.fixture(scope="module")
def alone(slides: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two slides embedded by each encoder alone. Read only."""
    folder = tmp_path_factory.mktemp("alone")
    inputs = [slides / "a.tiff", slides / "b.tiff"]
    g2l_api.embed(inputs, folder / "a", **ONE, **FOR_ALL)
    g2l_api.embed(inputs, folder / "b", **OTHER, **FOR_ALL)
    return folder / "a", folder / "b"


def test_each_patch_is_read_once_and_each_folder_is_that_of_a_run_of_its_own(
    slides: Path, alone: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: Counter[Any] = Counter()
    true_read = OpenSlidePatches.read

    def counted(self: OpenSlidePatches, x_px0: int, y_px0: int) -> Any:
        read[id(self), x_px0, y_px0] += 1
        return true_read(self, x_px0, y_px0)

    monkeypatch.setattr(OpenSlidePatches, "read", counted)
    tiled: list[Path] = []
    true_tile = embedding.tile_on

    def noted(*arguments: Any, **named: Any) -> Any:
        tiled.append(next(arguments[2].glob("*"), arguments[2]))
        return true_tile(*arguments, **named)

    monkeypatch.setattr(embedding, "tile_on", noted)
    inputs = [slides / "a.tiff", slides / "b.tiff"]
    a, b = tmp_path / "a", tmp_path / "b"
    result = g2l_api.embed(inputs, {a: ONE, b: OTHER}, **FOR_ALL)
    assert sum(read.values()) == result.read == result.outs[0].views == result.outs[1].views == 12
    assert [out.published for out in result.outs] == [2, 2]
    assert tiled[0] == a / "tiling"  # new
    assert tiled[1] != b / "tiling"  # its tiling was taken over
    assert files_of(a) == files_of(alone[0])
    assert files_of(b) == files_of(alone[1])
    assert "of 2 encoders" in "\n".join(result.lines())
    again = g2l_api.embed(inputs, {a: ONE, b: OTHER}, **FOR_ALL)
    assert (again.read, again.outs[1].views_before) == (0, result.read)


def test_a_folder_that_lags_behind_is_brought_up(
    slides: Path, alone: tuple[Path, Path], tmp_path: Path
) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    g2l_api.embed([slides / "a.tiff"], b, **OTHER, **FOR_ALL)
    inputs = [slides / "a.tiff", slides / "b.tiff"]
    result = g2l_api.embed(inputs, {a: ONE, b: OTHER}, **FOR_ALL)
    assert result.read == result.outs[0].views > result.outs[1].views > 0
    for out, other in ((a, alone[0]), (b, alone[1])):
        mine, theirs = files_of(out / "embeddings"), files_of(other / "embeddings")
        assert mine == theirs


def test_what_does_not_go_together(slides: Path, alone: tuple[Path, Path], tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    small = {"encoder": "tests.tools.tiny:student_of_64_px"}
    with pytest.raises(OptionError, match=r"takes views of 64 px, and tests.tools.tiny:teacher of 224"):
        g2l_api.embed([slides / "a.tiff"], {a: ONE, b: small}, **FOR_ALL)
    with pytest.raises(OptionError, match="fit holds for all encoders"):
        g2l_api.embed([slides], {a: ONE, b: {**OTHER, "fit": "crop"}}, **FOR_ALL)
    assert not (a / "embed.json").exists()
    g2l_api.embed([slides / "a.tiff"], b, **OTHER, **FOR_ALL)
    (b / "done/a.json").unlink()
    patches = manifest.read_patches(b / "tiling", "a")
    x, y, tissue = patches.x_px0[::-1], patches.y_px0[::-1], patches.tissue[::-1]
    manifest.write_patches(b / "tiling", "a", x, y, tissue)  # tiled by an older version, say
    with pytest.raises(OptionError, match="slide a has other patches there than in"):
        g2l_api.embed([slides / "a.tiff"], {a: ONE, b: OTHER}, **FOR_ALL)


def test_the_command_pairs_encoders_with_folders(slides: Path, tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    both = ("--encoder", ONE["encoder"], "--out", a, "--encoder", OTHER["encoder"], "--out", b)
    result = g2l(
        "embed", slides / "a.tiff", *both, "--random-weights", "0", "--for", "b:format=clam", "--json"
    )
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert [out["dim"] for out in said["outs"]] == [24, 12]
    assert (a / "embeddings/a.parquet").exists()
    assert (b / "embeddings/pt_files/a.pt").exists()


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (("--encoder", "x"), "2 encoders for 1 out; give an --out for each --encoder"),
        (("--for", "a:format=clam"), "there is one encoder; give the option itself"),
        (("--encoder", "x", "--out", "./a"), "given twice; each encoder has a folder of its own"),
        (("--encoder", "x", "--out", "a/b"), "lies in a, a folder too"),
        (("--encoder", "x", "--out", "b", "--for", "c:format=clam"), "begins with no out of this command"),
        (("--encoder", "x", "--out", "b", "--for", "b:fit=crop"), "fit is no option of one encoder"),
        (("--encoder", "x", "--out", "b", "--format", "eva", "--format", "clam"), "--for OUT:format=VALUE"),
    ],
)
def test_mistakes_of_the_command_are_one_line(
    slides: Path, tmp_path: Path, arguments: tuple[str, ...], match: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    one_error(g2l("embed", slides, "--encoder", ONE["encoder"], "--out", "a", *arguments), match)
    assert not any(tmp_path.iterdir())
