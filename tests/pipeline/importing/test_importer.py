"""``store import``: a folder of TRIDENT or CLAM becomes a store whose views are what those tools saw."""

import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pytest
import torch

import pipeline as g2l
from pipeline.data.sources import find_sources
from pipeline.demo.synthetic_slides import write_slide
from pipeline.encoders.apply import embed
from pipeline.encoders.load import load_encoder
from pipeline.extract.extract import extract
from pipeline.importing import importer
from pipeline.importing.options import ImportOptions
from pipeline.runtime.progress import Silent
from pipeline.tile.options import TileOptions
from pipeline.tile.tile import tile
from pipeline.verify.options import VerifyOptions
from pipeline.views.render import view_crc32
from stores.errors import CorruptStore, OptionError, RecipeMismatch
from stores.format import features as stored_features
from stores.format import layout, manifest, recipe, terms
from stores.io.lock import only_writer
from tests.tools import trident
from tests.tools.commands import g2l as command
from tests.tools.commands import one_error
from tests.tools.interrupted import Interrupted
from tests.tools.kill import import_job, kill_at_random
from tests.tools.scn import write_scn
from tests.tools.settings import TEACHER, VIT
from tests.tools.verify import look, structure

SIDE = 992  # no multiple of 256: the last patches lie over the edge
NAMES = ("s1", "s2")


@pytest.fixture(scope="module")
def wsis(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wsis")
    for seed, name in enumerate((*NAMES, "lonely")):
        write_slide(folder / f"{name}.tiff", seed=seed, width_px=SIDE, height_px=SIDE)
    return folder


@pytest.fixture(scope="module")
def job(wsis: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """TRIDENT's folder of features: 16 patches of 256 px at 20x for each slide, and one slide that is not here."""
    folder = tmp_path_factory.mktemp("job") / "20x_256px_0px_overlap" / "features_tiny"
    corners = trident.grid(SIDE, SIDE, 256)
    for name in NAMES:
        seen = trident.views(wsis / f"{name}.tiff", corners, 0, 256, 256)
        trident.write_trident(folder / f"{name}.h5", corners, trident.features(seen))
    trident.write_trident(folder / "elsewhere.h5", corners, np.zeros((16, 24), np.float32))
    return folder


@pytest.fixture(scope="module")
def imported(job: Path, wsis: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("imported") / "store"
    g2l.import_features(job, wsis, store, **trident.DECLARED)
    return store


def _features_of(store: Path, slide_id: str) -> dict[tuple[int, int], npt.NDArray[np.float16]]:
    values = stored_features.open_features(store, slide_id).read_block(0, 0)
    at = map(tuple, manifest.read_patches(store, slide_id).coords.tolist())
    return dict(zip(at, values, strict=True))


def _checksums(store: Path, slide_id: str) -> dict[tuple[int, int], int]:
    table = next(manifest.commits(store, slide_id)).read()
    at = zip(table["x_px0"].to_pylist(), table["y_px0"].to_pylist(), strict=True)
    return dict(zip(at, table["view_crc32"].to_pylist(), strict=True))


def _proven(store: Path, wsis: Path, random_weights: int = 0) -> Any:
    options = VerifyOptions(
        slides=(wsis,), sample="all", threads=2, teacher=trident.ENCODER, random_weights=random_weights
    )
    return look(store, options)


def test_features_stay_and_views_are_those_that_trident_saw(imported: Path, job: Path, wsis: Path) -> None:
    corners = trident.grid(SIDE, SIDE, 256)
    for name in NAMES:
        with h5py.File(job / f"{name}.h5") as file:
            values = file["features"][:].astype(np.float16)
        found = _features_of(imported, name)
        assert len(found) == len(corners) == 16
        for corner, value in zip(map(tuple, corners.tolist()), values, strict=True):
            np.testing.assert_array_equal(found[corner], value)
        seen = trident.views(wsis / f"{name}.tiff", corners, 0, 256, 256)
        assert _checksums(imported, name) == {
            corner: view_crc32(view) for corner, view in zip(map(tuple, corners.tolist()), seen, strict=True)
        }


def test_the_recipe_says_what_is_declared(imported: Path) -> None:
    stored = recipe.load_complete(imported)
    assert stored.declared is not None
    assert (stored.declared.by, stored.declared.cut_px, stored.declared.filter) == (
        "trident",
        256,
        "bilinear",
    )
    assert stored.teacher.weights_sha256 == "unknown"
    assert stored.teacher.mean == (0.7, 0.6, 0.7)
    assert stored.patch.mpp == pytest.approx(0.5 * 256 / 224)
    assert stored.reader.resampling == "trident-1"
    assert terms.of_store(imported, stored.teacher.name)[0].encoder == trident.ENCODER
    assert recipe.from_json(stored.to_json(), "x").digest() == stored.digest()
    row = {row["slide_id"]: row for row in manifest.read_slides(imported)}["elsewhere"]
    assert (row["status"], row["reason"]) == ("failed", "elsewhere.h5: no slide of this name was given")


def test_a_sample_is_proven(imported: Path, wsis: Path) -> None:
    assert structure(imported) == []
    alone = look(imported, VerifyOptions(threads=1))
    assert any("declared, not proven" in line for line in alone.lines())
    result = _proven(imported, wsis)
    assert result.findings == []
    assert "declared, and a sample of 32 views agrees" in result.lines()
    assert result.to_json()["declared"] is True


def test_permuted_features_are_found(job: Path, wsis: Path, tmp_path: Path) -> None:
    shutil.copytree(job, tmp_path / "job")
    with h5py.File(tmp_path / "job/s1.h5", "a") as file:
        file["features"][:] = np.roll(file["features"][:], 1, axis=0)
    g2l.import_features(tmp_path / "job", wsis, tmp_path / "store", **trident.DECLARED)
    result = _proven(tmp_path / "store", wsis)
    assert {(finding.slide_id, finding.kind) for finding in result.findings} == {("s1", "teacher")}
    assert any("the teacher that was given is not the one" in line for line in result.lines())


def test_another_encoder_is_found(imported: Path, wsis: Path) -> None:
    result = _proven(imported, wsis, random_weights=1)
    assert {finding.slide_id for finding in result.findings} == set(NAMES)
    assert {finding.kind for finding in result.findings} == {"teacher"}


def test_what_is_unknown_is_said(imported: Path, wsis: Path, tmp_path: Path) -> None:
    store = Path(shutil.copytree(imported, tmp_path / "store"))
    info = command("store", "info", store).stdout
    assert "declared  imported from files of trident" in info
    assert "weights unknown" in info
    assert "tissue  " not in info
    assert command("store", "card", store).exit_code == 0
    card = (store / "README.md").read_text()
    assert "imported from files of trident, not computed by g2l" in card
    assert "Its weights, arithmetic and tissue rule are not known" in card
    assert "for 32 views of 32 patches" in card
    assert "tissue p05" not in card
    g2l_report = command("report", store, "--slides", wsis, "--out", tmp_path / "r.html")
    assert g2l_report.exit_code == 0, g2l_report.output
    assert (
        "imported from files of trident: teacher and views are what was declared"
        in (tmp_path / "r.html").read_text()
    )


@pytest.mark.slow
def test_everything_behind_it_works(imported: Path, wsis: Path, tmp_path: Path) -> None:
    done = g2l.distill(
        imported,
        tmp_path / "run",
        student="tests.tools.tiny:student",
        random_weights=0,
        slides=[str(wsis)],
        steps=2,
        batch_size=8,
        threads=1,
        loss="mse",
    )
    assert done.figures["steps"] == 2
    parts = [tmp_path / name for name in NAMES]
    for name, part in zip(NAMES, parts, strict=True):
        assert command("store", "subset", imported, "--out", part, "--slides", name).exit_code == 0
    assert command("store", "merge", *parts, "--out", tmp_path / "merged").exit_code == 0
    assert structure(tmp_path / "merged") == []
    assert recipe.load(tmp_path / "merged") == recipe.load(imported)
    assert (
        command("store", "export", imported, "--out", tmp_path / "exported", "--compact", "int8").exit_code
        == 0
    )


def test_coarser_patches_and_a_coarser_level(wsis: Path, tmp_path: Path) -> None:
    """20x to 5x: level 1, which has a downsample of 4; and to 10x: level 0, scaled by Pillow."""
    for target, level, read_px in ((5, 1, 64), (10, 0, 128)):
        side = 64 * 20 // target
        corners = trident.grid(SIDE, SIDE, side)
        seen = trident.views(wsis / "s1.tiff", corners, level, read_px, 64)
        folder = tmp_path / f"at{target}"
        about = {"patch_size": 64, "patch_size_level0": side, "target_magnification": target}
        trident.write_trident(folder / "s1.h5", corners, trident.features(seen), **about)
        g2l.import_features(folder, wsis / "s1.tiff", folder / "store", **trident.DECLARED)
        assert set(_checksums(folder / "store", "s1").values()) == {view_crc32(view) for view in seen}
        assert structure(folder / "store") == []


def test_what_was_never_scanned_is_left_out(tmp_path: Path) -> None:
    """TRIDENT's coordinates count from the corner of the slide; what was not scanned it shows as black."""
    pixels = np.random.default_rng(0).integers(90, 200, (512, 512, 3), np.uint8)
    write_scn(tmp_path / "leica.scn", pixels, (600, 300), (2000, 1500))
    corners = trident.grid(2000, 1500, 256)
    seen = trident.views(tmp_path / "leica.scn", corners, 0, 256, 256)
    assert (seen.max(axis=(1, 2, 3)) == 0).any()
    trident.write_trident(tmp_path / "job/leica.h5", corners, trident.features(seen))
    done = g2l.import_features(
        tmp_path / "job", tmp_path / "leica.scn", tmp_path / "store", **trident.DECLARED
    )
    assert done.notes == ["leica: 39 of 48 patches were never scanned, and are left out"]
    places = {(x, y) for x, y in corners.tolist() if 344 < x < 1112 and 44 < y < 812}
    assert set(_checksums(tmp_path / "store", "leica")) == places
    assert set(_checksums(tmp_path / "store", "leica").values()) < {view_crc32(view) for view in seen}
    assert _proven(tmp_path / "store", tmp_path / "leica.scn").findings == []
    assert (tmp_path / "store/pictures/leica.png").is_file()
    trident.write_trident(tmp_path / "glass/leica.h5", corners[:2], np.ones((2, 24), np.float32))
    done = g2l.import_features(
        tmp_path / "glass", tmp_path / "leica.scn", tmp_path / "s2", **trident.DECLARED
    )
    assert "no scanned pixel lies in its patches" in done.failed_slides["leica"]


def test_clam(wsis: Path, tmp_path: Path) -> None:
    corners = trident.grid(SIDE // 4 * 4, SIDE // 4 * 4, 400)
    seen = trident.views(wsis / "s1.tiff", corners, 1, 100, 100)
    trident.write_clam(tmp_path, "s1", corners, trident.features(seen), 100, 1)
    with pytest.raises(CorruptStore, match=r"does not say how its patches were cut .* --coords"):
        g2l.import_features(tmp_path / "h5_files", wsis, tmp_path / "store", **trident.DECLARED)
    options = trident.DECLARED | {"coords": tmp_path / "patches", "pixels": True}
    g2l.import_features(tmp_path, wsis, tmp_path / "store", **options)
    stored = recipe.load_complete(tmp_path / "store")
    assert stored.declared is not None
    assert (stored.declared.by, stored.reader.resampling, stored.teacher.dtype) == (
        "clam",
        "clam-1",
        "float32",
    )
    assert set(_checksums(tmp_path / "store", "s1").values()) == {view_crc32(view) for view in seen}
    result = _proven(tmp_path / "store", wsis)
    assert result.findings == []
    assert result.features_checked == 9
    rows = {row["slide_id"]: row for row in manifest.read_slides(tmp_path / "store")}
    assert rows["s1"]["patch_px0"] == 400
    assert find_sources(tmp_path / "store", stored, {"s1"}, [])  # its own pixels
    with h5py.File(tmp_path / "patches/s1.h5", "a") as file:
        file["coords"][0] = (8, 8)
    result = g2l.import_features(tmp_path, wsis, tmp_path / "other", **options)
    assert "its coordinates are not those of" in result.failed_slides["s1"]


def test_presets_say_what_their_encoder_is(job: Path, wsis: Path, tmp_path: Path) -> None:
    with pytest.raises(
        OptionError, match=r"--encoder mine: not one of the presets .* give --mean, --std, --image-px"
    ):
        g2l.import_features(job, wsis, tmp_path / "store", encoder="mine")
    with pytest.raises(
        OptionError, match="its features with pooling cls have 1536 numbers, those in the files 24"
    ):
        g2l.import_features(job, wsis, tmp_path / "store", encoder="h-optimus-0")
    corners = trident.grid(SIDE, SIDE, 256)
    trident.write_trident(tmp_path / "h/s1.h5", corners, np.ones((16, 1536), np.float16))
    g2l.import_features(tmp_path / "h", wsis, tmp_path / "store", encoder="prov-gigapath", threads=2)
    stored = recipe.load_complete(tmp_path / "store")
    assert stored.declared is not None
    assert (stored.patch.size_px, stored.teacher.image_px, stored.declared.filter) == (256, 224, "bicubic")
    assert stored.policy["crop_px"] == 224
    assert structure(tmp_path / "store") == []


def test_again_and_more_slides(job: Path, wsis: Path, imported: Path, tmp_path: Path) -> None:
    store = Path(shutil.copytree(imported, tmp_path / "store"))
    before = {
        path: path.read_bytes() for path in store.rglob("*") if path.is_file() and "logs" not in path.parts
    }
    again = g2l.import_features(job, wsis, store, **trident.DECLARED)
    assert (again.views, again.views_before) == (0, 32)
    assert before == {
        path: path.read_bytes() for path in store.rglob("*") if path.is_file() and "logs" not in path.parts
    }
    corners = trident.grid(SIDE, SIDE, 256)
    seen = trident.views(wsis / "lonely.tiff", corners, 0, 256, 256)
    trident.write_trident(tmp_path / "more/lonely.h5", corners, trident.features(seen))
    assert g2l.import_features(tmp_path / "more", wsis, store, **trident.DECLARED).views == 16
    assert _proven(store, wsis).findings == []
    with pytest.raises(RecipeMismatch, match=r"recipe\.patch\.mpp: .* teacher\.image_px"):
        g2l.import_features(job, wsis, store, **trident.DECLARED | {"image_px": 192})


def test_a_killed_import_leaves_no_index_of_before(
    job: Path, wsis: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    some, store = tmp_path / "20x_256px_0px_overlap" / "features_tiny", tmp_path / "store"
    some.mkdir(parents=True)
    shutil.copy(job / "s1.h5", some)
    g2l.import_features(some, wsis, store, **trident.DECLARED)
    assert (store / layout.INDEX).exists()

    def killed(*arguments: Any) -> None:
        assert not (store / layout.INDEX).exists()
        raise KeyboardInterrupt

    monkeypatch.setattr(importer._Import, "_write_views", killed)
    with pytest.raises(KeyboardInterrupt):
        g2l.import_features(job, wsis, store, **trident.DECLARED)


def test_what_is_said_of_slides(job: Path, wsis: Path, tmp_path: Path) -> None:
    table = tmp_path / "slides.csv"
    table.write_text("slide_id,patient_id,split,site\ns1,p1,train,x\ns2.tiff,p2,val,y\n")
    options = trident.DECLARED | {"slides_csv": table, "slide_mpp": ["s1=0.45"]}
    store = tmp_path / "store"
    g2l.import_features(job, wsis, store, **options)
    rows = {row["slide_id"]: row for row in manifest.read_slides(store)}
    assert [(rows[i]["patient_id"], rows[i]["split"], rows[i]["site"]) for i in NAMES] == [
        ("p1", "train", "x"),
        ("p2", "val", "y"),
    ]
    assert (rows["s1"]["mpp"], rows["s1"]["mpp_source"]) == (0.45, "option")
    assert rows["s1"]["patch_mpp"] == pytest.approx(0.45 * 256 / 224)
    before = manifest.slides_path(store).read_bytes()
    g2l.import_features(job, wsis, store, **trident.DECLARED)  # what nobody says stays
    assert manifest.slides_path(store).read_bytes() == before
    table.write_text("slide_id,patient_id,split\ns1,p1,val\n")
    with pytest.raises(OptionError, match="slide s1: imported with split 'train', now 'val'"):
        g2l.import_features(job, wsis, store, **options)
    wrong = g2l.import_features(job, wsis, tmp_path / "far", **trident.DECLARED | {"slide_mpp": ["s2=1.0"]})
    assert "is the mpp of the slide right" in wrong.failed_slides["s2"]


def test_a_patient_of_the_store_in_another_split_is_refused(job: Path, wsis: Path, tmp_path: Path) -> None:
    table, store = tmp_path / "slides.csv", tmp_path / "store"
    for slide_id, split in (("s1", "train"), ("s2", "val")):
        (tmp_path / slide_id).mkdir()
        shutil.copy(job / f"{slide_id}.h5", tmp_path / slide_id)
        table.write_text(f"slide_id,patient_id,split\n{slide_id},p1,{split}\n")
        options = trident.DECLARED | {"slides_csv": table}
        if split == "train":
            g2l.import_features(tmp_path / slide_id, wsis, store, **options)
    with pytest.raises(OptionError, match="patient p1 is in split"):
        g2l.import_features(tmp_path / "s2", wsis, store, **options)
    assert [row["slide_id"] for row in manifest.read_slides(store)] == ["s1"]


def test_a_corner_outside_of_the_slide_and_a_view_larger_than_the_patch(
    wsis: Path, job: Path, tmp_path: Path
) -> None:
    corners = trident.grid(SIDE, SIDE, 256)
    corners[3] = SIDE, 0
    trident.write_trident(tmp_path / "far/s1.h5", corners, np.ones((len(corners), 24), np.float32))
    found = g2l.import_features(tmp_path / "far", wsis, tmp_path / "store", **trident.DECLARED)
    assert f"x {SIDE} lies outside of the slide of {SIDE} pixels" in found.failed_slides["s1"]
    with pytest.raises(OptionError, match="--resize-px 192: smaller than the view of 224 px"):
        g2l.import_features(job, wsis, tmp_path / "other", **trident.DECLARED | {"resize_px": 192})


def test_one_picture_is_one_slide(job: Path, wsis: Path, tmp_path: Path) -> None:
    for name in ("s1", "copy"):
        (tmp_path / "wsis").mkdir(exist_ok=True)
        shutil.copy(wsis / "s1.tiff", tmp_path / f"wsis/{name}.tiff")
        (tmp_path / "job").mkdir(exist_ok=True)
        shutil.copy(job / "s1.h5", tmp_path / f"job/{name}.h5")
    done = g2l.import_features(tmp_path / "job", tmp_path / "wsis", tmp_path / "store", **trident.DECLARED)
    assert "the same picture as slide copy" in done.failed_slides["s1"]
    assert structure(tmp_path / "store") == []


def test_interrupted_in_the_middle(job: Path, wsis: Path, imported: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    with pytest.raises(KeyboardInterrupt):
        g2l.import_features(job, wsis, store, report=Interrupted(2), **trident.DECLARED)
    for path in (store / "manifest/views/s1").glob("*.parquet"):
        path.unlink()  # as if killed before this block was committed
    (tmp_path / "other").mkdir()
    shutil.copy(wsis / "s2.tiff", tmp_path / "other/s1.tiff")
    with pytest.raises(OptionError, match=r"slide s1: imported with fingerprint '.*; use another --out"):
        g2l.import_features(job, tmp_path / "other", store, **trident.DECLARED)
    g2l.import_features(job, wsis, store, **trident.DECLARED)
    for name in NAMES:
        assert _checksums(store, name) == _checksums(imported, name)
    assert structure(store) == []
    assert recipe.load(store) == recipe.load(imported)


@pytest.mark.kill
@pytest.mark.slow
def test_killed_at_any_moment_the_same_command_completes(
    job: Path, wsis: Path, imported: Path, tmp_path: Path
) -> None:
    store, asked = tmp_path / "store", ImportOptions(**trident.DECLARED)

    def look() -> None:
        if manifest.slides_path(store).exists():
            begun = ("stray", "missing", "metadata", "coords")  # arrays that the same command makes
            assert [f for f in structure(store, partial=True) if f.kind not in begun] == []

    killed = kill_at_random(import_job, (job, wsis, store, asked), 3, 0, store, 0.15, look)
    assert killed >= 1
    g2l.import_features(job, wsis, store, **trident.DECLARED)
    assert structure(store) == []
    for name in NAMES:
        assert _checksums(store, name) == _checksums(imported, name)
        np.testing.assert_array_equal(
            list(_features_of(store, name).values()), list(_features_of(imported, name).values())
        )


def test_only_one_writer(job: Path, wsis: Path, tmp_path: Path) -> None:
    with only_writer(tmp_path / "store"), pytest.raises(OptionError, match="another"):
        g2l.import_features(job, wsis, tmp_path / "store", **trident.DECLARED)


def test_the_class_token_alone_of_a_preset_that_joins_more(wsis: Path, tmp_path: Path) -> None:
    """As TRIDENT does with Midnight; and an encoder whose pooling nobody declared."""
    corners = trident.grid(SIDE, SIDE, 256)
    seen = trident.views(wsis / "s1.tiff", corners, 0, 256, 256)
    encoder = load_encoder(VIT, random_weights=0, pooling="cls")
    values = embed(encoder, seen, 16, torch.device("cpu"), torch.float32).numpy()
    trident.write_trident(tmp_path / "job/s1.h5", corners, values)
    numbers = {name: ",".join(map(str, getattr(encoder, name))) for name in ("mean", "std")}
    for pooling in ("cls", None):
        store = tmp_path / f"store-{pooling}"
        options: dict[str, Any] = {
            "encoder": VIT,
            "image_px": 224,
            "threads": 2,
            "pooling": pooling,
            **numbers,
        }
        g2l.import_features(tmp_path / "job", wsis, store, **options)
        result = look(
            store, VerifyOptions(slides=(wsis,), sample=4, threads=2, teacher=VIT, random_weights=0)
        )
        assert result.findings == []
        assert "declared, and a sample of 4 views agrees" in result.lines()


def test_a_store_is_either_imported_or_extracted(
    job: Path, wsis: Path, imported: Path, store: Path, tmp_path: Path
) -> None:
    own = Path(shutil.copytree(store, tmp_path / "own"))
    with pytest.raises(RecipeMismatch, match=r"recipe\.declared: .* holds what g2l computed itself"):
        g2l.import_features(job, wsis, own, **trident.DECLARED)
    theirs = Path(shutil.copytree(imported, tmp_path / "theirs"))
    with pytest.raises(RecipeMismatch, match=r"recipe\.declared: .* imported from trident"):
        tile([wsis], theirs, TileOptions(), Silent())
    with pytest.raises(RecipeMismatch, match=r"recipe\.declared: .* imported from trident"):
        extract([wsis], theirs, TEACHER, TileOptions(), Silent())


def test_the_order_in_the_file_does_not_matter(job: Path, wsis: Path, imported: Path, tmp_path: Path) -> None:
    with h5py.File(job / "s1.h5") as file:
        corners, values = file["coords"][:], file["features"][:]
    order = np.random.default_rng(0).permutation(len(corners))
    trident.write_trident(tmp_path / "job/s1.h5", corners[order], values[order].astype(np.float64))
    g2l.import_features(tmp_path / "job", wsis, tmp_path / "store", **trident.DECLARED)
    assert _checksums(tmp_path / "store", "s1") == _checksums(imported, "s1")
    a, b = _features_of(tmp_path / "store", "s1"), _features_of(imported, "s1")
    assert list(a) == list(b)
    np.testing.assert_array_equal(list(a.values()), list(b.values()))


def test_overlapping_patches_are_allowed(wsis: Path, tmp_path: Path) -> None:
    corners = trident.grid(SIDE, SIDE, 200)
    trident.write_trident(tmp_path / "job/s1.h5", corners, np.ones((25, 24), np.float16), overlap=56)
    g2l.import_features(tmp_path / "job", wsis, tmp_path / "store", **trident.DECLARED)
    assert structure(tmp_path / "store") == []
    assert len(manifest.read_patches(tmp_path / "store", "s1")) == 25


def test_under_pseudonyms(job: Path, wsis: Path, tmp_path: Path) -> None:
    g2l.import_features(job, wsis, tmp_path / "store", **trident.DECLARED | {"pixels": True})
    (tmp_path / "key").write_text("0123456789abcdef" * 4)
    out = tmp_path / "out"
    found = command("store", "export", tmp_path / "store", "--out", out, "--pseudonymise", tmp_path / "key")
    assert found.exit_code == 0, found.output
    assert structure(out) == []
    assert recipe.load(out).declared == recipe.load(tmp_path / "store").declared
    assert not (out / "options/import.json").exists()


def test_the_command(job: Path, wsis: Path, tmp_path: Path) -> None:
    arguments = [
        "--encoder",
        trident.ENCODER,
        "--mean",
        "0.7,0.6,0.7",
        "--std",
        "0.2,0.2,0.2",
        "--image-px",
        224,
    ]
    found = command(
        "store", "import", job, "--slides", wsis, "--out", tmp_path / "s", *arguments, "--threads", 2
    )
    assert found.exit_code == 3  # elsewhere.h5
    assert "32 views in" in found.stdout
    assert "1 slide has no h5 file" in found.stdout
    assert (tmp_path / "s/logs/import-summary.json").is_file()
    one_error(
        command("store", "import", tmp_path, "--slides", wsis, "--out", tmp_path / "t", *arguments),
        "no file ends in .h5",
    )
    (tmp_path / "u").mkdir()
    shutil.copy(job / "s1.h5", tmp_path / "u/other.h5")
    one_error(
        command("store", "import", tmp_path / "u", "--slides", wsis, "--out", tmp_path / "t", *arguments),
        "no file is of a slide that was given: the files are other, the slides lonely, s1, s2",
    )
