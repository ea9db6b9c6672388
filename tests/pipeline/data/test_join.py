"""Views of several stores: what is common, what any has, and what is refused; property tests on made-up stores."""

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.data import join
from pipeline.data.join import Member, open_joined
from pipeline.data.joined import JoinedCache
from pipeline.runtime.progress import Silent
from pipeline.views.draw import RENDERING
from pipeline.views.policy import Policy
from stores.errors import RecipeMismatch, StoreError, ViewMismatch
from stores.format import features, manifest, recipe, tiles
from tests.tools.made_stores import RECIPE, MadeSlide, make_store

POLICY = Policy.from_json
DRAWN: Any = settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def made(folder: Path, slides: list[MadeSlide], shift: int = 0, **policy: Any) -> Member:
    """A store whose rows are in another order with a `shift`; features say slide, place and seed."""
    reader, teacher = RECIPE.reader, RECIPE.teacher
    assert reader is not None
    assert teacher is not None
    about = replace(
        RECIPE,
        reader=replace(reader, rendering=RENDERING),
        policy={"name": "none", **policy},
        teacher=replace(teacher, name=f"teacher of {folder.name}"),
    )
    make_store(folder, slides, about)
    for slide in slides:
        if slide.status == "ok":
            _turn(folder, slide, shift)
    return Member(folder, recipe.load_complete(folder))


def _turn(folder: Path, slide: MadeSlide, shift: int) -> None:
    """Let row r be the patch r + shift of n, and write what each feature is of into it."""
    n = slide.n_rows
    old = manifest.read_patches(folder, slide.slide_id)
    of = (np.arange(n) + shift) % n
    manifest.write_patches(folder, slide.slide_id, old.x_px0[of], old.y_px0[of], old.tissue[of])
    shutil.rmtree(folder / "features.zarr" / slide.slide_id)
    coords = manifest.read_patches(folder, slide.slide_id).coords
    features.create_slide(folder, slide.slide_id, coords, slide.n_seeds, 8)
    number = np.frombuffer(slide.slide_id.encode(), np.uint8).sum() % 32
    for commit in list(manifest.commits(folder, slide.slide_id)):
        table = commit.read()
        rows, seeds = table["row"].to_numpy(), table["seed"].to_numpy()
        place = of[rows]
        bad = np.isin(place, list(slide.bad))
        columns = {
            "x_px0": old.x_px0[place],
            "y_px0": old.y_px0[place],
            "tissue": old.tissue[place],
            "status": np.where(bad, manifest.BAD_READ, manifest.OK),
        }
        for name, values in columns.items():
            at = table.column_names.index(name)
            table = table.set_column(at, name, [values])
        crc = [None if b else int(p) * 7 + int(s) for p, s, b in zip(place, seeds, bad, strict=True)]
        table = table.set_column(table.column_names.index("view_crc32"), "view_crc32", [crc])
        manifest.write_commit(folder, slide.slide_id, commit.block, commit.seeds, table)
        for seed in commit.seeds:
            block = features.block_range(n, commit.block)
            mine = of[block.start : block.stop]
            values = np.zeros((len(mine), 8), np.float16)
            values[:, 0], values[:, 1], values[:, 2] = number, mine, seed
            values[np.isin(mine, list(slide.bad))] = np.nan
            features.write_block(folder, slide.slide_id, seed, commit.block, values)


Store = dict[str, tuple[int, tuple[int, ...], int]]
"""By slide: seeds, rows that could not be read, shift of its rows."""


@st.composite
def stores(draw: Any) -> list[Store]:
    """Three stores that each lack some slides, seeds and rows."""
    found = []
    for _ in range(3):
        slides = draw(st.lists(st.sampled_from("abc"), min_size=1, unique=True))
        found.append(
            {
                slide: (
                    draw(st.integers(1, 3)),
                    tuple(draw(st.sets(st.integers(0, 5), max_size=3))),
                    draw(st.integers(0, 5)),
                )
                for slide in slides
            }
        )
    return found


def views_of(store: Store) -> set[tuple[str, int, int]]:
    return {
        (slide, place, seed)
        for slide, (seeds, bad, _) in store.items()
        for place in range(6)
        for seed in range(seeds)
        if place not in bad
    }


@DRAWN
@given(drawn=stores())
def test_every_view_comes_once_with_the_target_of_each_store_that_has_it(
    drawn: list[Store], tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(join, "find_sources", lambda *_: {})
    monkeypatch.setattr(Policy, "from_json", staticmethod(lambda _: None))
    folder = tmp_path_factory.mktemp("s")
    members = []
    for name, store in zip("xyz", drawn, strict=True):
        slides = [MadeSlide(s, 6, bad, seeds) for s, (seeds, bad, _) in store.items()]
        members.append(made(folder / name, slides))
        for slide in slides:
            _turn(folder / name, slide, store[slide.slide_id][2])
    has = [views_of(store) for store in drawn]
    for kind, expected in (("common", set.intersection(*has)), ("any", set.union(*has))):
        (split,) = open_joined(members, {"train": None}, kind, [], ["train"], Silent())
        cache = JoinedCache(split.joined)
        seen = []
        for unit in split.units:
            for seed in unit.seeds:
                *stored, present = cache.stored(unit.commit, unit.rows, seed)
                for row in range(len(unit.rows)):
                    found = {
                        (int(stored[4 * k][row, 0]), int(stored[4 * k][row, 1]), int(stored[4 * k][row, 2]))
                        for k in range(3)
                        if present[row, k]
                    }
                    ((_, place, of_seed),) = found  # all stores say the same of the view
                    assert of_seed == seed
                    view = unit.commit.slide_id, place, seed
                    assert [view in of for of in has] == present[row].tolist()
                    seen.append(view)
        assert sorted(seen) == sorted(expected)
    shutil.rmtree(folder)


SLIDES = [MadeSlide("a", 6), MadeSlide("b", 6)]


@pytest.fixture(autouse=True)
def without_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(join, "find_sources", lambda *_: {})
    monkeypatch.setattr(Policy, "from_json", staticmethod(lambda _: None))


def test_a_checksum_that_differs_is_named(tmp_path: Path) -> None:
    members = [made(tmp_path / name, SLIDES, shift) for name, shift in (("x", 0), ("y", 2))]
    (commit,) = manifest.commits(tmp_path / "y", "b")
    table = commit.read()
    at = table.column_names.index("view_crc32")
    wrong = pc.if_else(pc.and_(pc.equal(table["seed"], 1), pc.equal(table["row"], 0)), 99, table[at])
    manifest.write_commit(tmp_path / "y", "b", 0, commit.seeds, table.set_column(at, "view_crc32", wrong))
    said = r"slide b row 2 \(512,1024\) seed 1: .*x has crc32 \w{8}, .*y has 00000063: .* did not see the same pixels"
    with pytest.raises(ViewMismatch, match=said):
        open_joined(members, {"train": None}, "common", [], [], Silent())


def test_policies_splits_and_nothing_in_common_are_refused(tmp_path: Path) -> None:
    x = made(tmp_path / "x", SLIDES)
    other = made(tmp_path / "other", SLIDES, flips=True)
    with pytest.raises(RecipeMismatch, match=r"recipe\.policy\.flips: .*x has None, .*other has True"):
        open_joined([x, other], {"train": None}, "common", [], [], Silent())
    named = made(tmp_path / "named", SLIDES, name="mine")
    open_joined([x, named], {"train": None}, "common", [], [], Silent())  # a name decides no view
    val = made(tmp_path / "val", [MadeSlide("a", 6, columns={"split": "val"})])
    with pytest.raises(StoreError, match=r"slide a is in the split train in .*x, and in val in .*val"):
        open_joined([x, val], {"train": None}, "any", [], [], Silent())
    patient = made(tmp_path / "patient", [MadeSlide("c", 6, columns={"split": "val", "patient_id": "p-b"})])
    with pytest.raises(
        StoreError, match=r"patient p-b is in the split train in .*x, and in val in .*patient"
    ):
        open_joined([x, patient], {"train": None}, "any", [], [], Silent())
    apart = made(tmp_path / "apart", [MadeSlide("c", 6)])
    with pytest.raises(StoreError, match="no view of the split 'train' is in all of"):
        open_joined([x, apart], {"train": None}, "common", [], [], Silent())


def test_slides_that_give_no_views_and_empty_names_are_in_no_split(tmp_path: Path) -> None:
    unknown = {"fingerprint": "", "patient_id": ""}
    x = made(tmp_path / "x", [MadeSlide("a", 6), MadeSlide("d", 6, columns=unknown)])
    y = made(
        tmp_path / "y",
        [
            MadeSlide("a", 6, status="failed", columns={"split": "val"}),
            MadeSlide("b", 6),
            MadeSlide("d", 6, columns=unknown | {"split": "val"}),
        ],
    )
    (split,) = open_joined([x, y], {"train": None}, "any", [], [], Silent())
    assert split.n_views == 3 * 18
    assert [split.views_of(number) for number in (0, 1)] == [36, 18]


def test_views_rendered_otherwise_are_refused(tmp_path: Path) -> None:
    x, y = (made(tmp_path / name, SLIDES) for name in "xy")
    older = replace(y, recipe=replace(y.recipe, reader=replace(y.recipe.reader, rendering="views-0")))
    with pytest.raises(ViewMismatch, match=r".*y: views were rendered by views-0"):
        open_joined([x, older], {"train": None}, "common", [], [], Silent())


def test_the_digest_says_what_the_views_show(tmp_path: Path) -> None:
    pairs = {name: [made(tmp_path / f"{name}{n}", SLIDES[:1]) for n in (1, 2)] for name in ("one", "other")}
    # the same views in every table, of other pixels
    for folder in (tmp_path / "other1", tmp_path / "other2"):
        (commit,) = manifest.commits(folder, "a")
        table = commit.read()
        at = table.column_names.index("view_crc32")
        crc = pc.add(table[at].cast("int64"), 1 << 16).cast(table.schema.field(at).type)
        manifest.write_commit(folder, "a", 0, commit.seeds, table.set_column(at, "view_crc32", crc))
    one, other = (
        open_joined(pair, {"train": None}, "any", [], [], Silent())[0].digest for pair in pairs.values()
    )
    assert one != other


class _Notes(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


def test_it_is_said_what_is_left_out(tmp_path: Path) -> None:
    members = [made(tmp_path / "x", SLIDES), made(tmp_path / "y", SLIDES[:1])]
    said = _Notes()
    open_joined(members, {"train": None}, "common", [], [], said)
    first, second = said.lines
    assert first == "split train: 18 views in all stores"
    assert re.fullmatch(
        r"split train: 18 of 36 views of .*x are left out, .*: slides b \(18\); --join any .*", second
    )
    said.lines.clear()
    open_joined(members, {"train": None}, "any", [], [], said)
    assert said.lines == []


def test_a_seed_that_is_asked_for_and_not_in_common(tmp_path: Path) -> None:
    members = [made(tmp_path / "x", SLIDES), made(tmp_path / "y", [MadeSlide("a", 6, n_seeds=2)])]
    with pytest.raises(
        StoreError, match=r"no view of seed 2 is left .*--seeds 2, or run extract-teacher --seeds 3"
    ):
        open_joined(members, {"train": 3}, "common", [], [], Silent())


def test_the_digest_says_which_store_has_which_view(tmp_path: Path) -> None:
    x, y, less = (made(tmp_path / n, of) for n, of in (("x", SLIDES), ("y", SLIDES), ("less", SLIDES[:1])))
    (whole,), (part,) = (
        open_joined([x, other], {"train": None}, "any", [], [], Silent()) for other in (y, less)
    )
    assert whole.n_views == part.n_views == 36
    assert whole.digest != part.digest


def test_a_slide_is_one_group_under_two_names(tmp_path: Path) -> None:
    x = made(tmp_path / "x", [MadeSlide("a", 6, n_seeds=2)])
    other = MadeSlide("other", 6, columns={"fingerprint": "fingerprint of a", "patient_id": "p-a"})
    y = made(tmp_path / "y", [other])
    (split,) = open_joined([x, y], {"train": None}, "any", [], [], Silent())
    assert {unit.commit.slide_id for unit in split.units} == {"a", "other"}  # seed 2 is in y alone
    for balance in ("slide", "patient"):
        (group,) = split.groups(balance)
        assert sum(unit.n_views for unit in group) == 18


def test_tiles_of_groups_of_one_name_are_one_group(tmp_path: Path) -> None:
    """A group that has more tiles in one store has another fingerprint there."""
    members = []
    for name, letters in (("x", "d"), ("y", "df")):
        slide = MadeSlide("group", 3 * len(letters), n_seeds=1, columns={"vendor": tiles.VENDOR})
        members.append(_of_tiles(made(tmp_path / name, [slide]), "".join(letter * 3 for letter in letters)))
    rows = manifest.read_slides(tmp_path / "y")
    manifest.write_slides(tmp_path / "y", [row | {"fingerprint": "another"} for row in rows])
    (split,) = open_joined(members, {"train": None}, "any", [], ["train"], Silent())
    (group,) = split.groups("slide")
    assert sum(unit.n_views for unit in group) == split.n_views == 6


def test_slides_without_a_fingerprint_are_others_in_another_store(tmp_path: Path) -> None:
    slides = [MadeSlide("a", 6, columns={"fingerprint": "", "patient_id": name}) for name in "pq"]
    members = [made(tmp_path / name, [slide]) for name, slide in zip("xy", slides, strict=True)]
    (split,) = open_joined(members, {"train": None}, "any", [], [], Silent())
    assert [sum(unit.n_views for unit in group) for group in split.groups("slide")] == [18, 18]


def test_it_is_said_that_pseudonyms_match_nothing(tmp_path: Path) -> None:
    keyed = {"fingerprint": f"keyed-{'d' * 24}"}
    x, y, z = (
        made(tmp_path / name, [MadeSlide("a", 6, columns=of)])
        for name, of in zip("xyz", ({}, keyed, keyed), strict=True)
    )
    with pytest.raises(
        StoreError, match=r"'train' is in all of .*; .*y: slides under pseudonyms, which match only"
    ):
        open_joined([x, y], {"train": None}, "common", [], [], Silent())
    said = _Notes()
    open_joined([x, y], {"train": None}, "any", [], [], said)
    assert re.search(r"y: slides under pseudonyms, .*; nothing notices a slide that", said.lines.pop())
    open_joined([y, z], {"train": None}, "any", [], [], said)
    assert said.lines == []


def test_rows_in_other_blocks(tmp_path: Path) -> None:
    """One block of 700 rows here; there the last 700 of 1,100 rows, in two blocks."""
    members = [
        made(tmp_path / name, [MadeSlide("a", n, n_seeds=1)], shift)
        for name, n, shift in (("x", 700, 0), ("y", 1100, 700))
    ]
    (split,) = open_joined(members, {"train": None}, "common", [], [], Silent())
    cache, n_views = JoinedCache(split.joined), 0
    for unit in split.units:
        *stored, present = cache.stored(unit.commit, unit.rows, 0)
        assert present.all()
        np.testing.assert_array_equal(stored[0][:, 1], stored[4][:, 1])
        n_views += len(unit.rows)
    assert n_views == 700


def _of_tiles(member: Member, letters: str) -> Member:
    """Make the patches of the one slide of a store those of tiles, each of which is called by a letter."""
    folder = Path(str(member.files))
    (row,) = manifest.read_slides(folder)
    recipe.save(folder, replace(member.recipe, patch=replace(member.recipe.patch, grid=tiles.GRID)))
    patches = manifest.read_patches(folder, row["slide_id"])
    of = {manifest.TILE: [f"keyed-{letter * 24}" for letter in letters]}
    manifest.write_patches(folder, row["slide_id"], patches.x_px0, patches.y_px0, patches.tissue, of)
    return Member(folder, recipe.load_complete(folder))


def test_tiles_in_another_order(tmp_path: Path) -> None:
    """Each tile's patches are found where they are in the other store, not in the rows that they have here."""
    slide = MadeSlide("group", 6, n_seeds=2)
    members = [
        _of_tiles(made(tmp_path / name, [slide], shift), letters)
        for name, shift, letters in (("x", 0, "dddfff"), ("y", 3, "fffddd"))
    ]
    (split,) = open_joined(members, {"train": None}, "common", [], [], Silent())
    cache, n_views = JoinedCache(split.joined), 0
    for unit in split.units:
        for seed in unit.seeds:
            *stored, _ = cache.stored(unit.commit, unit.rows, seed)
            np.testing.assert_array_equal(stored[0][:, 1:3], stored[4][:, 1:3])
            n_views += len(unit.rows)
    assert n_views == split.n_views == 12


def test_a_tile_is_in_one_split(tmp_path: Path) -> None:
    """Groups and patients have other names, and say nothing."""
    members = []
    for name, split, second in (("x", "train", "f"), ("y", "val", "g")):
        slide = MadeSlide(f"group-{name}", 6, columns={"split": split})
        members.append(_of_tiles(made(tmp_path / name, [slide]), "ddd" + second * 3))
    said = r"the picture keyed-d{24} is in the split train in .*x, and in val in .*y"
    with pytest.raises(StoreError, match=said):
        open_joined(members, {"train": None, "val": None}, "any", [], ["train", "val"], Silent())
