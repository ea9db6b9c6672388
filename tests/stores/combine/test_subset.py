"""``store subset``: by slide, seed and SQL; nothing else comes along."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stores.combine.subset import read_ids
from stores.combine.where import select
from stores.errors import OptionError
from stores.format import features, manifest
from stores.format.layout import read_options
from tests.tools.content import content_digest
from tests.tools.made_stores import make_store
from tests.tools.share import SLIDES, contents, joined, part, wrong

ROWS: list[dict[str, Any]] = [
    {"slide_id": "a", "n_patches": 70, "mpp": 0.5, "site": "x", "age": "61", "code": "007", "split": "train"},
    {"slide_id": "b", "n_patches": 100, "mpp": 0.25, "site": "o'x", "age": "7", "code": "7", "split": "val"},
    {"slide_id": "c", "n_patches": 0, "mpp": None, "site": None, "age": None, "code": None, "split": "val"},
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Slides of many kinds. Read only."""
    return make_store(tmp_path_factory.mktemp("made") / "s", SLIDES)


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


def test_without_pixels(made: Path, tmp_path: Path) -> None:
    out = part(made, tmp_path / "out", pixels=False)
    assert not (out / "pixels.zarr").exists()
    assert contents(out) == {n: c for n, c in contents(made).items() if not n.startswith("pixels.zarr")}
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
        ("n_patches > 9", "ab"),
        ("age > 10", "a"),
        ("code = '7'", "b"),
        ("site = 'o''x' -- a comment", "b"),
        ('"site" IS NULL', "c"),
        ("mpp BETWEEN 0.2 AND 0.3 OR slide_id IN ('c')", "bc"),
        ("lower(site) LIKE '%X' AND NOT split = 'val'", "a"),
        ("n_patches > (SELECT avg(n_patches) FROM slides)", "ab"),
        ("site = '\"'", ""),
    ],
)
def test_sql(where: str, expected: str) -> None:
    assert select(ROWS, where) == set(expected)


@pytest.mark.parametrize(
    "where",
    [
        "1=1); ATTACH 'x.db' AS y; SELECT (1",
        "1) FROM slides; ATTACH 'x.db' AS y; --",
        "1) FROM slides; DROP TABLE slides; --",
        "EXISTS (SELECT 1 FROM sqlite_master)",
        "EXISTS (SELECT 1 FROM pragma_database_list)",
        "PRAGMA user_version",
        "load_extension('x')",
        "readfile('/etc/passwd') IS NULL",
        "random() > 0",
        "EXISTS (WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n FROM r) SELECT 1 FROM r)",
        "count(*) > 0",
        "n_patches",
        "site",
        "nothing = 1",
        '"nothing" = \'x\'',
        "'",
        "",
        "a\0b",
        "\udc80 = 1",
        "site = ?",
    ],
)  # fmt: skip
def test_anything_but_a_condition_is_one_line(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OptionError, match=r"--where .*columns: age, code, mpp, n_patches, site") as caught:
        select(ROWS, where)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_slides_from_files(made: Path, tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_text("\ufeffa\n\n  b \n", encoding="utf-8")
    (tmp_path / "meta.csv").write_text("site,slide_id\nx,d\n")
    assert read_ids([str(tmp_path / "ids.txt"), "c", str(tmp_path / "meta.csv")]) == ("a", "b", "c", "d")
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
