"""Exports under pseudonyms: whatever holds a name stays behind or stops the export; kills lose nothing."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import zarr

from pipeline.demo import doctor
from pipeline.demo.synthetic_slides import write_slide
from pipeline.distill import train
from pipeline.distill.inputs import open_data
from pipeline.distill.metrics_log import read_metrics
from pipeline.distill.options import DistillOptions
from pipeline.extract.extract import extract
from pipeline.runtime.progress import Silent
from pipeline.tile import tile
from pipeline.tile.options import TileOptions
from pipeline.tile.tissue import TissueRule
from pipeline.views.policy import Policy
from stores.errors import CorruptStore, G2LError, OptionError, StoreError
from stores.export import allowed, export, leak_check
from stores.export.deidentify import without_path
from stores.export.export import ExportOptions
from stores.export.pseudonyms import Pseudonyms, is_keyed
from stores.format import features, layout, manifest, recipe
from stores.format.int8 import Cost
from stores.info import store_info
from stores.io import files
from tests.tools.export import contents, run
from tests.tools.interrupted import Interrupted
from tests.tools.settings import ROOT, TEACHER

pytestmark = pytest.mark.slow

PATIENTS = {
    "TCGA-CR-7395-01A-01-TS1": ("TCGA-CR-7395", "train"),
    "TCGA-CR-7395-01Z-00-DX1": ("TCGA-CR-7395", "train"),
    "H19-004711_A2": ("MRN-20041889", "train"),
    "BRACS_1284": ("MRN-7", "val"),
    "TCGA-BA-4074-01Z-00-DX1": ("TCGA-BA-4074", "train"),  # not a slide at all
}
BAD = "TCGA-BA-4074-01Z-00-DX1"
FILES = [f"{slide_id}.tiff" for slide_id in PATIENTS]
DISTILL = DistillOptions(
    student="tests.tools.tiny:student", random_weights=1, steps=6, batch_size=8, lr=3e-3, threads=2, window=64
)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished store with pixels, of slides with names as they are in hospitals and in TCGA."""
    folder = tmp_path_factory.mktemp("scans-of-the-lab")
    for seed, slide_id in enumerate(PATIENTS):
        write_slide(folder / f"{slide_id}.tiff", seed=seed, width_px=1536, height_px=1280)
    (folder / f"{BAD}.tiff").write_bytes(b"II*\0")
    lines = [
        f"{s},{p},{split},{2018 + i}-03-14,grade {i % 3},{s[:9]}"
        for i, (s, (p, split)) in enumerate(PATIENTS.items())
    ]
    (folder / "meta.csv").write_text(
        "\n".join(["slide_id,patient_id,split,scan_date,grade,batch", *lines]) + "\n"
    )
    path = tmp_path_factory.mktemp("lab") / "store"
    extract([folder], path, replace(TEACHER, seeds=2), TileOptions(slides_csv=folder / "meta.csv"), Silent())
    (path / "README.md").write_text(f"features of {BAD}\n")
    return path


@pytest.fixture(scope="module")
def key() -> Pseudonyms:
    return Pseudonyms(b"5f0c1e6e4b0a4a5e9d6f2b7c8d9e0f1a")


def grep(text: str, folder: Path) -> bool:
    """Whether ``grep -r`` finds `text` in a file, or ``find`` in a name."""
    inside = subprocess.run(
        ["grep", "-r", "-q", "-a", "-i", "-F", "--", text, str(folder)], check=False
    ).returncode
    assert inside in (0, 1)
    names = subprocess.run(
        ["find", ".", "-iname", f"*{text}*"], cwd=folder, check=True, capture_output=True, text=True
    ).stdout
    return inside == 0 or bool(names.strip())


def losses(store: Path, path: Path, **changes: Any) -> list[float]:
    train.distill(store, path, replace(DISTILL, **changes), False, Silent())
    return [r["loss"] for r in read_metrics(path / "metrics.jsonl") if r["kind"] in ("train", "val")]


@pytest.fixture(scope="module")
def anonymous(lab: Path, key: Pseudonyms, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("anonymous") / "out"
    run(lab, path, pseudonyms=key)
    return path


NAMES = [*PATIENTS, *FILES, *sorted({patient for patient, _ in PATIENTS.values()})]


def test_grep_finds_every_name_in_the_store_and_none_in_the_export(lab: Path, anonymous: Path) -> None:
    tables = {str(value) for row in manifest.read_slides(lab) for value in row.values()}
    for name in NAMES:
        # what is in Parquet alone is compressed, hidden from grep; the next test looks into that
        assert grep(name, lab) or (name in tables and name not in PATIENTS), name
        assert not grep(name, anonymous), name


def test_no_text_of_the_export_is_of_the_lab(lab: Path, anonymous: Path) -> None:
    originals = NAMES + [row["fingerprint"] for row in manifest.read_slides(lab) if row["fingerprint"]]
    for path in sorted(anonymous.rglob("*.parquet")):
        table = pq.read_table(path)
        values = {v for name in table.column_names for v in map(str, table[name].unique().to_pylist())}
        assert not values & set(originals), path
        assert not any(name in str(pq.read_schema(path)) for name in originals)
    text = "".join(path.read_text() for path in sorted(anonymous.rglob("*.json")))
    assert not any(name in text for name in originals)
    for word in ("scans-of-the-lab", str(lab), "meta.csv", "/tmp", "2018-03-14", "grade"):
        assert word not in text
        assert not grep(word, anonymous)


def test_what_is_in_an_export(lab: Path, anonymous: Path, key: Pseudonyms) -> None:
    names = key.fresh()
    ids = {names.of("slide", slide_id) for slide_id in PATIENTS if slide_id != BAD}
    roots = {name.split("/")[0] for name in layout.list_files(anonymous)}
    assert roots == {"recipe.json", "manifest", "features.zarr", "pixels.zarr", "options"}
    assert all(layout.classify(name) for name in layout.list_files(anonymous))
    assert set(layout.by_slide(layout.list_files(anonymous))) == ids
    rows = manifest.read_slides(anonymous)
    assert {row["slide_id"] for row in rows} == ids
    assert all(set(row) == set(manifest.SLIDES_SCHEMA.names) for row in rows)
    assert all(is_keyed(row["fingerprint"]) and row["reason"] == "" for row in rows)
    assert len({row["patient_id"] for row in rows}) == 3
    assert recipe.load(anonymous).digest() == recipe.load(lab).digest()
    about = json.loads((anonymous / "options/export.json").read_text())
    assert about["pseudonymised"] is True
    assert about["key_id"] == names.key_id
    assert key.key.decode() not in str(about)
    assert key.key.decode() not in repr(key)
    before = {row["slide_id"]: row for row in manifest.read_slides(lab)}
    for slide_id in PATIENTS:
        if slide_id == BAD:
            continue
        new_id = names.of("slide", slide_id)
        (old,), (new,) = manifest.commits(lab, slide_id), manifest.commits(anonymous, new_id)
        assert new.read().drop_columns("slide_id").equals(old.read().drop_columns("slide_id"))
        assert set(new.read()["slide_id"].to_pylist()) == {new_id}
        (row,) = [row for row in rows if row["slide_id"] == new_id]
        for column in ("vendor", "mpp", "patch_mpp", "width_px0", "split", "n_patches", "status"):
            assert row[column] == before[slide_id][column]
        np.testing.assert_array_equal(
            features.open_features(anonymous, new_id).read_block(1, 0),
            features.open_features(lab, slide_id).read_block(1, 0),
        )
    assert store_info(anonymous)["complete"] == 1.0


@pytest.mark.parametrize("changes", [{}, {"teacher_norm": "store", "loss": "mse", "views_per_read": 2}])
def test_the_loss_curve_is_the_same_to_the_bit(
    lab: Path, anonymous: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    ids = [sorted(row["slide_id"] for row in manifest.read_slides(s)) for s in (lab, anonymous)]
    assert ids[0] != ids[1]
    curve = losses(lab, tmp_path / "a", **changes)
    assert curve == losses(anonymous, tmp_path / "b", check_views="all", **changes)
    assert len(curve) == 6 + 2


def test_several_slides_change_their_order(lab: Path, anonymous: Path, key: Pseudonyms) -> None:
    """Otherwise the test above would pass for an order by name."""
    names = key.fresh()
    train_ids = [s for s, (_, split) in PATIENTS.items() if split == "train" and s != BAD]
    by_name = sorted(train_ids)
    assert sorted(train_ids, key=lambda s: names.of("slide", s)) != by_name


def test_the_same_key_gives_the_same_bytes(
    lab: Path, anonymous: Path, key: Pseudonyms, tmp_path: Path
) -> None:
    run(lab, tmp_path / "again", pseudonyms=key)
    assert contents(tmp_path / "again") == contents(anonymous)
    run(lab, tmp_path / "other", pseudonyms=Pseudonyms(b"another key of another lab"))
    ids = [{row["slide_id"] for row in manifest.read_slides(tmp_path / n)} for n in ("again", "other")]
    assert not ids[0] & ids[1]


def test_columns_of_ones_own(lab: Path, key: Pseudonyms, tmp_path: Path) -> None:
    found = run(lab, tmp_path / "o", pseudonyms=key, keep_columns=("grade",))
    assert "columns left out: batch, scan_date; --keep-column keeps one" in found.notes
    rows = manifest.read_slides(tmp_path / "o")
    assert set(rows[0]) == {*manifest.SLIDES_SCHEMA.names, "grade"}
    assert {row["grade"] for row in rows} == {"grade 0", "grade 1", "grade 2"}
    for column, match in (
        ("site", "--keep-column site: no such column; there are batch, grade, scan_date"),
        ("patient_id", "--keep-column patient_id: no such column"),
    ):
        with pytest.raises(OptionError, match=match):
            run(lab, tmp_path / "x", pseudonyms=key, keep_columns=(column,))


@pytest.mark.parametrize("value", ["TCGA-CR-7395", "from mrn-7 again", "H19-004711_A2.tiff", f"x/{BAD}"])
def test_a_kept_column_with_a_name_in_it(lab: Path, key: Pseudonyms, tmp_path: Path, value: str) -> None:
    store = Path(shutil.copytree(lab, tmp_path / "s"))
    rows = manifest.read_slides(store)
    rows[0]["grade"] = value
    manifest.write_slides(store, rows)
    with pytest.raises(OptionError, match="--keep-column grade: holds"):
        run(store, tmp_path / "o", pseudonyms=key, keep_columns=("grade",))
    run(store, tmp_path / "o", pseudonyms=key)


def test_no_pixels(lab: Path, key: Pseudonyms, slides: Path, tmp_path: Path) -> None:
    run(lab, tmp_path / "o", pseudonyms=key, pixels=False)
    assert not (tmp_path / "o" / "pixels.zarr").exists()
    assert json.loads((tmp_path / "o/options/extract-teacher.json").read_text())["pixels"] is False
    with pytest.raises(OptionError, match="under a pseudonym, so that no slide file can be matched to it"):
        open_data(tmp_path / "o", replace(DISTILL, slides=(slides,)), 2, Silent())


def test_nothing_is_added_to_an_export_under_pseudonyms(
    anonymous: Path, slides: Path, tmp_path: Path
) -> None:
    store = Path(shutil.copytree(anonymous, tmp_path / "s"))
    before = contents(store)
    with pytest.raises(OptionError, match="an export under pseudonyms, to which no slide can be matched"):
        extract([slides], store, replace(TEACHER, seeds=2), TileOptions(), Silent())
    with pytest.raises(OptionError, match="an export under pseudonyms"):
        tile.tile([slides], store, TileOptions(), Silent())
    assert contents(store) == before


def test_a_teacher_from_a_file_leaves_without_its_folders(lab: Path, key: Pseudonyms, tmp_path: Path) -> None:
    store = Path(shutil.copytree(lab, tmp_path / "s"))
    stored = recipe.load(store)
    assert stored.teacher is not None
    for name, left in (
        ("/home/smith/models.py:make", "models.py:make"),
        ("trials/smith/models.py:make", "models.py:make"),
        ("C:\\smith\\models.py:make", "models.py:make"),
        ("~/models.py:make", "models.py:make"),
        ("h-optimus-0", "h-optimus-0"),
        ("owner/model@abc", "owner/model@abc"),
        ("tests.tools.tiny:teacher", "tests.tools.tiny:teacher"),
    ):
        changed = without_path(replace(stored, teacher=replace(stored.teacher, name=name)))
        assert changed.teacher is not None
        assert changed.teacher.name == left
    recipe.save(store, replace(stored, teacher=replace(stored.teacher, name="/home/smith/models.py:make")))
    run(store, tmp_path / "o", pseudonyms=key)
    assert not grep("smith", tmp_path / "o")


def test_metadata_leave_without_attributes(lab: Path, key: Pseudonyms, tmp_path: Path) -> None:
    store = Path(shutil.copytree(lab, tmp_path / "s"))
    slide_id = "BRACS_1284"
    for node in ("features.zarr", f"features.zarr/{slide_id}", f"features.zarr/{slide_id}/features"):
        zarr.open(store / node, mode="r+").attrs["scanned"] = "2018-03-14 by Smith"
    zarr.open(store / f"pixels.zarr/{slide_id}", mode="r+").attrs["label"] = "Smith"
    assert grep("smith", store)
    run(store, tmp_path / "o", pseudonyms=key)
    assert not grep("smith", tmp_path / "o")
    assert store_info(tmp_path / "o")["complete"] == 1.0


def test_a_name_in_the_recipe_is_found_before_anything_is_written(
    lab: Path, key: Pseudonyms, tmp_path: Path
) -> None:
    store = Path(shutil.copytree(lab, tmp_path / "s"))
    stored = recipe.load(store)
    assert stored.policy is not None
    recipe.save(store, replace(stored, policy={**stored.policy, "name": "for-TCGA-CR-7395"}))
    with pytest.raises(StoreError, match="in its recipe or vendors holds 'TCGA-CR-7395'"):
        run(store, tmp_path / "o", pseudonyms=key)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s"]


@pytest.mark.parametrize(
    "where",
    ["json", "key", "array", "parquet", "footer", "name", "picture", "card", "column", "foreign id"],
)
def test_the_self_check_stops_what_slipped_through(
    lab: Path, key: Pseudonyms, tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if a later version forgot a place: nothing is published, and what was written stays to be looked at."""
    original = export._write_rest

    def forgetful(request: Any, written: Any, stage: Path) -> None:
        original(request, written, stage)
        if where == "json":
            files.write_json(stage / "options/tile.json", {"note": ["see mrn-20041889"]})
        elif where == "key":
            files.write_json(stage / "options/tile.json", {"note": {"of H19-004711_A2": 1}})
        elif where == "array":
            path = min((stage / "features.zarr").glob("*/features/zarr.json"))
            about = files.read_json(path)
            about["codecs"][0]["configuration"]["by"] = "mrn-20041889"
            files.write_json(path, about)
        elif where == "footer":
            path = min((stage / "manifest/patches").iterdir())
            table = pq.read_table(path)
            pq.write_table(table.replace_schema_metadata({"from": "H19-004711_A2.svs"}), path)
        elif where == "picture":
            path = stage / "pictures" / f"{min((stage / 'features.zarr').glob('s-*')).name}.png"
            files.write_text(path, "a label")
        elif where == "card":
            files.write_text(stage / "README.md", "a card")
        elif where == "name":
            (stage / "features.zarr" / "H19-004711_A2.json").write_text("{}")
        else:
            rows = manifest.read_slides(stage)
            change = {
                "parquet": {"vendor": "mrn-7"},
                "column": {"site": "somewhere"},
                "foreign id": {"patient_id": "somebody"},
            }
            rows[0] |= change[where]
            manifest.write_slides(stage, rows)

    monkeypatch.setattr(export, "_write_rest", forgetful)
    with pytest.raises(StoreError, match="nothing was published") as caught:
        run(lab, tmp_path / "o", pseudonyms=key, mapping=tmp_path / "m.csv")
    assert not (tmp_path / "o").exists()
    assert not (tmp_path / "m.csv").exists()
    assert (tmp_path / ".o.partial" / "recipe.json").is_file()
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    # what is there and has its size is not written again
    if where not in (
        "array",
        "footer",
        "picture",
        "card",
    ):
        (tmp_path / ".o.partial" / "features.zarr" / "H19-004711_A2.json").unlink(missing_ok=True)
        run(lab, tmp_path / "o", pseudonyms=key)
        assert (tmp_path / "o").is_dir()


SURNAME = "Smyth"
"""Of five letters, and in no table: only lists of what may leave can keep it back."""


def _planted_json(store: Path, name: str, *place: Any, value: Any = SURNAME) -> None:
    """Set a value in a JSON file of a store, by its keys."""
    found = inner = files.read_json(store / name)
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    files.write_json(store / name, found)


def _planted_table(store: Path, name: str, where: str) -> None:
    table = pq.read_table(store / name)
    if where == "footer":
        table = table.replace_schema_metadata({"pandas": SURNAME})
    else:
        field = table.schema.field(0).with_metadata({"from": SURNAME})
        table = table.cast(table.schema.set(0, field))
    pq.write_table(table, store / name)


PLACES: dict[str, tuple[Any, bool]] = {
    "chunk grid": (
        lambda s, i: _planted_json(s, f"features.zarr/{i}/features/zarr.json", "chunk_grid", "by"),
        True,
    ),
    "grid settings": (
        lambda s, i: _planted_json(s, f"pixels.zarr/{i}/zarr.json", "chunk_grid", "configuration", "by"),
        True,
    ),
    "attribute": (
        lambda s, i: _planted_json(s, f"features.zarr/{i}/stats/zarr.json", "attributes", "by"),
        True,
    ),
    "group": (lambda s, i: _planted_json(s, f"features.zarr/{i}/zarr.json", "attributes", SURNAME), True),
    "root": (lambda s, i: _planted_json(s, "features.zarr/zarr.json", "attributes", SURNAME), True),
    "option": (lambda s, i: _planted_json(s, "options/tile.json", "mpp"), True),
    "option key": (lambda s, i: _planted_json(s, "options/tile.json", SURNAME, value=1), True),
    "export option": (lambda s, i: _planted_json(s, "options/export.json", "compact"), True),
    "footer": (lambda s, i: _planted_table(s, f"manifest/patches/{i}.parquet", "footer"), True),
    "field": (lambda s, i: _planted_table(s, f"manifest/patches/{i}.parquet", "field"), True),
    "chunk outside": (
        lambda s, i: files.write_text(s / f"features.zarr/{i}/features/c/20041889/0/0", SURNAME),
        True,
    ),
    "codec": (
        lambda s, i: _planted_json(
            s, f"features.zarr/{i}/features/zarr.json", "codecs", 0, "configuration", "by"
        ),
        False,
    ),
    "fill value": (lambda s, i: _planted_json(s, f"features.zarr/{i}/coords/zarr.json", "fill_value"), False),
}
"""How a name comes into a store, and whether an export leaves it behind or refuses the store."""


@pytest.mark.parametrize("where", PLACES)
def test_a_short_name_in_no_table_stays_behind(
    lab: Path, key: Pseudonyms, tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant, leaves = PLACES[where]
    store = Path(shutil.copytree(lab, tmp_path / "s"))
    files.write_json(store / "options/export.json", {"compact": None})
    plant(store, "BRACS_1284")
    if leaves:
        run(store, tmp_path / "o", pseudonyms=key)
        assert not grep(SURNAME, tmp_path / "o")
        assert not any(SURNAME in str(pq.read_schema(p)) for p in (tmp_path / "o").rglob("*.parquet"))
        assert store_info(tmp_path / "o")["complete"] == 1.0
    else:
        with pytest.raises(CorruptStore, match="nothing else leaves under pseudonyms"):
            run(store, tmp_path / "o", pseudonyms=key)
    if where == "chunk outside":
        return  # a chunk holds numbers, which the self-check does not read
    original = export._write_rest

    def forgetful(request: Any, written: Any, stage: Path) -> None:
        original(request, written, stage)
        plant(stage, min((stage / "features.zarr").glob("s-*")).name)

    monkeypatch.setattr(export, "_write_rest", forgetful)
    with pytest.raises(StoreError, match="nothing was published"):
        run(lab, tmp_path / "x", pseudonyms=key)


@pytest.mark.parametrize("column", ["vendor", "mpp_source"])
def test_a_column_has_the_values_of_the_format(
    lab: Path, key: Pseudonyms, tmp_path: Path, column: str
) -> None:
    store = Path(shutil.copytree(lab, tmp_path / "s"))
    rows = manifest.read_slides(store)
    manifest.write_slides(store, [row | {column: SURNAME} for row in rows])
    if column == "mpp_source":
        with pytest.raises(CorruptStore, match=f"mpp_source '{SURNAME}', which no store has"):
            run(store, tmp_path / "o", pseudonyms=key)
        return
    found = run(store, tmp_path / "o", pseudonyms=key)
    assert {row["vendor"] for row in manifest.read_slides(tmp_path / "o")} == {"unknown"}
    assert f"vendors that are not known leave as unknown: {SURNAME}" in found.notes


def test_a_recipe_leaves_as_it_is_or_not_at_all(lab: Path, key: Pseudonyms, tmp_path: Path) -> None:
    store = Path(shutil.copytree(lab, tmp_path / "s"))
    stored = recipe.load(store)
    assert stored.policy is not None
    for change in (
        {"policy": {**stored.policy, SURNAME: 1}},
        {"policy": {**stored.policy, "hue": SURNAME}},
        {"patch": replace(stored.patch, tissue={**stored.patch.tissue, "operator": SURNAME})},
        {"compact": {"kind": "int8", "by": SURNAME}},
    ):
        recipe.save(store, replace(stored, **change))
        with pytest.raises(StoreError, match=f"{SURNAME}.*nothing was exported"):
            run(store, tmp_path / "o", pseudonyms=key)
    recipe.save(store, replace(stored, policy={**stored.policy, "name": SURNAME}))
    (said,) = [note for note in run(store, tmp_path / "o", pseudonyms=key).notes if "read them" in note]
    assert SURNAME in said
    assert "tests.tools.tiny:teacher" in said


def test_the_lists_know_what_this_version_writes() -> None:
    assert {field.name for field in fields(TissueRule)} | {"name", "pad"} == allowed._TISSUE  # pad: of tiles
    assert {field.name for field in fields(Policy)} == allowed._POLICY
    cost = Cost(40)
    random = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float16)
    cost.add(0, random, random)
    assert set(cost.to_json()) == allowed._COMPACT
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(doctor, "_weights", lambda: ({}, [], None))
        assert set(doctor.examine(Path()).found["openslide"]["formats"]) <= allowed.VENDORS


def test_names_that_come_up_by_chance_are_no_alarm(lab: Path, key: Pseudonyms, tmp_path: Path) -> None:
    """Numbers, words of the format, and one letter, as names of slides and patients."""
    store = Path(shutil.copytree(lab, tmp_path / "s", ignore=shutil.ignore_patterns("README.md")))
    rows = manifest.read_slides(store)
    ids = iter(["7", "test", "features", "c"])
    for row in rows:
        if row["status"] != manifest.OK:
            continue
        old, new = row["slide_id"], next(ids)
        views = [(c, c.read()) for c in manifest.commits(store, old)]
        for commit, table in views:
            at = table.schema.get_field_index("slide_id")
            table = table.set_column(at, "slide_id", [[new] * table.num_rows])
            manifest.write_commit(store, new, commit.block, commit.seeds, table)
        shutil.rmtree(store / "manifest/views" / old)
        for folder in ("features.zarr", "pixels.zarr"):
            (store / folder / old).rename(store / folder / new)
        (store / f"manifest/patches/{old}.parquet").rename(store / f"manifest/patches/{new}.parquet")
        row |= {"slide_id": new, "patient_id": {"7": "1024", "c": "24"}.get(new, "train"), "file_name": new}
    manifest.write_slides(store, rows)
    run(store, tmp_path / "o", pseudonyms=key, compact="int8")
    assert store_info(tmp_path / "o")["complete"] == 1.0


def test_a_symbolic_link_does_not_lead_out(lab: Path, key: Pseudonyms, tmp_path: Path) -> None:
    store = Path(shutil.copytree(lab, tmp_path / "s"))
    (store / "options" / "x.json").symlink_to("/etc/passwd")
    with pytest.raises(CorruptStore, match="a symbolic link"):
        run(store, tmp_path / "o", pseudonyms=key)


KILLED = """
import os, signal, sys
from pathlib import Path
from stores.export import export, pseudonyms
left = int(sys.argv[5])
replace = os.replace

def counting(*args):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(*args)

os.replace = counting
options = export.ExportOptions(sys.argv[4], pseudonyms.Pseudonyms(sys.argv[3].encode()))
export.export(Path(sys.argv[1]), Path(sys.argv[2]), options)
"""


@pytest.mark.kill
@pytest.mark.parametrize("kind", ["lossless", "int8"])
def test_killed_at_any_moment_the_bytes_are_the_same(
    lab: Path, key: Pseudonyms, tmp_path: Path, kind: str
) -> None:
    """SIGKILL right before a rename, again and again, each time further on."""
    out = tmp_path / "o"
    kills = 0
    for left in (3, 20, 45):
        args = [sys.executable, "-c", KILLED, str(lab), str(out), key.key.decode(), kind, str(left)]
        code = subprocess.run(args, cwd=ROOT, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)})
        assert code.returncode in (0, -signal.SIGKILL)
        kills += code.returncode != 0
        assert out.exists() == (code.returncode == 0)
        if out.exists():
            break
    assert kills >= 2
    if not out.exists():
        assert list((tmp_path / ".o.partial").rglob("*.partial"))
        run(lab, out, pseudonyms=key, compact=kind)
    run(lab, tmp_path / "undisturbed", pseudonyms=key, compact=kind)
    assert contents(out) == contents(tmp_path / "undisturbed")
    assert not list(tmp_path.rglob("*.partial"))


def attempt(*args: Any, **options: Any) -> str:
    with pytest.raises(G2LError) as caught:
        run(*args, **options)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_wrong_uses_are_one_line(lab: Path, key: Pseudonyms, tmp_path: Path) -> None:
    out = tmp_path / "o"
    assert "give --pseudonymise KEYFILE, --compact" in attempt(lab, out)
    assert "--compact zip: allowed is lossless or int8" in attempt(lab, out, compact="zip")
    assert "--mapping: only with --pseudonymise" in attempt(lab, out, compact="int8", mapping=tmp_path / "m")
    assert "--keep-column: only with" in attempt(lab, out, compact="int8", keep_columns=("a",))
    assert "inside the store" in attempt(lab, lab / "export", compact="int8")
    assert "not a store" in attempt(tmp_path / "none", out, compact="int8")
    assert "lies within --out" in attempt(lab, out, pseudonyms=key, mapping=out / "m.csv")
    assert "nothing is overwritten" in attempt(lab, tmp_path, compact="int8")
    assert not out.exists()


def test_a_source_that_was_repaired_since_the_interruption(
    lab: Path, key: Pseudonyms, tmp_path: Path
) -> None:
    """The files have the sizes that they had."""
    store = Path(shutil.copytree(lab, tmp_path / "s"))
    slide_id = sorted(set(PATIENTS) - {BAD})[0]
    values = features.open_features(store, slide_id).read_block(0, 0)
    features.write_block(store, slide_id, 0, 0, values + np.float16(1))

    with pytest.raises(KeyboardInterrupt):
        export.export(store, tmp_path / "o", ExportOptions(pseudonyms=key), Interrupted())
    features.write_block(store, slide_id, 0, 0, values)
    run(store, tmp_path / "o", pseudonyms=key)
    new = features.open_features(tmp_path / "o", key.of("slide", slide_id))
    np.testing.assert_array_equal(new.read_block(0, 0), values)


def test_a_store_without_slides_or_features(lab: Path, key: Pseudonyms, tmp_path: Path) -> None:
    recipe.save(tmp_path, recipe.Recipe(recipe.load(lab).patch))
    assert "no teacher features yet" in attempt(tmp_path, tmp_path.parent / "o", compact="int8")
    assert "has no slides yet" in attempt(tmp_path, tmp_path.parent / "o", pseudonyms=key)


def test_every_word_of_the_format_is_known_to_the_check() -> None:
    assert {*manifest.SPLITS, manifest.OK, manifest.BAD_READ} <= leak_check.WORDS


def test_pseudonyms_for_int8_in_one_step_or_two(lab: Path, key: Pseudonyms, tmp_path: Path) -> None:
    int8 = tmp_path / "int8"
    run(lab, int8, compact="int8")
    run(lab, tmp_path / "one", compact="int8", pseudonyms=key)
    run(int8, tmp_path / "two", pseudonyms=key)
    one, two = contents(tmp_path / "one"), contents(tmp_path / "two")
    metadata = {k for k in one if k.endswith("zarr.json")}
    assert {k for k in one if one[k] != two[k]} <= {*metadata, layout.INDEX}  # which has their bytes
    assert one.keys() == two.keys()
    assert recipe.load(tmp_path / "one") == recipe.load(int8)
