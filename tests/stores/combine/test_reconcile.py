"""The union of slides by value: what only one store has is added, what differs is named. SQL, and what is copied."""

import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stores.combine.merge import merge
from stores.combine.subset import Selection, subset
from stores.errors import CorruptStore, OptionError, RecipeMismatch, StoreError
from stores.format import features, layout, manifest, pixels, recipe
from stores.format.index import write_index
from stores.format.layout import chunk_file
from stores.remote.store import open_store
from tests.tools.commands import g2l, one_error
from tests.tools.content import content_digest, slide_digest
from tests.tools.interrupted import Interrupted
from tests.tools.made_stores import RECIPE, MadeSlide, make_store
from tests.tools.reconcile import quantised
from tests.tools.share import SLIDES, contents, edit, joined, part, wrong

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Slides of many kinds. Read only."""
    store = make_store(tmp_path_factory.mktemp("made") / "s", SLIDES)
    write_index(store)
    return store


@st.composite
def made_slides(draw: st.DrawFn) -> list[MadeSlide]:
    found = []
    for slide_id in draw(st.lists(st.sampled_from(["a", "B", "a.1", "zz-9", "0_"]), min_size=1, unique=True)):
        n = draw(st.integers(1, 70))
        columns = {
            name: draw(st.sampled_from(["x", "1", None])) for name in draw(st.sets(st.sampled_from("uvw")))
        }
        bad = tuple(draw(st.sets(st.integers(0, n - 1), max_size=5)))
        status = draw(st.sampled_from(["ok"] * 5 + ["failed", "no_tissue"]))
        n_seeds, apart = draw(st.integers(0, 3)), draw(st.sampled_from([None, 1, 2]))
        found.append(MadeSlide(slide_id, n, bad, n_seeds, apart, None, draw(st.booleans()), status, columns))
    return found


@pytest.mark.slow
@settings(max_examples=6, deadline=None)
@given(made_slides(), st.data())
def test_merging_the_parts_of_any_split_gives_the_store(slides: list[MadeSlide], data: st.DataObject) -> None:
    ids = [slide.slide_id for slide in slides]
    sides = [data.draw(st.sampled_from([(0,), (1,), (0, 1)]), label=name) for name in ids]
    halves = [tuple(n for n, side in zip(ids, sides, strict=True) if i in side) for i in (0, 1)]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        store = make_store(root / "s", slides)
        write_index(store)
        parts = [part(store, root / f"part{i}", slides=half) for i, half in enumerate(halves) if half]
        whole = root / "whole"
        joined(parts, whole) if len(parts) > 1 else shutil.copytree(parts[0], whole)
        assert content_digest(whole) == content_digest(store)
        assert contents(whole).keys() == contents(store).keys()
        assert {r["slide_id"]: slide_digest(parts[0], r) for r in manifest.read_slides(parts[0])} == {
            r["slide_id"]: slide_digest(store, r)
            for r in manifest.read_slides(store)
            if r["slide_id"] in halves[0]
        } or not halves[0]


def test_content_is_what_is_said_not_how(made: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(made, tmp_path / "copy"))
    before = content_digest(copy)
    manifest.write_slides(copy, [{**row, "empty": None} for row in manifest.read_slides(copy)])
    for commit in manifest.commits(copy, "d"):
        pq.write_table(commit.read(), commit.path, compression="none")
    shutil.rmtree(copy / "options")
    assert content_digest(copy) == before
    chunk = copy / chunk_file(layout.feature_array("a", "features"), (0, 0, 0))
    shutil.copy(copy / chunk_file(layout.feature_array("a", "features"), (1, 0, 0)), chunk)
    assert content_digest(copy) != before


@pytest.mark.slow
def test_seeds_and_blocks_that_one_alone_has_are_added(tmp_path: Path) -> None:
    long = MadeSlide("a", 1100, bad=(5,), pixels=True)
    a = make_store(tmp_path / "a", [replace(long, blocks=1), MadeSlide("b", 9, n_seeds=1)])
    b = make_store(tmp_path / "b", [replace(long, n_seeds=2), MadeSlide("b", 9, n_seeds=4)])
    for pair in ([a, b], [b, a]):
        out = tmp_path / f"out-{pair[0].name}"
        joined(pair, out)
        assert wrong(out, partial=True) == []
        found = {(c.block, c.seeds) for c in manifest.commits(out, "a")}
        assert found == {(0, range(3)), (1, range(2))}
        assert features.open_features(out, "a").n_seeds == 3
        assert slide_digest(out, manifest.read_slides(out)[1]) == slide_digest(b, manifest.read_slides(b)[1])
        assert content_digest(part(out, tmp_path / f"cut-{pair[0].name}", seeds=2, slides=("a",))) == (
            content_digest(part(b, tmp_path / f"b-{pair[0].name}", slides=("a",)))
        )


def test_a_record_is_cut_where_another_store_has_the_rest(tmp_path: Path) -> None:
    """Seed 1 of block 0 is fuller in one store, seeds 0 and 2 are equal."""
    slide = MadeSlide("a", 40)
    a = make_store(tmp_path / "a", [replace(slide, seeds_apart=1)])
    b = make_store(tmp_path / "b", [slide])
    (record,) = manifest.commits(b, "a")
    rows = record.read()
    manifest.write_commit(b, "a", 0, range(3), rows.filter([s == 0 or r < 30 for s, r in zip(
        rows["seed"].to_pylist(), rows["row"].to_pylist(), strict=True)]))  # fmt: skip
    joined([b, a], tmp_path / "out")
    assert content_digest(tmp_path / "out") == content_digest(a)


def test_usable_wins_over_failed_and_columns_are_filled(tmp_path: Path) -> None:
    a = make_store(
        tmp_path / "a", [MadeSlide("a", status="failed", columns={"fingerprint": None, "site": "x"})]
    )
    b = make_store(tmp_path / "b", [MadeSlide("a", 5, columns={"stain": "HE"}), MadeSlide("b", 4)])
    joined([a, b], tmp_path / "out")
    first, second = manifest.read_slides(tmp_path / "out")
    assert (first["status"], first["n_patches"], first["site"], first["stain"]) == ("ok", 5, "x", "HE")
    assert first["fingerprint"] == "fingerprint of a"
    assert (second["site"], second["stain"]) == (None, None)
    assert wrong(tmp_path / "out") == []
    joined([a, a], tmp_path / "both")
    assert content_digest(tmp_path / "both") == content_digest(a)


def test_pixels_are_kept_from_whoever_has_them(tmp_path: Path) -> None:
    slide = MadeSlide("a", 70, bad=(1,))
    a, b = make_store(tmp_path / "a", [slide]), make_store(tmp_path / "b", [replace(slide, pixels=True)])
    joined([a, b], tmp_path / "out")
    assert content_digest(tmp_path / "out") == content_digest(b)
    long = MadeSlide("a", 1100)
    c = make_store(tmp_path / "c", [replace(long, pixels=True, blocks=1)])
    d = make_store(tmp_path / "d", [long])
    with pytest.raises(StoreError, match=r"c keeps pixels, but not of block 1, whose views .*d has"):
        joined([c, d], tmp_path / "no")


def damage_feature(store: Path) -> None:
    values = features.open_features(store, "a").read_block(1, 0).copy()
    values[7, 2] = 9.5
    features.write_block(store, "a", 1, 0, values)


def damage_pixel(store: Path) -> None:
    patches = np.concatenate([pixels.open_pixels(store, "a").read_chunk(i) for i in range(3)])
    patches[40, 1, 2, 0] ^= 1
    pixels.write_rows(store, "a", 0, patches)


def change_patch(store: Path) -> None:
    found = manifest.read_patches(store, "a")
    x = found.x_px0.copy()
    x[4] += 1
    manifest.write_patches(store, "a", x, found.y_px0, found.tissue)


def change_view(store: Path) -> None:
    (record,) = manifest.commits(store, "a")
    rows = record.read().to_pylist()
    rows[75]["view_crc32"] = 1
    manifest.write_commit(store, "a", 0, range(3), pa.Table.from_pylist(rows, manifest.VIEWS_SCHEMA))


CONFLICTS: list[tuple[Callable[[Path], None], str]] = [
    (lambda s: edit(s, "a", site="z"), r"slide a: site is 'x' in .*/s and 'z' in .*/t; leave the slide out"),
    (lambda s: edit(s, "a", mpp=0.25), r"slide a: mpp is 0\.5 in .*/s and 0\.25 in .*/t"),
    (lambda s: edit(s, "c", split="val"), r"slide c: split is 'train' in .*/s and 'val' in .*/t"),
    (change_patch, r"slide a: x_px0 of patch 4 is 1024 in .*/s and 1025 in .*/t"),
    (change_view, r"slide a: view_crc32 of row 5 seed 1 is 36 in .*/s and 1 in .*/t"),
    (damage_feature, r"slide a: feature 2 of row 7 seed 1 is -?\d+\.\d+ in .*/s and 9\.5 in .*/t"),
    (damage_pixel, r"slide a: pixel \(1, 2, 0\) of patch 40 is \d+ in .*/s and \d+ in .*/t"),
]


@pytest.mark.parametrize(("change", "match"), CONFLICTS)
def test_what_differs_is_named_with_both_values(
    made: Path, tmp_path: Path, change: Callable[[Path], None], match: str
) -> None:
    other = Path(shutil.copytree(made, tmp_path / "t"))
    change(other)
    with pytest.raises(StoreError, match=match) as caught:
        joined([made, other], tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_each_with_rows_that_the_other_lacks(made: Path, tmp_path: Path) -> None:
    one, other = (Path(shutil.copytree(made, tmp_path / name)) for name in "tu")
    for store, gone in ((one, 0), (other, 9)):
        (record,) = manifest.commits(store, "a")
        rows = record.read()
        manifest.write_commit(
            store, "a", 0, range(3), rows.filter([r != gone for r in rows["row"].to_pylist()])
        )
    with pytest.raises(
        StoreError, match=r"a row of block 0 seed 0 that the other lacks is 9 in .*/t and 0 in .*/u"
    ):
        joined([one, other], tmp_path / "out")


def test_pixels_that_end_before_the_patches(made: Path, tmp_path: Path) -> None:
    stores = [Path(shutil.copytree(made, tmp_path / name)) for name in "tu"]
    damage_pixel(stores[1])  # so that they are compared
    for store in stores:
        file = store / "pixels.zarr/a/zarr.json"
        about = json.loads(file.read_text())
        about["shape"][0] = 3
        file.write_text(json.dumps(about))
    with pytest.raises(CorruptStore, match=r"keeps 3 patches of slide a, and the manifest lists row \d+"):
        joined(stores, tmp_path / "out")


def test_another_recipe_is_named_with_both_stores(made: Path, tmp_path: Path) -> None:
    changed = replace(RECIPE, patch=replace(RECIPE.patch, mpp=0.25))
    other = make_store(tmp_path / "t", [], changed)
    match = r"recipe\.patch\.mpp: .*/s has 0\.5, .*/t has 0\.25; only stores of one recipe"
    with pytest.raises(RecipeMismatch, match=match) as caught:
        joined([made, other], tmp_path / "out")
    assert changed.digest()[:12] in str(caught.value)


def test_a_patient_in_two_splits_is_a_leak(tmp_path: Path) -> None:
    a = make_store(tmp_path / "a", [MadeSlide("a", 3, columns={"patient_id": "p"})])
    b = make_store(tmp_path / "b", [MadeSlide("b", 3, columns={"patient_id": "p", "split": "val"})])
    with pytest.raises(
        StoreError, match=r"patient p: slide a is in train, slide b in val; .* leaks into validation"
    ):
        joined([a, b], tmp_path / "out")
    both = make_store(
        tmp_path / "both",
        [
            MadeSlide("a", 3, columns={"patient_id": "p"}),
            MadeSlide("b", 3, columns={"patient_id": "p", "split": "val"}),
        ],
    )
    joined([both, a], tmp_path / "as-it-was")
    assert content_digest(tmp_path / "as-it-was") == content_digest(both)


def test_one_file_under_two_names(tmp_path: Path) -> None:
    a = make_store(tmp_path / "a", [MadeSlide("a", 3)])
    b = make_store(tmp_path / "b", [MadeSlide("b", 3, columns={"fingerprint": "fingerprint of a"})])
    with pytest.raises(StoreError, match=r"slides a and b: one file under two names .*--allow-duplicates"):
        joined([a, b], tmp_path / "out")
    assert joined([a, b], tmp_path / "out", allow_duplicates=True).slides == 2


@pytest.mark.slow
@pytest.mark.parametrize("codec", ["int8", "zstd"])
def test_compact_copies_are_shared_like_others(made: Path, tmp_path: Path, codec: str) -> None:
    store = quantised(made, tmp_path / "compact", codec)
    if codec == "int8":
        recipe.save(store, replace(RECIPE, compact={"kind": "int8"}))
    parts = [part(store, tmp_path / n, slides=ids) for n, ids in (("x", ("a", "e")), ("y", ("b", "c", "d")))]
    joined([*parts, store], tmp_path / "out")
    assert content_digest(tmp_path / "out") == content_digest(store)
    assert contents(tmp_path / "out").keys() == contents(store).keys()
    cut = part(store, tmp_path / "cut", seeds=1)
    block = features.open_features(cut, "a").read_block(0, 0)
    np.testing.assert_array_equal(block, features.open_features(store, "a").read_block(0, 0))
    assert features.open_features(cut, "a").n_seeds == 1


def test_features_of_two_forms_are_compared_by_value_and_never_mixed(tmp_path: Path) -> None:
    slide = MadeSlide("a", 1100)
    a = make_store(tmp_path / "a", [replace(slide, n_seeds=1)])
    b = make_store(tmp_path / "b", [replace(slide, blocks=1)])
    packed = quantised(a, tmp_path / "packed", "zstd")
    joined([a, packed], tmp_path / "out")
    assert content_digest(tmp_path / "out") == content_digest(a)
    with pytest.raises(StoreError, match=r"slide a: codecs of the array features is .*crc32c"):
        joined([packed, b], tmp_path / "no")


def test_only_known_and_committed_files_are_copied(made: Path, tmp_path: Path) -> None:
    store = Path(shutil.copytree(made, tmp_path / "s"))
    array = store / layout.feature_array("a", "features")
    for name in ("notes.txt", "features.zarr/a/features/x", "manifest/patches/unlisted.parquet"):
        (store / name).write_text("x")
    (array / "c/7/0").mkdir(parents=True)
    shutil.copy(array / "c/0/0/0", array / "c/7/0/0")
    (store / "README.md").write_text("card")
    (store / "checksums.sha256").write_text("seal")
    result = subset(store, tmp_path / "out", Selection())
    assert contents(tmp_path / "out") == contents(made)
    assert [name.removeprefix(f"{store}/") for name in result.left_out] == [
        "features.zarr/a/features/x",
        "manifest/patches/unlisted.parquet",
        "notes.txt",
    ]
    assert any("is sealed, its copy is not" in note for note in result.notes)
    assert any("README.md not copied" in note for note in result.notes)


def test_links_and_hostile_ids_are_refused(made: Path, tmp_path: Path) -> None:
    store = Path(shutil.copytree(made, tmp_path / "s"))
    (store / "pictures/z.png").symlink_to("/etc/passwd")
    with pytest.raises(CorruptStore, match=r"pictures/z\.png: a symbolic link"):
        joined([made, store], tmp_path / "out")
    (store / "pictures/z.png").unlink()
    edit(store, "c", slide_id="../../c")
    for verb in (lambda: joined([made, store], tmp_path / "out"), lambda: part(store, tmp_path / "out")):
        with pytest.raises(CorruptStore, match=r"slide id '\.\./\.\./c'"):
            verb()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s"]


def test_consolidated_metadata_of_a_group_do_not_come_along(made: Path, tmp_path: Path) -> None:
    store = Path(shutil.copytree(made, tmp_path / "s"))
    group = store / "features.zarr/zarr.json"
    group.write_text(
        json.dumps(json.loads(group.read_text()) | {"consolidated_metadata": {"metadata": {"x": 1}}})
    )
    assert "consolidated" not in (part(store, tmp_path / "out") / "features.zarr/zarr.json").read_text()


@pytest.mark.parametrize("lost", ["features.zarr/a/features/c/1/0/0", "pixels.zarr/a/c/2/0/0/0"])
def test_a_lost_chunk_is_not_passed_on_in_silence(made: Path, tmp_path: Path, lost: str) -> None:
    store = Path(shutil.copytree(made, tmp_path / "s"))
    (store / lost).unlink()
    with pytest.raises(CorruptStore, match=f"{lost}: is missing"):
        part(store, tmp_path / "out")


def test_out_is_never_overwritten_and_one_store_is_too_few(made: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="exists already"):
        joined([made, made], tmp_path)
    with pytest.raises(OptionError, match="two stores or more"):
        joined([made], tmp_path / "out")
    with pytest.raises(StoreError, match="not a store"):
        joined([made, tmp_path], tmp_path / "out")


@pytest.mark.slow
def test_what_was_left_is_not_used_when_a_source_has_changed(made: Path, tmp_path: Path) -> None:
    store = Path(shutil.copytree(made, tmp_path / "s"))

    with pytest.raises(KeyboardInterrupt):
        subset(store, tmp_path / "out", Selection(), Interrupted())
    assert (tmp_path / ".out.partial/features.zarr/a").is_dir()
    damage_feature(store)
    assert content_digest(part(store, tmp_path / "out")) == content_digest(store) != content_digest(made)


@pytest.mark.slow
def test_a_remote_store_is_a_source(made: Path, tmp_path: Path) -> None:
    with open_store(f"file://{made}") as remote:
        out = part(remote, tmp_path / "a", slides=("a", "b", "c"))
        assert content_digest(out) == content_digest(part(made, tmp_path / "same", slides=("a", "b", "c")))
        merge([out, remote], tmp_path / "out", False)
    assert content_digest(tmp_path / "out") == content_digest(made)


@pytest.mark.slow
def test_the_commands(made: Path, tmp_path: Path) -> None:
    halves = [tmp_path / "val", tmp_path / "rest"]
    done = g2l("store", "subset", made, "--out", halves[0], "--split", "val", "--split", "test", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["slides"] == 2
    done = g2l("store", "subset", made, "--out", halves[1], "--where", "split=train")
    assert "3 slides, 103 patches, 303 views under 3 seeds" in done.stdout
    done = g2l("store", "merge", *halves, "--out", tmp_path / "out", "--json")
    assert done.exit_code == 0, done.output
    summary = json.loads(done.stdout)
    assert (summary["slides"], summary["patches"], summary["seeds"]) == (5, 1204, [0, 1, 2])
    assert content_digest(tmp_path / "out") == content_digest(made)
    one_error(g2l("store", "merge", *halves, "--out", tmp_path / "out"), "exists already")
    one_error(
        g2l("store", "subset", made, "--out", tmp_path / "no", "--where", "sitee=1"),
        "no column 'sitee'",
    )
