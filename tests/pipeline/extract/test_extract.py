"""Stage one: what is written, restarts after kills, one recipe, bad reads, limits, reproducible bytes."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.encoders.load import load_encoder
from pipeline.extract import extract as stage
from pipeline.extract.options import ExtractOptions
from pipeline.extract.teacher import collect
from pipeline.runtime.progress import Silent
from pipeline.slides.openslide_reader import OpenSlidePatches
from pipeline.slides.registry import inspect
from pipeline.slides.slide import plan_read
from pipeline.tile.options import TileOptions
from pipeline.verify.options import VerifyOptions
from pipeline.views import draw
from pipeline.views.policy import POLICIES
from pipeline.views.render import render, view_crc32
from stores.errors import FeatureError, OptionError, ReadError, RecipeMismatch, StoreError
from stores.format import features, manifest, pixels, recipe
from stores.info import store_info
from tests.tools.extract import contents
from tests.tools.kill import extract_job, kill_at_random
from tests.tools.settings import TEACHER
from tests.tools.verify import look, structure


def test_every_view_is_committed_with_a_finite_feature(store: Path) -> None:
    info = store_info(store)
    assert info["complete"] == 1.0
    assert info["seeds"] == [0, 1, 2]
    assert info["views"] == 3 * info["patches"]
    assert info["bad_reads"] == 0
    for row in manifest.read_slides(store):
        slide = features.open_features(store, row["slide_id"])
        assert (slide.n_seeds, slide.n_rows, slide.dim) == (3, row["n_patches"], 24)
        values = [slide.read_block(seed, 0) for seed in range(3)]
        assert all(np.isfinite(v).all() for v in values)
        assert not np.array_equal(values[0], values[1])


def test_a_stored_feature_is_the_teachers_of_the_view(
    store: Path, slides: Path, request: pytest.FixtureRequest
) -> None:
    """Computed again from the slide, without any code of stage one or two."""
    teacher = load_encoder("tests.tools.tiny:teacher", random_weights=0)
    policy = POLICIES["g2l"]
    row = manifest.read_slides(store)[0]
    info = inspect("a", slides / "a.tiff")
    reader = OpenSlidePatches(slides / "a.tiff", plan_read(info, 0.5, 256))
    request.addfinalizer(reader.close)
    (commit,) = manifest.commits(store, "a")
    kept = pixels.open_pixels(store, "a").read_chunk(0)
    for record in commit.read().to_pylist()[:: max(1, row["n_patches"] // 3)]:
        patch = reader.read(record["x_px0"], record["y_px0"])
        if record["row"] < 32:
            np.testing.assert_array_equal(kept[record["row"]], patch)
        params = draw.draw(policy, row["fingerprint"], record["x_px0"], record["y_px0"], record["seed"])
        assert {name: getattr(params, name) for name in manifest.DRAWN_SCHEMA.names}.items() <= record.items()
        view = render(patch, params, policy)
        assert view_crc32(view) == record["view_crc32"]
        with torch.inference_mode():
            expected = teacher(torch.from_numpy(view)[None])[0].numpy()
        stored = features.open_features(store, "a").read_block(record["seed"], 0)[record["row"]]
        np.testing.assert_allclose(stored, expected, rtol=2e-3, atol=1e-4)


@pytest.mark.slow
def test_bytes_do_not_depend_on_threads(
    store: Path, slides: Path, tile_options: TileOptions, tmp_path: Path
) -> None:
    stage.extract([slides], tmp_path / "s", replace(TEACHER, threads=1), tile_options, Silent())
    assert contents(tmp_path / "s") == contents(store)


def test_again_does_nothing(store: Path, slides: Path, tile_options: TileOptions) -> None:
    before = contents(store)
    result = stage.extract([slides], store, TEACHER, tile_options, Silent())
    assert result.views == 0
    assert result.views_before == store_info(store)["views"]
    assert contents(store) == before


@pytest.mark.slow
def test_limit_then_the_rest(store: Path, slides: Path, tile_options: TileOptions, tmp_path: Path) -> None:
    path = tmp_path / "s"
    few = stage.extract([slides], path, replace(TEACHER, limit=5), tile_options, Silent())
    assert few.views == 15
    assert store_info(path)["views"] == 15
    block = features.open_features(path, "a").read_block(0, 0)
    assert np.isfinite(block[:5]).all()
    assert np.isnan(block[5:]).all()
    stage.extract([slides], path, TEACHER, tile_options, Silent())
    assert contents(path) == contents(store)


def test_more_seeds_are_added(store: Path, slides: Path, tile_options: TileOptions, tmp_path: Path) -> None:
    path = Path(shutil.copytree(store, tmp_path / "s"))
    result = stage.extract([slides], path, replace(TEACHER, seeds=5), tile_options, Silent())
    info = store_info(path)
    assert info["seeds"] == [0, 1, 2, 3, 4]
    assert info["complete"] == 1.0
    assert result.views == 2 * info["patches"]
    old, new = contents(store), contents(path)
    changed = {name for name in old if new[name] != old[name]}
    changed.discard("manifest/index.parquet")
    assert all(name.endswith("zarr.json") for name in changed)  # the shapes alone


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"random_weights": 1}, r"recipe\.teacher\.weights_sha256: .* has '.*', this run has '"),
        ({"policy": "none"}, r"recipe\.policy\."),
        ({"dtype": "bfloat16"}, r"recipe\.teacher\.dtype: .* 'float32', this run has 'bfloat16'"),
    ],
)
def test_a_store_has_one_recipe(
    store: Path, slides: Path, tile_options: TileOptions, change: dict[str, Any], match: str
) -> None:
    before = contents(store)
    with pytest.raises(RecipeMismatch, match=match):
        stage.extract([slides], store, replace(TEACHER, **change), tile_options, Silent())
    assert contents(store) == before


def test_pixels_cannot_come_later(slides: Path, tile_options: TileOptions, tmp_path: Path) -> None:
    stage.extract([slides], tmp_path, replace(TEACHER, pixels=False, limit=2), tile_options, Silent())
    with pytest.raises(OptionError, match=r"--pixels: .* was begun without it; leave it out"):
        stage.extract([slides], tmp_path, TEACHER, tile_options, Silent())


def test_policy_must_fit_patch_and_teacher(slides: Path, tile_options: TileOptions, tmp_path: Path) -> None:
    policy = tmp_path / "p.yaml"
    policy.write_text("crop_px: 128\n")
    with pytest.raises(OptionError, match=r"views of 128 px, but tests\.tools\.tiny:teacher takes 224 px"):
        stage.extract([slides], tmp_path / "s", replace(TEACHER, policy=str(policy)), tile_options, Silent())
    policy.write_text("hflip_p: 0.5\n")
    other = replace(TEACHER, policy=str(policy))
    with pytest.raises(OptionError, match="for patches of 256 px, not 300"):
        stage.extract([slides], tmp_path / "s", other, replace(tile_options, patch=300), Silent())
    with pytest.raises(
        OptionError, match=r"patches of 96 px, but tests\.tools\.tiny:teacher takes 224 px: .*--pad"
    ):
        stage.extract([slides], tmp_path / "s", TEACHER, replace(tile_options, patch=96), Silent())


@pytest.mark.slow
def test_a_bad_read_is_a_status_not_white_pixels(
    slides: Path, tile_options: TileOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true_read = OpenSlidePatches.read
    bad = (512, 512)

    def read(self: OpenSlidePatches, x_px0: int, y_px0: int) -> Any:
        if (x_px0, y_px0) == bad:
            raise ReadError("a.tiff at 512,512: corrupt tile")
        return true_read(self, x_px0, y_px0)

    monkeypatch.setattr(OpenSlidePatches, "read", read)
    result = stage.extract([slides / "a.tiff"], tmp_path, TEACHER, tile_options, Silent())
    (text,) = result.bad_reads
    assert "corrupt tile" in text
    (commit,) = manifest.commits(tmp_path)
    records = commit.read().to_pylist()
    marked = [r for r in records if r["status"] == manifest.BAD_READ]
    assert {(r["x_px0"], r["y_px0"]) for r in marked} == {bad}
    assert [r["seed"] for r in marked] == [0, 1, 2]
    assert all(r["view_crc32"] is None for r in marked)
    for seed in range(3):
        finite = np.isfinite(features.open_features(tmp_path, "a").read_block(seed, 0)).all(axis=1)
        assert np.flatnonzero(~finite).tolist() == [marked[0]["row"]]
    assert store_info(tmp_path)["bad_reads"] == 3
    again = stage.extract([slides / "a.tiff"], tmp_path, TEACHER, tile_options, Silent())
    assert len(again.bad_reads) == 1


@pytest.mark.slow
def test_a_changed_slide_file_is_reported_and_the_run_goes_on(
    slides: Path, tile_options: TileOptions, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(slides, tmp_path / "slides"))
    stage.extract([folder], tmp_path / "s", replace(TEACHER, limit=1), tile_options, Silent())
    shutil.copy(folder / "b.tiff", folder / "a.tiff")
    result = stage.extract([folder], tmp_path / "s", TEACHER, tile_options, Silent())
    assert list(result.failed_slides) == ["a"]
    assert "another file than the one that was tiled" in result.failed_slides["a"]
    assert {c.slide_id for c in manifest.commits(tmp_path / "s") if c.slide_id != "a"} == {"b", "c"}


def test_features_that_float16_cannot_hold_are_refused() -> None:
    for value in (70_000.0, float("nan"), float("inf")):
        with pytest.raises(FeatureError, match="stored as float16, at most 65504"):
            collect(torch.tensor([[1.0, value]]), torch.float16)
    assert collect(torch.tensor([[65504.0, -65504.0]]), torch.float32).tolist() == [[65504.0, -65504.0]]


@pytest.mark.parametrize(
    ("dtype", "advice"),
    [
        (torch.float32, "check its weights .* computed in float32 already"),
        (torch.bfloat16, "try --dtype float32"),
    ],
)
def test_another_arithmetic_is_advised_where_there_is_another(dtype: torch.dtype, advice: str) -> None:
    with pytest.raises(FeatureError, match=advice):
        collect(torch.tensor([[float("nan")]]), dtype)


@pytest.mark.slow
def test_a_cnn_takes_the_views_of_the_policy_whatever_its_usual_size(
    slides: Path, tile_options: TileOptions, tmp_path: Path
) -> None:
    """timm's default for it is 176 px, which is no limit."""
    options = replace(TEACHER, teacher="resnet10t", seeds=1, limit=1, pixels=True)
    stage.extract([slides], tmp_path, options, tile_options, Silent())
    stored = recipe.load_complete(tmp_path)
    assert (stored.teacher.image_px, stored.teacher.dim) == (224, 512)
    (commit,) = manifest.commits(tmp_path)
    patch = pixels.open_pixels(tmp_path, commit.slide_id).read_chunk(0)[commit.read().to_pylist()[0]["row"]]
    teacher = load_encoder("resnet10t", random_weights=0)
    with torch.inference_mode():
        expected = teacher(torch.from_numpy(patch[16:-16, 16:-16][None].copy()))[0].numpy()
    row = features.open_features(tmp_path, commit.slide_id).read_block(0, 0)[0]
    np.testing.assert_allclose(row, expected, rtol=2e-3, atol=1e-4)
    seen = look(tmp_path, VerifyOptions(slides=(slides,), teacher="resnet10t", random_weights=0, threads=1))
    assert not [finding for finding in seen.findings if "teacher" in str(finding)]


def test_lost_metadata_do_not_cost_committed_chunks(
    store: Path, slides: Path, tile_options: TileOptions, tmp_path: Path
) -> None:
    path = Path(shutil.copytree(store, tmp_path / "s"))
    (path / "features.zarr/a/features/zarr.json").unlink()
    stage.extract([slides], path, replace(TEACHER, seeds=4), tile_options, Silent())
    old, new = contents(store), contents(path)
    changed = {name for name in old if new[name] != old[name] and not name.endswith("zarr.json")}
    assert changed <= {"manifest/index.parquet"}
    assert structure(path) == []


@pytest.mark.parametrize("lost", ["recipe.json", "manifest/slides.parquet"])
def test_what_nothing_else_says_is_not_made_up(
    store: Path, slides: Path, tile_options: TileOptions, tmp_path: Path, lost: str
) -> None:
    """Another recipe beside the committed views would mix two kinds of features."""
    path = Path(shutil.copytree(store, tmp_path / "s"))
    (path / lost).unlink()
    before = contents(path)
    with pytest.raises(StoreError, match=f"{lost}: is missing, and the store has committed views"):
        stage.extract([slides], path, TEACHER, tile_options, Silent())
    assert contents(path) == before


@pytest.mark.kill
def test_killed_at_any_moment_and_started_again(
    store: Path, slides: Path, tile_options: TileOptions, tmp_path: Path
) -> None:
    """SIGKILL at up to 27 moments of three stores in the making; each ends as the store of an undisturbed run."""
    options = replace(TEACHER, batch_size=4)
    killed = 0
    for number, span_s in enumerate((0.03, 0.06, 0.12)):
        path = tmp_path / f"s{number}"

        def whole_so_far(path: Path = path) -> None:
            if manifest.slides_path(path).exists():
                committed = {commit.slide_id for commit in manifest.commits(path)}
                found = [f for f in structure(path, partial=True) if f.slide_id in committed]
                assert [str(f) for f in found if f.kind != "missing"] == []

        args = (slides, path, options, tile_options)
        killed += kill_at_random(extract_job, args, 9, number, path, span_s, whole_so_far)
        stage.extract([slides], path, options, tile_options, Silent())
        assert contents(path) == contents(store)
        assert not list(path.rglob("*.partial"))
    assert killed >= 20


def test_options_without_a_teacher() -> None:
    with pytest.raises(OptionError, match=r"--teacher \(missing\)"):
        ExtractOptions().validate()
    assert recipe.SCHEMA_VERSION == 1
