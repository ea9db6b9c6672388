"""Tables that people make: what is read, what is refused, and which slide an id means."""

from pathlib import Path

import pytest

from stores.errors import OptionError
from stores.io.table import check_names, match_slides, read_table


def read(folder: Path, text: str | bytes, *known: str) -> tuple[list[str], list[list[str]], list[int]]:
    path = folder / "t.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    table = read_table(path, "--t", known)
    assert all(tuple(row) == table.names for row in table.rows)
    return list(table.names), [list(row.values()) for row in table.rows], list(table.lines)


@pytest.mark.parametrize(
    "text",
    [
        b"slide_id,patient_id\nsa,P1\nsb,P2\n",
        b'\xef\xbb\xbfslide_id,patient_id\r\nsa,"P1"\r\nsb,P2',
        b" slide_id , patient_id\nsa , P1\n sb,  \"P2\"\n",
        b"Slide_ID,PATIENT_ID\nsa,P1\nsb,P2\xc2\xa0\n",
        b"slide_id;patient_id\nsa;P1\nsb;P2\n",
        b"slide_id\tpatient_id\nsa\tP1\nsb\tP2\n",
        b"slide_id,patient_id,,\nsa,P1,,\n,,,\nsb,P2,,\n",
    ],
)  # fmt: skip
def test_one_table_written_in_many_ways(tmp_path: Path, text: bytes) -> None:
    names, rows, _ = read(tmp_path, text, "slide_id", "patient_id")
    assert (names, rows) == (["slide_id", "patient_id"], [["sa", "P1"], ["sb", "P2"]])


def test_lines_are_those_of_the_file(tmp_path: Path) -> None:
    assert read(tmp_path, 'a,b\n1,"x\r\ny"\n\n3,z\n') == (["a", "b"], [["1", "x\r\ny"], ["3", "z"]], [2, 5])
    assert read(tmp_path, "") == ([], [], [])


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("a,b\n1,2\n1,2,3\n", "--t line 3: 3 cells, and the first line names 2 columns"),
        ("a,b\n1,2\n1\n", "--t line 3: 1 cells"),
        ("a,b,a\n1,2,3\n", "two columns are called 'a'"),
        ("a, Slide_id,slide_id\n1,2,3\n", "two columns are called 'slide_id'"),
        (",a\n0,1\n", "column 1 has no name; give it one, or remove it"),
        ('a,b\n1,"2\n3,4\n', r"cannot be read as CSV \(unexpected end of data"),
        (b"a,b\n\xe4,1\n", "is not UTF-8 text .*; save it as CSV UTF-8"),
        ("a,b\n1,2\n".encode("utf-16"), "is not UTF-8 text"),
    ],
)
def test_what_could_be_read_in_two_ways_is_refused(tmp_path: Path, text: str | bytes, match: str) -> None:
    with pytest.raises(OptionError, match=match):
        read(tmp_path, text, "slide_id")


def test_files_that_are_none(tmp_path: Path) -> None:
    with (tmp_path / "t.csv").open("wb") as file:
        file.write(b"slide_id,site\na,")
        file.truncate(1 << 29)
    with pytest.raises(OptionError, match=r"cannot be read as CSV \(line 2 is longer than"):
        read_table(tmp_path / "t.csv", "--t")
    with pytest.raises(OptionError, match="No such file"):
        read_table(tmp_path / "absent", "--t")


@pytest.mark.parametrize(
    "slip", ["patientid", "patient-id", "Patient ID", "patient", "patinet_id", "pateint id"]
)
def test_slips_for_a_column_are_not_taken_for_columns_of_ones_own(slip: str) -> None:
    with pytest.raises(OptionError, match=f"column '{slip}': is 'patient_id' meant"):
        check_names("--t", ["slide_id", slip], ("slide_id", "patient_id", "split"), ())
    check_names("--t", ["slide_id", slip, "patient_id"], ("slide_id", "patient_id"), ())


@pytest.mark.parametrize(
    "name", ["stain", "scanner", "site", "grade", "patient_age", "stage", "slide_number", "TP53"]
)
def test_other_columns_are_no_slips(name: str) -> None:
    check_names("--t", ["slide_id", name], ("slide_id", "mpp", "patient_id", "split"), ("tissue",))


def test_names_of_our_own_columns_are_refused() -> None:
    with pytest.raises(OptionError, match="column 'Tissue' is measured or written by g2l; rename it"):
        check_names("--t", ["slide_id", "Tissue"], ("slide_id",), ("tissue",))


def test_ids_mean_slides() -> None:
    files = {"sa": "sa.svs", "My_slide__1_": "My slide (1).svs", "slide-1": "切片.svs", "b": None}
    meant = {
        "sa": "sa",
        "in/My slide (1).svs": "My_slide__1_",
        "切片": "slide-1",
        "b.tiff": "b",
    }
    assert match_slides([*meant, "elsewhere"], files, "--t") == meant


@pytest.mark.parametrize(
    ("given", "match"),
    [
        (["SA", "b"], "--t: there is no slide 'SA'; is 'sa' meant"),
        (["s a.svs", "b"], "is 'sa' meant"),
        (["7", "b"], "there is no slide '7'; is '007' meant"),
        (["sa", "sa.svs"], "'sa' and 'sa.svs' both mean slide sa; remove one"),
        (
            ["x", "y"],
            "none of its 2 ids is that of a slide: it has 'x', and there are 5 slides, such as 'sa'",
        ),
        (["c"], "'c' can mean c-1 or c-2; write the id, or the file's name"),
    ],
)
def test_ids_that_are_not_guessed(given: list[str], match: str) -> None:
    files = {"sa": "sa.svs", "b": "b.svs", "007": "007.svs", "c-1": "c.svs", "c-2": "c.tiff"}
    with pytest.raises(OptionError, match=match):
        match_slides(given, files, "--t")
    assert match_slides(["sa", "SA"], files, "--t") == {"sa": "sa"}  # another slide than any of these
