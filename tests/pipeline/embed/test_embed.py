"""Embedding: values, formats as others read them, restarts after kills, faults, one identity a folder."""

import csv
import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pipeline.embed import parts
from pipeline.embed.block import TILING
from pipeline.embed.embed import IDENTITY, embed
from pipeline.embed.formats import parquet
from pipeline.embed.formats.base import Format, Parts, Unit
from pipeline.embed.options import EmbedOptions
from pipeline.embed.parts import feature_matrix
from pipeline.encoders.load import load_encoder
from pipeline.runtime.options import ClusterOptions
from pipeline.runtime.progress import Silent
from pipeline.slides.openslide_reader import OpenSlidePatches
from pipeline.slides.registry import inspect
from pipeline.slides.slide import plan_read
from pipeline.tile.options import TileOptions
from stores.errors import CorruptStore, OptionError, ReadError, RecipeMismatch
from stores.format import manifest
from stores.io.location import LOGS
from tests.tools.kill import embed_job, kill_at_random
from tests.tools.notes import Notes
from tests.tools.settings import VIT

pytestmark = pytest.mark.slow

TINY = EmbedOptions(encoder="tests.tools.tiny:teacher", random_weights=0, threads=2)


def contents(out: Path) -> dict[str, str]:
    """SHA-256 of every file but options, pictures and logs."""
    return {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.rglob("*"))
        if path.is_file() and not {"pictures", "options", LOGS} & set(path.relative_to(out).parts)
    }


@pytest.fixture(scope="module")
def embedded(slides: Path, tile_options: TileOptions, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The three slides, embedded into Parquet files. Read only."""
    out = tmp_path_factory.mktemp("embedded") / "out"
    result = embed([slides], out, TINY, tile_options, Silent())
    assert (result.published, result.failed_slides, result.bad_reads) == (3, {}, [])
    return out


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CSV of ten tiles of several sizes; the fourth cannot be read."""
    folder = tmp_path_factory.mktemp("tiles")
    rows = ["path,label,group,split"]
    rng = np.random.default_rng(0)
    for i in range(10):
        side = (224, 96, 300)[i % 3]
        PIL.Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8)).save(
            folder / f"t{i}_16_{i}_{9 - i}.png"
        )
        slide = ("GM_S60_to_GMH_S60.tif", "HR_AT2_to_GMH_S60.tif")[i % 2]
        rows.append(f"t{i}_16_{i}_{9 - i}.png,{'ab'[i // 5]},{slide},{'train' if i < 7 else 'val'}")
    (folder / "whole.csv").write_text("\n".join([rows[0], *rows[1:4], *rows[5:]]) + "\n")
    (folder / "t3_16_3_6.png").write_text("no image")
    (folder / "all.csv").write_text("\n".join(rows) + "\n")
    return folder


def test_an_embedding_is_the_encoders_of_the_centre_crop(embedded: Path, slides: Path) -> None:
    """Read and cropped again without any code of embed."""
    encoder = load_encoder("tests.tools.tiny:teacher", random_weights=0)
    table = pq.read_table(embedded / "embeddings" / "b.parquet")
    patches = manifest.read_patches(embedded / TILING, "b")
    assert table["x_px0"].to_pylist() == patches.x_px0.tolist()
    assert set(table["site"].to_pylist()) == {"y"}
    assert (set(table["slide_id"].to_pylist()), set(table["patient_id"].to_pylist())) == ({"b"}, {"p2"})
    values = feature_matrix(table["features"])
    assert values.shape == (len(patches), 24)
    info = inspect("b", slides / "b.tiff")
    reader = OpenSlidePatches(info.path, plan_read(info, 0.5, 256))
    for row in range(0, len(patches), 5):
        patch = reader.read(int(patches.x_px0[row]), int(patches.y_px0[row]))
        with torch.inference_mode():
            expected = encoder(torch.from_numpy(patch[16:240, 16:240].copy())[None])[0].numpy()
        np.testing.assert_allclose(values[row], expected, rtol=1e-5, atol=1e-6)
    reader.close()
    about = json.loads(table.schema.metadata[b"g2l"])
    assert about["encoder"]["name"] == "tests.tools.tiny:teacher"
    assert about["patch"]["crop_px"] == 224


def test_either_pooling_of_one_encoder(tiles: Path, tmp_path: Path) -> None:
    """H0-mini is judged by its class token, and with the mean of its patch tokens."""
    found = {}
    for pooling in ("cls", "cls+mean"):
        options = EmbedOptions(encoder=VIT, random_weights=0, threads=2, pooling=pooling)
        embed([tiles / "whole.csv"], tmp_path / pooling, options, TileOptions(), Silent())
        table = pa.concat_tables(
            [pq.read_table(path) for path in (tmp_path / pooling / "embeddings").glob("*")]
        )
        found[pooling] = np.array(table["features"].to_pylist())
    assert found["cls"].shape == (9, 24)
    assert found["cls+mean"].shape == (9, 48)
    np.testing.assert_array_equal(found["cls+mean"][:, :24], found["cls"])
    with pytest.raises(RecipeMismatch, match="pooling"):
        embed([tiles / "whole.csv"], tmp_path / "cls", options, TileOptions(), Silent())


@pytest.mark.parametrize(
    ("threads", "workers"),
    [(1, None), pytest.param(2, 2, marks=[pytest.mark.cluster, pytest.mark.long])],
    ids=["threads", "processes"],
)
def test_bytes_do_not_depend_on_threads_or_processes(
    embedded: Path,
    slides: Path,
    tile_options: TileOptions,
    tmp_path: Path,
    threads: int,
    workers: int | None,
) -> None:
    assert TINY.threads == 2
    where = ClusterOptions(workers=workers)
    embed([slides], tmp_path / "s", replace(TINY, threads=threads), tile_options, Silent(), where)
    assert contents(tmp_path / "s") == contents(embedded)


def test_a_second_run_finds_everything_done(embedded: Path, slides: Path, tile_options: TileOptions) -> None:
    before = {path: path.stat().st_mtime_ns for path in (embedded / "embeddings").iterdir()}
    result = embed([slides], embedded, TINY, tile_options, Silent())
    assert (result.views, result.published) == (0, 3)
    assert result.views_before == sum(row["n_patches"] for row in manifest.read_slides(embedded / TILING))
    assert before == {path: path.stat().st_mtime_ns for path in (embedded / "embeddings").iterdir()}


@pytest.mark.kill
def test_kills_lose_nothing(embedded: Path, slides: Path, tile_options: TileOptions, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def look() -> None:
        for path in (out / "embeddings").glob("*.parquet"):
            assert (
                contents(embedded)[f"embeddings/{path.name}"] == hashlib.sha256(path.read_bytes()).hexdigest()
            )

    killed = kill_at_random(embed_job, ([slides], out, TINY, tile_options), 6, 0, out, 0.2, look)
    assert killed >= 3
    embed([slides], out, TINY, tile_options, Silent())
    assert contents(out) == contents(embedded)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"random_weights": 1}, "encoder.weights_sha256: .* use the same options or another --out"),
        ({"format": "clam"}, "format: .* has 'parquet', this run has 'clam'"),
        ({"dtype": "bfloat16"}, "encoder.dtype: .* has 'float32', this run has 'bfloat16'"),
    ],
)
def test_a_folder_has_one_identity(
    embedded: Path, slides: Path, tile_options: TileOptions, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeMismatch, match=message):
        embed([slides], embedded, replace(TINY, **change), tile_options, Silent())


def test_files_that_are_gone_or_cut_are_made_again(
    embedded: Path, slides: Path, tile_options: TileOptions, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(embedded, tmp_path / "out"))
    (out / "embeddings" / "a.parquet").unlink()
    (out / "embeddings" / "b.parquet").write_bytes(b"cut")
    (out / "done" / "c.json").unlink()
    result = embed([slides], out, TINY, tile_options, Silent())
    assert result.published == 3
    assert contents(out) == contents(embedded)


def test_a_licence_decides_no_embedding(tiles: Path, tmp_path: Path) -> None:
    """A version that knows more of the licence continues what an older one began."""
    embed([tiles / "whole.csv"], tmp_path, TINY, TileOptions(), Silent())
    path = tmp_path / IDENTITY
    about = json.loads(path.read_text())
    about["encoder"]["licence"] = "as an older version had it"
    path.write_text(json.dumps(about))
    embed([tiles / "whole.csv"], tmp_path, TINY, TileOptions(), Silent())


def test_embeddings_that_an_older_version_began_are_finished_with_its_rule(tmp_path: Path) -> None:
    """A tile of 33 by 20 px: the older version made it 370 px wide, torchvision 369."""
    pixels = np.random.default_rng(0).integers(0, 256, (20, 33, 3), dtype=np.uint8)
    PIL.Image.fromarray(pixels).save(tmp_path / "a.png")
    (tmp_path / "tiles.csv").write_text("path\na.png\n")

    def features(out: Path) -> list[float]:
        embed([tmp_path / "tiles.csv"], out, TINY, TileOptions(), Silent())
        found: list[float] = pq.read_table(out / "embeddings" / "tiles.parquet")["features"][0].as_py()
        return found

    new = features(tmp_path / "new")
    about = json.loads((tmp_path / "new" / IDENTITY).read_text())
    about["tiles"]["resampling"] = "pillow-bilinear"
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / IDENTITY).write_text(json.dumps(about))
    old = features(tmp_path / "old")
    assert json.loads((tmp_path / "old" / IDENTITY).read_text()) == about
    encoder = load_encoder("tests.tools.tiny:teacher", random_weights=0)
    for found, width, left in ((new, 369, 72), (old, 370, 73)):
        view = np.array(PIL.Image.fromarray(pixels).resize((width, 224), PIL.Image.Resampling.BILINEAR))
        with torch.inference_mode():
            expected = encoder(torch.from_numpy(view[:, left : left + 224].copy())[None])[0]
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert new != old


def test_a_mistake_leaves_no_identity_behind(tiles: Path, tmp_path: Path) -> None:
    csv_path = tmp_path / "tiles.csv"
    csv_path.write_text(f"path\n{tiles / 't0_16_0_9.png'}\n")
    with pytest.raises(OptionError, match="--format eva: its manifest has a target for every sample"):
        embed([csv_path], tmp_path / "out", replace(TINY, format="eva"), TileOptions(), Silent())
    embed([csv_path], tmp_path / "out", TINY, TileOptions(), Silent())


def test_bad_reads_and_bad_slides_have_reasons(
    slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared: Path
) -> None:
    true_read = OpenSlidePatches.read

    def read(self: OpenSlidePatches, x_px0: int, y_px0: int) -> Any:
        if x_px0 == 512 and "b" in self._path.name:
            raise ReadError("b.tiff at 512: broken")
        return true_read(self, x_px0, y_px0)

    monkeypatch.setattr(OpenSlidePatches, "read", read)
    options = replace(TINY, format="trident-h5")
    result = embed([slides, shared / "bad_slides"], tmp_path / "out", options, TileOptions(), Silent())
    assert result.published == 3
    assert len(result.failed_slides) == 6
    assert all(result.failed_slides.values())
    patches = manifest.read_patches(tmp_path / "out" / TILING, "b")
    bad = np.flatnonzero(patches.x_px0 == 512)
    assert result.bad_reads == [f"b row {row}: b.tiff at 512: broken" for row in bad]
    with h5py.File(tmp_path / "out" / "embeddings" / "b.h5") as file:
        assert len(file["features"]) == len(patches) - len(bad)
        assert 512 not in file["coords"][:, 0]


def test_a_slide_of_which_nothing_can_be_read_fails_and_is_tried_again(
    slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(self: OpenSlidePatches, x_px0: int, y_px0: int) -> Any:
        raise ReadError("the disk is away")

    with monkeypatch.context() as patch:
        patch.setattr(OpenSlidePatches, "read", read)
        result = embed([slides / "a.tiff"], tmp_path / "out", TINY, TileOptions(), Silent())
    assert result.failed_slides == {"a": "a: no patch of it could be read, the first: the disk is away"}
    assert embed([slides / "a.tiff"], tmp_path / "out", TINY, TileOptions(), Silent()).published == 1


@pytest.mark.slow
def test_h5_as_trident_and_clam_read_it(
    slides: Path, tile_options: TileOptions, embedded: Path, tmp_path: Path
) -> None:
    embed([slides], tmp_path / "t", replace(TINY, format="trident-h5"), tile_options, Silent())
    embed([slides], tmp_path / "c", replace(TINY, format="clam"), tile_options, Silent())
    table = pq.read_table(embedded / "embeddings" / "a.parquet")
    with h5py.File(tmp_path / "t" / "embeddings" / "a.h5") as file:
        assert set(file) == {"features", "coords"}
        assert (file["features"].dtype, file["coords"].dtype) == (np.float32, np.int64)
        np.testing.assert_array_equal(file["features"][:], feature_matrix(table["features"]))
        np.testing.assert_array_equal(file["coords"][:, 0], table["x_px0"].to_numpy())
        np.testing.assert_array_equal(file["coords"][:, 1], table["y_px0"].to_numpy())
        assert file["features"].attrs["name"] == "tests.tools.tiny:teacher"
    folder = tmp_path / "c" / "embeddings"
    with h5py.File(folder / "h5_files" / "a.h5") as file:
        tensor = torch.load(folder / "pt_files" / "a.pt", weights_only=True)
        assert torch.equal(tensor, torch.from_numpy(file["features"][:]))


def test_h5_attributes_where_a_patch_is_read_at_half_the_resolution(slides: Path, tmp_path: Path) -> None:
    embed(
        [slides / "a.tiff"],
        tmp_path / "t",
        replace(TINY, format="trident-h5"),
        TileOptions(mpp=1.0),
        Silent(),
    )
    with h5py.File(tmp_path / "t" / "embeddings" / "a.h5") as file:
        assert dict(file["coords"].attrs) == {
            "patch_size": 256,
            "patch_size_level0": 512,
            "level0_magnification": 20,
            "target_magnification": 10,
            "overlap": 0,
            "name": "a",
            "savetodir": "",
            "level0_width": 1536,
            "level0_height": 1536,
        }
        assert set(np.unique(file["coords"][:] % 512)) == {0}


def test_eva_manifest_of_slides(slides: Path, tmp_path: Path) -> None:
    table = tmp_path / "slides.csv"
    table.write_text("slide_id,label,split\na,tumour,train\nb,normal,val\n")
    options, tiling = replace(TINY, format="eva"), TileOptions(slides_csv=table)
    result = embed([slides], tmp_path / "out", options, tiling, Silent())
    assert result.failed_slides == {"c": "no label in --slides-csv, which --format eva needs"}
    folder = tmp_path / "out" / "embeddings"
    rows = read_csv(folder / "manifest.csv")
    assert rows == [
        {"wsi_id": "a", "origin": "a.tiff", "embeddings": "embeddings/a.pt", "target": "1", "split": "train"},
        {"wsi_id": "b", "origin": "b.tiff", "embeddings": "embeddings/b.pt", "target": "0", "split": "val"},
    ]
    assert torch.load(folder / "embeddings" / "a.pt", weights_only=True).shape[1] == 24
    assert json.loads((folder / "classes.json").read_text()) == {"0": "normal", "1": "tumour"}


def test_a_corrected_table_reaches_what_was_published(
    slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the encoder: what a run with the right table would have written."""
    table = tmp_path / "slides.csv"
    tiling = TileOptions(slides_csv=table)
    table.write_text("slide_id,patient_id,label\na,p1,tumour\nb,p2,normal\nc,p3,normal\n")
    embed([slides], tmp_path / "out", TINY, tiling, Silent())
    embed([slides], tmp_path / "eva", replace(TINY, format="eva"), tiling, Silent())
    table.write_text("slide_id,patient_id,label,grade\na,p1,tumour,\nb,p2,tumour,II\nc,p9,normal,I\n")
    embed([slides], tmp_path / "right", TINY, tiling, Silent())
    embed([slides], tmp_path / "right_eva", replace(TINY, format="eva"), tiling, Silent())

    notes = Notes()
    with monkeypatch.context() as patched:
        patched.setattr(OpenSlidePatches, "read", None)  # nothing is read again
        again = embed([slides], tmp_path / "out", TINY, tiling, notes)
        embed([slides], tmp_path / "eva", replace(TINY, format="eva"), tiling, Silent())
    assert (again.views, again.published, again.failed_slides) == (0, 3, {})
    assert "3 slides published again with corrected columns, such as a" in notes.said
    for name in "abc":  # the footers differ in a name that Arrow gives to items of lists
        found, right = (pq.ParquetFile(tmp_path / f / f"embeddings/{name}.parquet") for f in ("out", "right"))
        assert found.read().equals(right.read())
        assert found.schema_arrow.metadata == right.schema_arrow.metadata
        assert found.num_row_groups == right.num_row_groups
    assert contents(tmp_path / "eva") == contents(tmp_path / "right_eva")
    notes = Notes()
    assert embed([slides], tmp_path / "out", TINY, tiling, notes).views == 0  # what was written again counts
    assert not any("published again" in note for note in notes.said)


def test_tensors_of_eva_do_not_name_the_process(slides: Path, tiles: Path, tmp_path: Path) -> None:
    embed([slides / "a.tiff"], tmp_path / "clam", replace(TINY, format="clam"), TileOptions(), Silent())
    embed([tiles / "all.csv"], tmp_path / "eva", replace(TINY, format="eva"), TileOptions(), Silent())
    found = sorted(tmp_path.rglob("*.pt"))
    assert len(found) > 5
    assert all(b"archive/data.pkl" in path.read_bytes() for path in found)


def test_parts_that_a_kill_left_beside_a_published_slide_are_removed(
    embedded: Path, slides: Path, tile_options: TileOptions, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(embedded, tmp_path / "out"))
    (out / "parts" / "a").mkdir(parents=True)
    (out / "parts" / "a" / "00000.parquet").write_bytes(b"left")
    embed([slides], out, TINY, tile_options, Silent())
    assert not (out / "parts").exists()


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_tiles_of_a_csv(tiles: Path, tmp_path: Path) -> None:
    result = embed([tiles / "all.csv"], tmp_path / "out", TINY, TileOptions(), Silent())
    assert len(result.bad_reads) == 1
    assert result.bad_reads[0].startswith("t3_16_3_6.png: not a readable image")
    table = pq.read_table(tmp_path / "out" / "embeddings" / "tiles.parquet")
    assert table["status"].to_pylist() == ["ok"] * 3 + ["bad_read"] + ["ok"] * 6
    assert table["features"].null_count == 1
    assert table["reason"].to_pylist()[3] == result.bad_reads[0]
    assert table["label"].to_pylist() == ["a"] * 5 + ["b"] * 5
    encoder = load_encoder("tests.tools.tiny:teacher", random_weights=0)
    view = np.asarray(
        PIL.Image.open(tiles / "t1_16_1_8.png").resize((224, 224), PIL.Image.Resampling.BILINEAR)
    )
    with torch.inference_mode():
        expected = encoder(torch.from_numpy(view.copy())[None])[0]
    np.testing.assert_allclose(table["features"][1].as_py(), expected, rtol=1e-5, atol=1e-6)
    again = embed([tiles / "all.csv"], tmp_path / "out", TINY, TileOptions(), Silent())
    assert (again.views, again.views_before, again.bad_reads) == (0, 10, result.bad_reads)


def test_eva_manifest_of_tiles(tiles: Path, tmp_path: Path) -> None:
    embed([tiles / "all.csv"], tmp_path / "out", replace(TINY, format="eva"), TileOptions(), Silent())
    folder = tmp_path / "out" / "embeddings"
    rows = read_csv(folder / "manifest.csv")
    assert [row["origin"] for row in rows] == [f"t{i}_16_{i}_{9 - i}.png" for i in range(10) if i != 3]
    assert [row["target"] for row in rows] == list("0000" + "11111")
    assert [row["split"] for row in rows] == ["train"] * 6 + ["val"] * 3
    for row in rows:
        tensor = torch.load(folder / row["embeddings"], weights_only=True, map_location="cpu")
        assert (tensor.shape, tensor.dtype) == ((24,), torch.float32)


def test_plism_folders(tiles: Path, tmp_path: Path) -> None:
    options = replace(TINY, format="plism")
    failed = embed([tiles / "all.csv"], tmp_path / "bad", options, TileOptions(), Silent())
    assert "t3_16_3_6.png: cannot be read, nor 0 others near it" in failed.failed_slides["tiles"]
    embed([tiles / "whole.csv"], tmp_path / "out", options, TileOptions(), Silent())
    values = np.load(tmp_path / "out" / "embeddings" / "GM_S60_to_GMH_S60.tif" / "features.npy")
    assert (values.dtype, values.shape) == (np.float32, (5, 3 + 24))
    assert values[:, :3].tolist() == [[16, i, 9 - i] for i in (0, 2, 4, 6, 8)]
    embed([tiles / "whole.csv"], tmp_path / "parquet", TINY, TileOptions(), Silent())
    table = pq.read_table(tmp_path / "parquet" / "embeddings" / "tiles.parquet")
    of_slide = [
        path in {f"t{i}_16_{i}_{9 - i}.png" for i in (0, 2, 4, 6, 8)} for path in table["path"].to_pylist()
    ]
    np.testing.assert_array_equal(values[:, 3:], feature_matrix(table["features"])[of_slide])
    assert {path.name for path in (tmp_path / "out" / "embeddings").iterdir()} == {
        "GM_S60_to_GMH_S60.tif",
        "HR_AT2_to_GMH_S60.tif",
    }


@pytest.mark.parametrize(
    ("inputs", "change", "message"),
    [
        (["whole.csv"], {"format": "trident-h5"}, "tiles have no place on one; use parquet, eva or plism"),
        (["whole.csv", "t0_16_0_9.png"], {}, "one CSV of tiles, or slides; not 2 inputs"),
        (["t0_16_0_9.png"], {"column": ("label=x",)}, "--column and --root: are for a CSV of tiles"),
        (["whole.csv"], {"format": "plism", "column": ("site=group",)}, "with the slide they are of"),
        (
            ["whole.csv"],
            {"format": "plism", "column": ("group=label",)},
            "slide 'a'; expected STAINING_SCANNER",
        ),
        (["whole.csv"], {"encoder": ""}, "--encoder .missing.: allowed is a preset"),
        (["whole.csv"], {"batch_size": 0}, "--batch-size 0: allowed is 1 or more"),
    ],
)
def test_options_that_do_not_fit(
    tiles: Path, tmp_path: Path, inputs: Sequence[str], change: dict[str, Any], message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        embed(
            [tiles / name for name in inputs],
            tmp_path / "out",
            replace(TINY, **change),
            TileOptions(),
            Silent(),
        )


def test_a_patch_smaller_than_the_encoder_takes(slides: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="--patch 128: smaller than the 224 px that tests"):
        embed([slides], tmp_path / "out", TINY, TileOptions(patch=128), Silent())


@pytest.mark.slow
def test_a_cnn_takes_patches_below_its_usual_size(
    slides: Path, tile_options: TileOptions, tmp_path: Path
) -> None:
    options = replace(TINY, encoder="resnet10t", random_weights=0)  # of 176 px
    small = replace(tile_options, patch=128, max_patches=2)
    done = embed([slides / "a.tiff"], tmp_path / "out", options, small, Silent())
    assert (done.views, done.dim) == (2, 512)
    about = json.loads((tmp_path / "out/embed.json").read_text())
    assert about["patch"]["crop_px"] == about["encoder"]["image_px"] == 128
    vit = replace(options, encoder="vit_tiny_patch16_224?depth=1")
    with pytest.raises(
        OptionError, match=r"or have it built for such views: vit_tiny_patch16_224\?depth=1&img_size=128$"
    ):
        embed([slides / "a.tiff"], tmp_path / "other", vit, small, Silent())


def test_a_damaged_part_is_named(
    slides: Path, tile_options: TileOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_disk(folder: Path, unit: Unit, tables: Parts) -> list[Path]:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(parquet, "PARQUET", Format(lambda columns, tiles: None, no_disk))
        with pytest.raises(KeyboardInterrupt):
            embed([slides / "a.tiff"], tmp_path / "out", TINY, tile_options, Silent())
    (path,) = (tmp_path / "out" / parts.FOLDER).rglob("*.parquet")
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    with pytest.raises(CorruptStore, match="remove it and start the same command again"):
        embed([slides / "a.tiff"], tmp_path / "out", TINY, tile_options, Silent())
    path.unlink()
    assert embed([slides / "a.tiff"], tmp_path / "out", TINY, tile_options, Silent()).published == 1
