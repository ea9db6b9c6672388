"""``store subset``: by slide, split, seed and column; nothing else comes along."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stores.combine.subset import read_ids
from stores.combine.where import select
from stores.errors import OptionError
from stores.format import features, layout, manifest
from stores.format.index import write_index
from stores.format.layout import read_options
from tests.tools.content import content_digest
from tests.tools.made_stores import make_store
from tests.tools.settings import ROOT
from tests.tools.share import SLIDES, contents, joined, part, wrong

pytestmark = pytest.mark.slow

ROWS: list[dict[str, Any]] = [
    {"slide_id": "a", "n_patches": 70, "mpp": 0.5, "site": "x", "age": "61", "code": "007", "split": "train"},
    {
        "slide_id": "b",
        "n_patches": 100,
        "mpp": 0.25,
        "site": "o'x",
        "age": "7",
        "code": "7",
        "split": "val",
        "note": "a=b AND 'c'",
    },
    {"slide_id": "c", "n_patches": 0, "mpp": None, "site": None, "age": None, "code": None, "split": "val"},
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Slides of many kinds. Read only."""
    store = make_store(tmp_path_factory.mktemp("made") / "s", SLIDES)
    write_index(store)
    return store


def test_a_subset_of_everything_is_the_store_byte_by_byte(made: Path, tmp_path: Path) -> None:
    out = part(made, tmp_path / "out")
    assert contents(out) == contents(made)
    assert wrong(out) == wrong(made) == []


def test_fewer_seeds_are_what_would_have_been_extracted(made: Path, tmp_path: Path) -> None:
    fewer = make_store(tmp_path / "fewer", [replace(slide, n_seeds=2) for slide in SLIDES])
    out = part(made, tmp_path / "out", seeds=2)
    assert content_digest(out) == content_digest(fewer)
    assert wrong(out) == []
    assert [c.seeds for c in manifest.commits(out, "b")] == [range(1), range(1, 2)]
    assert features.open_features(out, "a").n_seeds == 2
    for seeds in (0, -1):
        with pytest.raises(OptionError, match=f"--seeds {seeds}: allowed is 1 or more"):
            part(made, tmp_path / "no", seeds=seeds)


@pytest.mark.slow
def test_without_pixels(made: Path, tmp_path: Path) -> None:
    out = part(made, tmp_path / "out", pixels=False)
    assert not (out / "pixels.zarr").exists()
    left = {n: c for n, c in contents(made).items() if not n.startswith("pixels.zarr")}
    assert contents(out).keys() == left.keys()
    differing = [n for n, c in contents(out).items() if c != left[n]]
    assert differing == [layout.INDEX]  # it counts the pixels too
    assert wrong(out) == []
    assert read_options(out, "extract-teacher")["pixels"] is False


def test_pictures_and_options_go_along_and_no_path_does(made: Path, tmp_path: Path) -> None:
    a, b = part(made, tmp_path / "a", slides=("a", "c")), part(made, tmp_path / "b", slides=("b", "e"))
    result = joined([a, b], tmp_path / "out")
    assert (tmp_path / "out/pictures/a.png").read_bytes() == b"a"
    assert read_options(tmp_path / "out", "tile") == {"val": 0.1}
    assert read_options(tmp_path / "out", "merge") == {"sources": result.sources}
    assert [(s["name"], s["slides"]) for s in result.sources] == [("a", 2), ("b", 2)]
    for path in (tmp_path / "out/options").iterdir():
        assert str(tmp_path) not in path.read_text()


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        (["site=x"], "a"),
        (["site=x", "site=o'x"], "ab"),
        (["split=val", "site=x", "site=o'x"], "b"),
        (["split=train", "site=o'x"], ""),
        (["n_patches=70.0"], "a"),
        (["mpp=0.50", "mpp=2.5e-1"], "ab"),
        (["code=007"], "a"),
        (["code=7"], "b"),
        (["site="], "c"),
        (["mpp="], "c"),
        (["note=a=b AND 'c'"], "b"),
        ([], "abc"),
    ],
)
def test_where(where: list[str], expected: str) -> None:
    assert select(ROWS, where) == set(expected)


@pytest.mark.parametrize(
    "where",
    [
        *(
            "site = 'x'",
            "site='x'",
            "split=val AND site=x",
            "n_patches > 9",
            "n_patches>=9",
            "site LIKE 'x%'",
        ),
        *(
            "Site=x",
            "nothing=1",
            "site=X",
            "site=z",
            "n_patches=many",
            "mpp=nan",
            "=x",
            "=",
            "site",
            "",
            "a\0b",
        ),
    ],
)
def test_other_conditions_are_one_line_with_the_form(where: str) -> None:
    with pytest.raises(
        OptionError, match=r"--where .* COLUMN=VALUE, .*columns: age, code, mpp, n_pat"
    ) as error:
        select(ROWS, ["split=val", where])
    assert "\n" not in str(error.value)
    assert repr(where) in str(error.value)


def test_the_documented_way_to_choose_by_any_other_condition(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (ROOT / "docs/how-to/combine-stores.md").read_text(encoding="utf-8")
    [code] = re.findall(r"```python\n(.*?)```", text, re.S)
    monkeypatch.chdir(tmp_path)
    exec(code.replace('"S/', f'"{made}/'), {})
    rows = manifest.read_slides(made)
    wanted = {row["slide_id"] for row in rows if row["slide_id"] != "a" and row["n_patches"] > 30}
    assert set(read_ids(["others.csv"])) == wanted < {row["slide_id"] for row in rows}
    assert wanted


def test_slides_from_files(made: Path, tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_text("\ufeffa\n\n  b \n", encoding="utf-8")
    (tmp_path / "meta.csv").write_text("site,slide_id\nx,d\n")
    assert read_ids([str(tmp_path / "ids.txt"), "c", str(tmp_path / "meta.csv")]) == ("a", "b", "c", "d")
    (tmp_path / "meta.csv").write_text("site; Slide_ID\nx; d \n")
    assert read_ids([str(tmp_path / "meta.csv")]) == ("d",)
    part(made, tmp_path / "by_file", slides=("a.tiff",))
    assert [row["slide_id"] for row in manifest.read_slides(tmp_path / "by_file")] == ["a"]
    with pytest.raises(OptionError, match="there is no slide 'A'; is 'a' meant"):
        part(made, tmp_path / "out", slides=("A",))
    (tmp_path / "none.txt").write_text("\n")
    with pytest.raises(OptionError, match="names no slide"):
        read_ids([str(tmp_path / "none.txt")])
    for slides, match in ((("a", "../x", "zz"), r"--slides '\.\./x': no such slide .* \(and 1 more\)"),):
        with pytest.raises(OptionError, match=match):
            part(made, tmp_path / "out", slides=slides)
    with pytest.raises(OptionError, match="--split 'dev': allowed: train, val, test"):
        part(made, tmp_path / "out", splits=("dev",))
    with pytest.raises(OptionError, match="no slide of 5 fits all of"):
        part(made, tmp_path / "out", splits=("val",), slides=("a",))
