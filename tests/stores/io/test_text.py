"""Text from elsewhere: whatever it is, nothing of it acts in the medium that it goes to."""

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stores.io.text import csv_cell, html_text, is_utf8, markdown, one_line, utf8, visible

TEXTS = st.text(st.characters(), max_size=60) | st.text(
    st.sampled_from("=+-@\t\r\n'\x00\x1b\u202e\u200b\ud800\udcff<>&|`*_[]()~\\#:/. 0aw\u3164\ufe0f"),
    max_size=20,
)
"""All characters, half ones too, and those with a meaning more often."""
HIDDEN = (
    "\x00\x07\t\n\r\x1b\x7f\x9b\u00ad\u061c\u200b\u200f\u2028\u202e\u2066\u3164\ufe0f\ufeff\udcff\U000e0041"
)


@pytest.mark.parametrize("character", HIDDEN)
def test_what_is_not_to_be_seen_is_an_escape(character: str) -> None:
    shown = visible(f"a{character}b")
    assert shown == f"a{character.encode('unicode_escape').decode()}b"
    assert character not in one_line(f"a{character}b")


@given(TEXTS)
def test_a_terminal_gets_what_prints(text: str) -> None:
    for shown in (visible(text), one_line(text), markdown(text), html_text(text)):
        assert shown.isprintable()
        shown.encode()
    assert is_utf8(utf8(text))
    assert visible("café 病理 α") == "café 病理 α"


@given(TEXTS)
def test_a_cell_is_no_formula_and_can_be_read_back(text: str) -> None:
    cell = csv_cell(text)
    assert isinstance(cell, str)
    if not any(c in text for c in map(chr, (*range(32), *range(127, 160)))) and is_utf8(text):
        assert cell.removeprefix("'") == text
    assert cell[:1] not in set("=@\t\r\n\x00")
    if cell[:1] in ("+", "-"):
        float(cell)
    file = io.StringIO(newline="")
    csv.writer(file, lineterminator="\n").writerow([cell, "next"])
    assert list(csv.reader(io.StringIO(utf8(file.getvalue()).replace("\r", "\n")))) == [[cell, "next"]]


@pytest.mark.parametrize(
    "formula", ["=cmd|'/c calc'!A1", "+1+1", "-1+1", "@SUM(1)", "\uff1d1+1", "-inf", "-a", "'"]
)
def test_formulas_get_a_quote(formula: str) -> None:
    assert csv_cell(formula) == f"'{formula}"


@pytest.mark.parametrize("value", ["-0.5", "+1e-3", "-.5", "3", "", "a=b", -0.5, 3, None, True])
def test_numbers_and_plain_text_stay(value: object) -> None:
    assert csv_cell(value) is value


@given(TEXTS)
def test_a_page_has_no_mark_of_it(text: str) -> None:
    assert not set("<>") & set(html_text(text))
    assert not set('"') & set(html_text(text))
    shown = markdown(text)
    assert not set("<>|`*[]~\\@\n") & set(shown)
    assert "://" not in shown


def test_names_of_encoders_stay_readable_in_markdown() -> None:
    assert markdown("timm:vit_tiny_patch16_224") == "timm:vit_tiny_patch16_224"
    assert markdown("__a__ www.x") == "&#95;&#95;a&#95;&#95; www&#46;x"


def test_no_character_of_a_cell_begins_another_row() -> None:
    assert csv_cell("a\r=cmd|'!A1\n=b\t\udcff") == "a\\r=cmd|'!A1\\n=b\\t\\udcff"
    assert csv_cell("\t=1") == "\\t=1"
