"""What is said of slides after they were tiled is applied, or refused; a slide that failed is tried again."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.extract.extract import extract
from pipeline.runtime.progress import Silent
from pipeline.tile.options import TileOptions
from pipeline.tile.tile import tile
from stores.errors import OptionError
from stores.format import manifest
from tests.tools.extract import contents
from tests.tools.notes import Notes
from tests.tools.settings import TEACHER
from tests.tools.verify import structure

ONE = replace(TEACHER, seeds=1)


def write(path: Path, text: str) -> TileOptions:
    path.write_text(text)
    return TileOptions(slides_csv=path)


def test_what_is_said_before_the_first_view_is_applied(slides: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    tile([slides], store, TileOptions(), Silent())
    given = write(tmp_path / "s.csv", "slide_id,patient_id,split,site\na,p,val,x\nb,p,val,y\nc,q,train,x\n")
    given = replace(given, slide_mpp=("a.tiff=0.25",))
    extract([slides], store, ONE, given, Silent())
    rows = manifest.read_slides(store)
    assert [(r["patient_id"], r["split"], r["site"], r["mpp"]) for r in rows] == [
        ("p", "val", "x", 0.25),
        ("p", "val", "y", 0.5),
        ("q", "train", "x", 0.5),
    ]
    assert structure(store) == []
    before = contents(store)
    extract([slides], store, ONE, TileOptions(), Silent())  # nothing is said now: nothing changes
    assert contents(store) == before


def test_views_are_not_moved_to_another_split(store: Path, slides: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(store, tmp_path / "s"))
    before = contents(path)
    for text, match in (
        ("slide_id,split\na,val\n", "slide a: its views are committed with split 'train', --slides-csv says 'val'"),
        ("slide_id,patient_id\na,p9\n", "with patient_id 'p1', --slides-csv says 'p9'; correct that, or use another"),
        ("slide_id,mpp\na,0.25\n", "with mpp 0.5, --slides-csv says 0.25"),
        ("slide_id,patient_id\na,P1\nb,P2\n", "with patient_id 'p1'"),
        ("slide_id,patient_id,split\na,p1,val\nb,p1,train\n", "patient p1 is in split train here and in val"),
    ):  # fmt: skip
        with pytest.raises(OptionError, match=match):
            extract([slides], path, TEACHER, write(tmp_path / "s.csv", text), Silent())
    with pytest.raises(OptionError, match=r"with mpp 0\.5, --slide-mpp says 0\.25"):
        extract([slides], path, TEACHER, TileOptions(slide_mpp=("a=0.25",)), Silent())
    assert contents(path) == before
    extract([slides], path, TEACHER, write(tmp_path / "s.csv", "slide_id,site\na,z\n"), Silent())
    assert [row["site"] for row in manifest.read_slides(path)] == ["z", "y", "x"]
    changed = {name for name, digest in contents(path).items() if before[name] != digest}
    assert changed == {"manifest/slides.parquet"}


def test_a_slide_that_failed_is_tried_again(slides: Path, tile_options: TileOptions, tmp_path: Path) -> None:
    folder, store = Path(shutil.copytree(slides, tmp_path / "slides")), tmp_path / "store"
    (folder / "b.tiff").write_bytes(b"half of a file")
    result = extract([folder], store, ONE, tile_options, Silent())
    assert list(result.failed_slides) == ["b"]
    shutil.copy(slides / "b.tiff", folder / "b.tiff")
    notes = Notes()
    result = extract([folder], store, ONE, TileOptions(), notes)
    assert not result.failed_slides
    assert "1 slide that failed before is tried again, such as b" in notes.said
    row = manifest.read_slides(store)[1]
    assert (row["status"], row["patient_id"], row["split"], row["site"]) == ("ok", "p2", "train", "y")
    assert structure(store) == []


def test_rows_without_a_slide_are_one_line(slides: Path, tmp_path: Path) -> None:
    rows = "".join(f"s{i},x\n" for i in range(1000))
    given = write(tmp_path / "s.csv", f"slide_id,site\na,x\n{rows}")
    notes = Notes()
    tile([slides], tmp_path / "store", given, notes)
    assert notes.said == [
        f"--slides-csv {tmp_path}/s.csv: 1000 of 1001 rows have no slide among the inputs, such as s0, s1, s2"
    ]
    assert notes.recorded == [("no slide", {"ids": [f"s{i}" for i in range(1000)]})]


def test_what_is_said_of_the_inputs_is_said_once(slides: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    shutil.copy(slides / "a.tiff", tmp_path / "in")
    (tmp_path / "in" / "x.vsi").touch()
    for _ in range(2):
        notes = Notes()
        extract([tmp_path / "in"], tmp_path / "store", ONE, TileOptions(), notes)
        assert len([note for note in notes.said if "no reader knows them" in note]) == 1


def test_a_table_of_other_slides_is_refused(slides: Path, tmp_path: Path) -> None:
    given = write(tmp_path / "s.csv", "slide_id,site\ns1,x\n")
    with pytest.raises(
        OptionError, match="none of its 1 ids is that of a slide: it has 's1', and there are 3 slides"
    ):
        extract([slides], tmp_path / "store", ONE, given, Silent())
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (
            "slide_id,patient_id\na,P1\nb,p1\n",
            "line 3: patient_id 'p1', and 'P1' above; write one patient in one way",
        ),
        (
            "slide_id,patient_id,split\na,P1,val\nb,P1 ,train\n",
            "patient P1 is in split train here and in val as",
        ),
        (
            "slide_id,patient_id,split\na,P1,val\nx,P1,train\n",
            "patient P1 is in split train here and in val as",
        ),
        ("slide_id,patientid\na,P1\n", "column 'patientid': is 'patient_id' meant"),
        ("slide_id,Tissue\na,P1\n", "column 'Tissue' is measured or written by g2l; rename it"),
        ("slide_id,seed\na,P1\n", "column 'seed' is measured or written by g2l; rename it"),
        ("slide_id,split\na,val\n,val\n", "line 3: no slide_id"),
        ('slide_id;mpp\na;"0,5"\n', "mpp of a: '0,5' is not a number; write a point, not a comma"),
        ("slide_id,patient_id\nA,P1\n", "there is no slide 'A'; is 'a' meant"),
    ],
)
def test_tables_that_would_let_patients_leak(slides: Path, tmp_path: Path, text: str, match: str) -> None:
    with pytest.raises(OptionError, match=match):
        tile([slides], tmp_path / "store", write(tmp_path / "s.csv", text), Silent())


def test_a_patient_of_the_store_in_another_spelling(slides: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    tile([slides / "a.tiff"], store, write(tmp_path / "s.csv", "slide_id,patient_id\na,P1\n"), Silent())
    given = write(tmp_path / "s.csv", "slide_id,patient_id\nb,p1\n")
    with pytest.raises(
        OptionError, match="patient 'p1', and 'P1' of slide a in the store; write one patient in one"
    ):
        tile([slides / "b.tiff"], store, given, Silent())
    given = write(tmp_path / "s.csv", "slide_id,patient_id,split\nb,P1,test\n")
    with pytest.raises(OptionError, match="slide b: patient P1 is in split test here and in "):
        tile([slides / "b.tiff"], store, given, Silent())
