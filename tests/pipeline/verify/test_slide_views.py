"""``store verify`` with slides and teacher, and ``--repair``: honest stores pass, others are told and mended."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.extract.extract import extract
from pipeline.extract.options import ExtractOptions
from pipeline.runtime.progress import Silent
from pipeline.tile.options import TileOptions
from pipeline.verify import repair as repair_module
from pipeline.verify.options import VerifyOptions
from pipeline.verify.tolerance import allowed
from stores.errors import OptionError, RecipeMismatch, StoreError
from stores.format import arrays, features, layout, manifest, pixels, recipe
from stores.format.chunks import read_chunk
from stores.format.index import drop_index
from tests.tools.settings import TEACHER
from tests.tools.verify import SAME_TEACHER, edit_commit, look, names_of, structure, with_column


def test_views_and_features_agree(store: Path, slides: Path) -> None:
    result = look(store, replace(SAME_TEACHER, slides=(slides,), sample="all"))
    assert result.findings == []
    assert result.views_checked == result.features_checked == result.structure.views
    assert result.cosine_min is not None
    assert result.cosine_min > 0.99999
    sampled = look(store, VerifyOptions(views=True, sample=4, threads=2))
    assert sampled.findings == []
    assert 3 * 3 * 3 <= sampled.views_checked <= 3 * 3 * 5
    assert sampled.features_checked == 0


def test_a_dishonest_manifest_is_noticed(store: Path, tmp_path: Path) -> None:
    """Checksums in order, values not: what only a second look at the pixels tells."""
    path = Path(shutil.copytree(store, tmp_path / "s"))
    edit_commit(path, "a", with_column("view_crc32", lambda v: [5, *v[1:]]))
    edit_commit(path, "b", with_column("hflip", lambda v: [not x for x in v]))
    assert structure(path) == []
    text = "\n".join(str(f) for f in look(path, VerifyOptions(views=True, sample="all", threads=2)).findings)
    assert "slide a seed 0 rows 0: 1 of" in text
    assert "another view than the teacher saw" in text
    assert "slide b seed 1" in text
    assert "the parameters are not those that the seed draws" in text


@pytest.mark.slow
def test_other_pixels_than_the_slide_has(store: Path, slides: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(store, tmp_path / "s"))
    patches = pixels.open_pixels(path, "a").read_chunk(0).copy()
    patches[2, 0, 0] ^= 1
    pixels.write_rows(path, "a", 0, patches)
    (found,) = look(path, VerifyOptions(slides=(slides,), sample="all", threads=2)).findings
    assert "slide a seed 0 rows 2: 1 of" in str(found)
    assert "the stored pixels are not the slide's" in str(found)


def test_a_chunk_of_pixels_that_cannot_be_read(store: Path, slides: Path, tmp_path: Path) -> None:
    """Compared with the slide it ended the command; now it is a finding like others, and is mended."""
    path = Path(shutil.copytree(store, tmp_path / "s"))
    chunk = path / "pixels.zarr/a/c/0/0/0/0"
    whole = chunk.read_bytes()
    chunk.write_bytes(b"?")
    (found,) = look(path, VerifyOptions(slides=(slides,), threads=2)).findings
    assert (found.kind, found.slide_id) == ("pixels", "a")
    assert look(path, replace(SAME_TEACHER, slides=(slides,), repair=True)).findings == []
    assert chunk.read_bytes() == whole


@pytest.mark.slow
def test_features_of_another_teacher(store: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeMismatch, match="its weights_sha256 is"):
        look(store, replace(SAME_TEACHER, random_weights=1))
    path = Path(shutil.copytree(store, tmp_path / "s"))
    values = features.open_features(path, "c").read_block(2, 0).copy()
    values[1] = values[1][::-1]
    features.write_block(path, "c", 2, 0, values)
    drop_index(path)
    (found,) = look(path, replace(SAME_TEACHER, sample="all")).findings
    assert (
        "slide c seed 2 rows 1: 1 features are not the teacher's: the worst is row 1, relative error"
        in str(found)
    )


def test_statistics_that_are_not_those_of_the_features(store: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(store, tmp_path / "s"))
    features.write_stats(path, "a", 1, 0, features.open_features(path, "a").read_block(0, 0))
    (found,) = look(path, VerifyOptions(views=True, threads=2)).findings
    assert "slide a seed 1" in str(found)
    assert "not the mean and variance of the features" in str(found)


def test_another_slide_file_under_the_name(store: Path, slides: Path, tmp_path: Path) -> None:
    shutil.copy(slides / "b.tiff", tmp_path / "a.tiff")
    found = look(store, VerifyOptions(slides=(tmp_path,), threads=2)).findings
    assert any("another file than the one that was tiled" in str(f) for f in found)


def damage(store: Path) -> list[str]:
    """One fault of each kind; returns the files."""
    flip = store / "features.zarr/a/features/c/2/0/0"
    flip.write_bytes(b"\x01" + flip.read_bytes()[1:])
    removed = [
        "features.zarr/b/features/c/0/0/0",
        "features.zarr/b/stats/c/1/0/0/0",
        "features.zarr/c/coords/c/0/0",
        "features.zarr/c/features/zarr.json",
        "features.zarr/zarr.json",
        "manifest/views/c/00000-s0000-0002.parquet",
        "manifest/patches/a.parquet",
        "pixels.zarr/a/c/0/0/0/0",
        "pixels.zarr/b/zarr.json",
    ]
    for name in removed:
        (store / name).unlink()
    return ["features.zarr/a/features/c/2/0/0", *removed]


@pytest.mark.slow
def test_repair_restores_the_same_bytes(store: Path, slides: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(store, tmp_path / "s"))
    broken = damage(path)
    before = {name: (path / name).stat().st_mtime_ns for name in names_of(path) if name not in broken}
    result = look(path, replace(SAME_TEACHER, slides=(slides,), repair=True))
    assert result.findings == []
    assert {text.split()[1].rstrip(":") for text in result.repaired if text.startswith("slide")} == {
        "a",
        "b",
        "c",
    }
    assert "slide b block 0: statistics of seed 1 computed again" in result.repaired
    assert names_of(path) == names_of(store)
    changed = [n for n in names_of(store) if (path / n).read_bytes() != (store / n).read_bytes()]
    assert changed == []
    touched = {name for name, time in before.items() if (path / name).stat().st_mtime_ns != time}
    beside = ("stats/c/", "features.zarr/c/", "pixels.zarr/c/", "pixels.zarr/a/c/")  # of the same block
    touched.remove(layout.INDEX)
    assert all(any(part in name for part in beside) for name in touched), touched


def test_a_killed_repair_leaves_no_index_of_before(
    store: Path, slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(shutil.copytree(store, tmp_path / "s"))
    (path / "features.zarr/b/stats/c/1/0/0/0").unlink()

    def killed(*arguments: Any) -> None:
        assert not (path / layout.INDEX).exists()
        raise KeyboardInterrupt

    monkeypatch.setattr(repair_module, "_repair", killed)
    with pytest.raises(KeyboardInterrupt):
        look(path, replace(SAME_TEACHER, slides=(slides,), repair=True))


@pytest.mark.slow
def test_repair_mends_a_dishonest_record_too(store: Path, slides: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(store, tmp_path / "s"))
    name = edit_commit(path, "a", with_column("view_crc32", lambda v: [5, *v[1:]]))
    result = look(path, replace(SAME_TEACHER, slides=(slides,), repair=True, sample="all"))
    assert result.findings == []
    assert (path / name).read_bytes() == (store / name).read_bytes()


def test_what_cannot_be_repaired_says_so(store: Path, slides: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(store, tmp_path / "s"))
    options = replace(SAME_TEACHER, slides=(slides,), repair=True)
    with pytest.raises(OptionError, match="--repair: needs --slides and --teacher"):
        look(path, replace(options, slides=()))
    (path / "features.zarr/b/features/c/0/0/0").unlink()
    with pytest.raises(OptionError, match="no file of slide b"):
        look(path, replace(options, slides=(slides / "a.tiff",)))
    (path / "recipe.json").write_text("{}")
    with pytest.raises(
        StoreError, match=r"recipe.json: .* cannot be computed again; restore this file from a copy"
    ):
        look(path, options)


@pytest.mark.slow
def test_extraction_fills_a_gap_among_the_seeds(
    store: Path, slides: Path, tile_options: TileOptions, tmp_path: Path
) -> None:
    """A record of the first seeds that was lost is noticed although later seeds are there."""
    path = tmp_path / "s"
    options = ExtractOptions(teacher="tests.tools.tiny:teacher", random_weights=0, seeds=1, threads=2)
    extract([slides], path, options, tile_options, Silent())
    extract([slides], path, replace(options, seeds=3), tile_options, Silent())
    whole = manifest.commit_path(path, "a", 0, range(0, 1))
    before = whole.read_bytes()
    whole.unlink()
    assert any(f.kind == "missing" and f.slide_id == "a" for f in structure(path))
    extract([slides], path, replace(options, seeds=3), tile_options, Silent())
    assert whole.read_bytes() == before
    assert structure(path) == []


def test_arrays_that_were_begun_and_not_finished(
    slides: Path, store: Path, tile_options: TileOptions, tmp_path: Path
) -> None:
    """A kill while a slide's arrays are being made leaves some of them; the next run makes them again."""
    path = Path(shutil.copytree(store, tmp_path / "s"))
    shutil.rmtree(path / "features.zarr/b/features")
    shutil.rmtree(path / "manifest/views/b")
    assert any(f.slide_id == "b" for f in structure(path))
    extract([slides], path, TEACHER, tile_options, Silent())
    assert structure(path) == []


def test_a_chunk_decoder_of_its_own_agrees_with_zarr(store: Path) -> None:
    for name in ("features.zarr/a/features", "pixels.zarr/a"):
        spec = arrays.read_metadata(store, name)
        index = (0,) * len(spec.shape)
        chunk = read_chunk(store, name, spec, index)
        assert chunk is not None
        array = arrays.open_checked(store, name, len(spec.shape), str(spec.dtype))
        rows = spec.shape[-2] if name.endswith("features") else spec.shape[0]
        expected = array[:1, :rows] if name.endswith("features") else array[: spec.chunks[0]]
        got = chunk[:, :rows] if name.endswith("features") else chunk[:rows]
        np.testing.assert_array_equal(got, expected)
    assert json.loads((store / "features.zarr/a/features/zarr.json").read_text())["fill_value"] == "NaN"


@pytest.mark.parametrize("factor", [0.05, 0.97, 1.01, 20.0])
def test_features_that_are_scaled_are_not_the_teachers(store: Path, tmp_path: Path, factor: float) -> None:
    """The direction of a feature does not change: its cosine is 1."""
    path = Path(shutil.copytree(store, tmp_path / "s"))
    values = features.open_features(path, "c").read_block(1, 0).copy()
    values[1] *= np.float16(factor)
    features.write_block(path, "c", 1, 0, values)
    (path / "manifest/index.parquet").unlink()  # it knows the file's size
    (found,) = look(path, replace(SAME_TEACHER, sample="all")).findings
    assert "slide c seed 1 rows 1: 1 features are not the teacher's: the worst is row 1, relative" in str(
        found
    )
    assert re.search(r"relative error [\d.]+ \(allowed 0.005\), cosine (1.0|0.9999)", str(found))
    assert look(path, replace(SAME_TEACHER, sample="all", max_relative_error=30.0)).findings == []


def test_a_single_value_that_was_changed_is_noticed(store: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(store, tmp_path / "s"))
    values = features.open_features(path, "c").read_block(1, 0).copy()
    values[2, 5] += np.float16(0.02) * np.abs(values[2]).max()
    features.write_block(path, "c", 1, 0, values)
    (path / "manifest/index.parquet").unlink()  # it knows the file's size
    (found,) = look(path, replace(SAME_TEACHER, sample="all")).findings
    assert "slide c seed 1 rows 2" in str(found)


def test_what_an_arithmetic_may_differ(store: Path) -> None:
    stored = recipe.load_complete(store)
    of_bfloat16 = replace(stored, teacher=replace(stored.teacher, dtype="bfloat16"))
    assert allowed(stored, "float32") < allowed(stored, "float16") < allowed(of_bfloat16, "float32")
    compact = replace(stored, compact={"kind": "int8", "max_relative_error": 0.03})
    assert allowed(compact, "float32") == pytest.approx(allowed(stored, "float32") + 0.06)
    claimed = replace(stored, compact={"kind": "int8", "max_relative_error": 1e9})
    assert allowed(claimed, "float32") < 0.25
