"""``plan``: says before what a store holds after."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

import cli
from pipeline.extract import plan
from pipeline.extract.extract import extract
from pipeline.extract.options import ExtractOptions, PlanOptions
from pipeline.runtime.progress import Silent
from pipeline.tile.options import TileOptions
from stores.errors import OptionError
from stores.format import layout, manifest
from stores.remote import transfer
from stores.remote.objects import Objects

OPTIONS = PlanOptions(seeds=3, dim=24, pixels=True)


def bytes_of(store: Path, folder: str) -> dict[str, int]:
    return {name: size for name, size in layout.list_files(store).items() if name.startswith(folder)}


@pytest.mark.slow
@pytest.mark.parametrize("max_patches", [None, 20])
@pytest.mark.parametrize("pixels", [True, False])
def test_it_comes_out_as_planned(slides: Path, tmp_path: Path, max_patches: int | None, pixels: bool) -> None:
    tiling = TileOptions(slides_csv=slides / "slides.csv", max_patches=max_patches)
    planned = plan.plan([slides], replace(OPTIONS, pixels=pixels), tiling, Silent())
    store = tmp_path / "s"
    extract(
        [slides],
        store,
        ExtractOptions(
            teacher="tests.tools.tiny:teacher", seeds=3, random_weights=0, pixels=pixels, threads=2
        ),
        tiling,
        Silent(),
    )
    rows = manifest.read_slides(store)
    assert {s.slide_id: s.patches for s in planned.slides} == {
        row["slide_id"]: row["n_patches"] for row in rows
    }
    assert {s.slide_id: s.split for s in planned.slides} == {row["slide_id"]: row["split"] for row in rows}
    assert planned.views == manifest.count_views(store)["views"].to_numpy().sum()
    files = layout.list_files(store)
    counted = [
        n
        for n in files
        if not n.startswith("options/") and n not in ("recipe.json", "manifest/slides.parquet")
    ]
    assert planned.files == len(counted)
    chunks = sum(size for name, size in bytes_of(store, "features.zarr").items() if "zarr.json" not in name)
    assert planned.feature_bytes(24) == chunks
    if pixels:
        kept = sum(bytes_of(store, "pixels.zarr").values())
        assert 0.5 < planned.pixel_bytes / kept < 2  # synthetic tissue compresses better than slides do
    again = plan.plan(store, replace(OPTIONS, pixels=pixels), TileOptions(), Silent())
    assert again == planned


def test_a_store_behind_a_url(store: Path) -> None:
    transfer.push(store, Objects("memory://plan/store"))
    done = CliRunner().invoke(
        cli.g2l, ["plan", "memory://plan/store", "--dim", "24", "--seeds", "3", "--json"]
    )
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["views"] == manifest.count_views(store)["views"].to_numpy().sum()


def test_larger_slides_than_a_block() -> None:
    slide = plan.SlidePlan("a", 1025, "train", "p")
    planned = plan.Plan([slide], {}, 4, 1536, None, 40.0, "as given")
    assert planned.feature_bytes(1536) == 4 * 2 * (544 * 1536 * 2 + 4 + 2 * 1536 * 8 + 4) + 1025 * 8 + 4
    assert planned.files == 2 + 7 + 2 * (2 * 4 + 1)
    assert planned.hours == pytest.approx(4100 / 40 / 3600)


def test_nothing_is_written(slides: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in slides.rglob("*")}
    plan.plan([slides], OPTIONS, TileOptions(), Silent())
    assert {path: path.stat().st_mtime_ns for path in slides.rglob("*")} == before


def test_speed_is_given_or_measured_or_asked_for(slides: Path) -> None:
    given = plan.plan([slides], replace(OPTIONS, views_per_s=10.0), TileOptions(), Silent())
    assert given.hours == pytest.approx(given.views / 36_000)
    measured = plan.plan(
        [slides],
        PlanOptions(
            teacher="tests.tools.tiny:teacher", random_weights=0, measure=True, device="cpu", batch_size=4
        ),
        TileOptions(),
        Silent(),
    )
    assert measured.dim == 24
    assert measured.views_per_s is not None
    assert measured.views_per_s > 0
    assert measured.speed_source == "measured here: cpu, float32, batch 4"
    unknown = plan.plan([slides], OPTIONS, TileOptions(), Silent())
    assert unknown.hours is None
    assert any("time      unknown: give the teacher's speed" in line for line in unknown.lines())


def test_known_teachers_need_no_weights(slides: Path) -> None:
    planned = plan.plan([slides], PlanOptions(teacher="h-optimus-0"), TileOptions(), Silent())
    assert planned.dim == 1536
    with pytest.raises(
        OptionError, match=r"--teacher resnet50: its feature length is not known.* give --dim"
    ):
        plan.plan([slides], PlanOptions(teacher="resnet50"), TileOptions(), Silent())
    with pytest.raises(OptionError, match="--measure: needs --teacher"):
        plan.plan([slides], PlanOptions(measure=True), TileOptions(), Silent())


def test_the_command_names_what_cannot_be_used(slides: Path, tmp_path: Path) -> None:
    (tmp_path / "x.svs").write_bytes(b"no slide")
    arguments = ["plan", str(slides), str(tmp_path), "--teacher", "h-optimus-0", "--val", "0"]
    done = CliRunner().invoke(cli.g2l, [*arguments, "--json"])
    assert done.exit_code == 3
    found = json.loads(done.stdout)
    assert list(found["unusable"]) == ["x"]
    assert found["feature_bytes"] > found["views"] * 1536 * 2
    text = CliRunner().invoke(cli.g2l, arguments).stdout
    assert "no validation split" in text
    assert "1 slide could not be used" in text


@pytest.mark.slow
def test_real_slides(shared: Path) -> None:
    planned = plan.plan(
        [shared / "slides"], OPTIONS, TileOptions(slide_mpp=("TCGA-CR-7395-01A-01-TS1=0.5",)), Silent()
    )
    assert {slide.slide_id: slide.patches > 20 for slide in planned.slides} == {
        "CMU-1-Small-Region": True,
        "TCGA-CR-7395-01A-01-TS1": True,
    }
