"""``plan`` for several teachers, and for stores that are begun."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import pipeline as g2l_api
from pipeline.extract import plan
from stores.errors import OptionError, RecipeMismatch, StoreError
from stores.format import manifest
from tests.tools.commands import g2l, one_error

TINY = "tests.tools.tiny:teacher"
"""That of the finished store: 24 numbers, three seeds."""


def n_patches(store: Path) -> dict[str, int]:
    return {row["slide_id"]: row["n_patches"] for row in manifest.read_slides(store)}


def test_patches_are_counted_once_and_each_teacher_is_as_alone(
    slides: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {"seeds": 2, "slides_csv": slides / "slides.csv"}
    of_each: list[dict[str, Any]] = [
        {"teacher": "h-optimus-0", "views_per_s": 10.0},
        {"teacher": "virchow2", "tokens": 5, "pixels": True, "views_per_s": 20.0},
    ]
    alone = [g2l_api.plan([slides], **own, **given) for own in of_each]
    counts: list[object] = []
    true = plan.count
    monkeypatch.setattr(plan, "count", lambda *args: counts.append(args) or true(*args))  # type: ignore[func-returns-value]
    found = g2l_api.plan([slides], teachers=of_each, **given)
    assert len(counts) == 1
    assert found.plans == dict(zip(("h-optimus-0", "virchow2"), alone, strict=True))
    assert found.total_bytes == sum(one.total_bytes or 0 for one in alone)
    assert found.hours == sum(one.hours or 0 for one in alone)
    assert found.left == 2 * alone[0].views
    said = found.lines()
    for one in alone:
        assert all(f"  {line}" in said for line in one.teacher_lines())
    assert len([line for line in said if line.startswith("patches")]) == 1


def test_a_store_says_its_seeds_and_what_is_left(store: Path, tmp_path: Path) -> None:
    sizes = n_patches(store)
    views = 3 * sum(sizes.values())
    b = Path(shutil.copytree(store, tmp_path / "b"))
    for commit in manifest.commits(b, "c"):
        commit.path.unlink()
    (commit,) = manifest.commits(b, "b")
    table = commit.read()
    commit.path.unlink()  # of the slide b the first seed stays, and of the second one all rows but the last
    for seed, count in ((0, sizes["b"]), (1, sizes["b"] - 1)):
        of_seed = table.slice(seed * sizes["b"], count)
        manifest.write_commit(b, "b", 0, range(seed, seed + 1), of_seed)
    found = g2l_api.plan(store, teacher=TINY, pixels=True, views_per_s=1.0, store=b)
    assert (found.seeds, found.views) == (3, views)
    assert found.left == 3 * sizes["c"] + 2 * sizes["b"]
    assert found.left_hours == pytest.approx(found.left / 3600)
    assert found.left_bytes == pytest.approx((found.total_bytes or 0) * found.left / views, abs=1)
    more = g2l_api.plan(store, teacher=TINY, pixels=True, seeds=5, store=store)
    assert more.left == 2 * sum(sizes.values())
    done = g2l_api.plan(store, teacher=TINY, pixels=True, store=store)
    assert done.lines()[-1] == f"left      nothing: {store} has all of them"
    new = g2l_api.plan(
        store,
        teachers=[
            {"teacher": "h-optimus-0", "store": tmp_path / "new"},
            {"teacher": TINY, "store": store, "pixels": True},
        ],
    )
    assert (list(new.plans), new.left) == (["new", "store"], views)
    assert f"left      {views} views to encode" in new.lines()[-1]
    assert not (tmp_path / "new").exists()


def test_a_store_that_is_begun_is_no_other(slides: Path, store: Path, tmp_path: Path) -> None:
    def refused(match: str, kind: type[Exception] = OptionError, **options: Any) -> None:
        given: dict[str, Any] = {"teacher": TINY, "pixels": True, "store": store} | options
        with pytest.raises(kind, match=match):
            g2l_api.plan(given.pop("inputs", store), **given)

    refused("--pixels: not given, and .* was begun with it; give it, or another --store", pixels=False)
    refused("--teacher h-optimus-0: .* was begun with tests.tools.tiny:teacher", teacher="h-optimus-0")
    refused("--dim 8: .* was begun with 24", dim=8)
    refused("--tokens 4: .* was begun without it; leave it out, or another --store", tokens=4)
    refused("recipe.patch.mpp: .* has 0.5, this run has 1.0", RecipeMismatch, inputs=[slides], mpp=1.0)
    other = tmp_path / "other"
    g2l_api.tile([slides], other, max_patches=5)
    refused("slide a: has 5 patches in .*other, and 29 are planned", StoreError, store=other, dim=24)
    wrong: list[tuple[list[dict[str, Any]], str]] = [
        ([], "plan: no teacher"),
        ([{"teacher": TINY, "seeds": 2}], "teacher 1: seeds holds for all teachers"),
        ([{"teacher": TINY, "store": store}] * 2, "given twice"),
    ]
    for teachers, match in wrong:
        with pytest.raises(OptionError, match=match):
            g2l_api.plan(store, teachers=teachers)
    with pytest.raises(OptionError, match="several teachers: give each its own teacher"):
        g2l_api.plan(store, teachers=[{"dim": 3}, {"dim": 4}], teacher=TINY)


def test_the_command(store: Path, tmp_path: Path) -> None:
    both = ["--teacher", "h-optimus-0", "--teacher", "uni2-h"]
    said = g2l("plan", store, *both, "--for", "uni2-h:tokens=4", "--views-per-s", 5, "--json")
    assert said.exit_code == 0, said.output
    found = json.loads(said.stdout)
    assert {name: one["tokens"] for name, one in found["teachers"].items()} == {
        "h-optimus-0": None,
        "uni2-h": 4,
    }
    assert found["together"]["hours"] == pytest.approx(2 * found["views"] / 5 / 3600)
    begun = g2l("plan", store, "--teacher", TINY, "--pixels", "--store", store)
    assert f"left      nothing: {store} has all of them" in begun.stdout
    new = ["--store", tmp_path / "a", "--store", tmp_path / "b"]
    assert "a:\n  bytes" in g2l("plan", store, *both, *new, "--for", "b:dim=9").stdout
    for arguments, match in (
        ((*both, "--store", store), "2 teachers for 1 store; give a --store for each --teacher"),
        (
            (*both, "--for", "x:dim=3"),
            "begins with no teacher of this command; allowed: h-optimus-0:OPTION=VALUE",
        ),
        ((*both, "--for", "uni2-h:seeds=3"), "seeds is no option of one teacher"),
        ((*both, "--for", "uni2-h:store=x"), "store is no option of one teacher"),
        ((*both, "--dim", "3", "--dim", "4"), "--dim: given twice; an option holds for all teachers"),
        ((*both[:2], "--for", "1:dim=3"), "there is one teacher; give the option itself"),
        (
            (*both, *new[:2], "--store", tmp_path / "b/../a"),
            "given twice; each teacher has a store of its own",
        ),
    ):
        one_error(g2l("plan", store, *arguments), match)
