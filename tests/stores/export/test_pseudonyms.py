"""Pseudonyms: stable under one key, unlike under another, valid ids; keys; the mapping; the search for names."""

import csv
import hashlib
import hmac
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stores.errors import OptionError, StoreError
from stores.export import pseudonyms
from stores.export.leak_check import Originals
from stores.export.pseudonyms import Pseudonyms, check_mapping, is_keyed, read_key, write_mapping
from stores.format import layout

KEY = b"0123456789abcdef0123456789abcdef"
SLIDE, PATIENT = "TCGA-CR-7395-01A-01-TS1", "TCGA-CR-7395"
ROW = {
    "slide_id": SLIDE,
    "patient_id": PATIENT,
    "file_name": "TCGA-CR-7395-01A-01-TS1.ab12cd34.svs",
    "fingerprint": "quickhash-1:" + "6335ea0e" * 8,
}


def row(slide_id: str, patient_id: str = "", file_name: str = "", fingerprint: str = "") -> dict[str, Any]:
    return {
        "slide_id": slide_id,
        "patient_id": patient_id,
        "file_name": file_name,
        "fingerprint": fingerprint,
    }


def test_the_hash_is_the_documented_one() -> None:
    digest = hmac.new(KEY, b"g2l slide\0" + SLIDE.encode(), hashlib.sha256).hexdigest()[:24]
    expected = "".join("bcdfghjklmnpqrst"[int(digit, 16)] for digit in digest)
    assert Pseudonyms(KEY).of("slide", SLIDE) == f"s-{expected}"


@given(st.text(min_size=1), st.text(min_size=1))
def test_equal_only_for_the_same_name_kind_and_key(first: str, second: str) -> None:
    one, again, other = Pseudonyms(KEY), Pseudonyms(KEY), Pseudonyms(KEY[::-1])
    assert one.of("slide", first) == again.of("slide", first) != other.of("slide", first)
    assert (one.of("slide", first) == one.of("slide", second)) == (first == second)
    assert one.of("patient", first)[2:] != one.of("slide", first)[2:]
    assert layout.is_slide_id(one.of("slide", first))


def test_no_digits_and_no_vowels() -> None:
    """So no numeric id and no word comes up in a pseudonym by chance."""
    names = Pseudonyms(KEY)
    letters = {c for i in range(200) for c in names.of("patient", str(i)).removeprefix("p-")}
    assert letters == set("bcdfghjklmnpqrst")


def test_rows() -> None:
    names = Pseudonyms(KEY)
    (new,) = names.rows([ROW | {"mpp": 0.25, "site": "x"}])
    assert new["slide_id"].startswith("s-")
    assert new["patient_id"].startswith("p-")
    assert new["file_name"].startswith("f-")
    assert is_keyed(new["fingerprint"])
    assert (new["mpp"], new["site"]) == (0.25, "x")
    assert {v for k, v in new.items() if k in ROW} == names.given()
    (empty,) = names.rows([ROW | {"file_name": None}])
    assert empty["file_name"] is None
    same_patient = names.rows([ROW, ROW | {"slide_id": "other"}])
    assert same_patient[0]["patient_id"] == same_patient[1]["patient_id"]


def test_fingerprints_of_files_are_not_keyed() -> None:
    for text in (ROW["fingerprint"], "sha256:" + "0" * 64, None, "", "keyed-"):
        assert not is_keyed(text)


def test_collisions_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pseudonyms, "_LETTERS", 1)
    names = Pseudonyms(KEY)
    rows = [row(f"slide-{i}") for i in range(17)]
    with pytest.raises(StoreError, match="get the same pseudonym; use another key"):
        names.rows(rows)


def test_key_id_tells_keys_apart_and_nothing_else() -> None:
    assert Pseudonyms(KEY).key_id == Pseudonyms(KEY).key_id != Pseudonyms(KEY[::-1]).key_id
    assert len(Pseudonyms(KEY).key_id) == 16
    assert KEY.decode() not in Pseudonyms(KEY).key_id


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (None, "no readable key file (No such file or directory)"),
        (b"", "a key of 0 bytes can be guessed, 16 are needed"),
        (b"secret\n", "a key of 6 bytes"),
        (b"fifteen bytes..\n\n\n", "a key of 15 bytes"),
    ],
)
def test_keys_that_are_none(tmp_path: Path, content: bytes | None, match: str) -> None:
    path = tmp_path / "key"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(OptionError) as caught:
        read_key(path)
    assert match in str(caught.value)
    assert f"openssl rand -hex 32 > {path}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_newline_at_the_end_is_not_of_the_key(tmp_path: Path) -> None:
    for number, end in enumerate((b"", b"\n", b"\r\n")):
        (tmp_path / f"{number}").write_bytes(KEY + end)
        assert read_key(tmp_path / f"{number}") == Pseudonyms(KEY)


def test_the_mapping_is_private(tmp_path: Path) -> None:
    names = Pseudonyms(KEY)
    names.rows([ROW])
    path = tmp_path / "private" / "map.csv"
    write_mapping(path, names.mapping())
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with path.open(newline="") as file:
        found = {(r["kind"], r["original"]): r["pseudonym"] for r in csv.DictReader(file)}
    assert found["slide", SLIDE] == names.of("slide", SLIDE)
    assert found["patient", PATIENT] == names.of("patient", PATIENT)
    assert len(found) == 4
    assert list(path.parent.iterdir()) == [path]


def test_a_mapping_never_leaves_and_never_replaces(tmp_path: Path) -> None:
    store, out = tmp_path / "store", tmp_path / "out"
    store.mkdir()
    (tmp_path / "link").symlink_to(store)
    for path in (out / "m.csv", out / "sub" / "m.csv", store / "m.csv", tmp_path / "link" / "m.csv"):
        with pytest.raises(OptionError, match="lies within"):
            check_mapping(path, "text", store, out)
    path = tmp_path / "m.csv"
    path.write_text("thesis")
    with pytest.raises(OptionError, match="nothing is overwritten"):
        check_mapping(path, "text", store, out)
    check_mapping(path, "thesis", store, out)  # of an interrupted run


ORIGINALS = Originals([ROW, row("7", "p1", "7.tiff"), row("slide-x", "1234567")])


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (SLIDE, SLIDE),
        (PATIENT, PATIENT),
        (f"of {PATIENT}, left", PATIENT),
        (f"x{SLIDE}x", None),  # one that is inside of it, see below
        ("tcga-cr-7395", PATIENT),
        ("TCGA_CR_7395", None),
        ("slide-x", "slide-x"),
        ("in slide-x.", "slide-x"),
        ("slide-xy", None),  # short and part of a word
        ("patient 1234567", "1234567"),
        ("a1234567", None),
        ("sha 0123456789", None),
        ("7", None),  # too short for what any recipe may say
        ("p1", None),
        ("7.tiff", "7.tiff"),
        (ROW["fingerprint"], ROW["fingerprint"]),
    ],
)
def test_names_in_text(text: str, found: str | None) -> None:
    hit = ORIGINALS.in_text(text)
    if text.startswith("x"):
        assert hit in (SLIDE, PATIENT)
    elif found is None:
        assert hit is None
    else:
        assert hit is not None
        assert hit.casefold() in text.casefold()


def test_short_names_in_columns_of_ones_own() -> None:
    assert ORIGINALS.in_text("see p1", shortest=1) == "p1"
    assert ORIGINALS.in_text("p10", shortest=1) is None
    assert ORIGINALS.in_text("7", shortest=1) == "7"
