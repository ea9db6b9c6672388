"""The recipe: identity, differences, untrusted JSON."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stores.errors import CorruptStore, RecipeMismatch, StoreError
from stores.format import layout, recipe

PATCH = recipe.Patch(0.5, 256, "non-overlapping", 0.5, {"kind": "classical", "version": 1})
TEACHER = recipe.Teacher("t", "ab" * 32, "cls", (0.7, 0.6, 0.7), (0.2, 0.2, 0.2), 224, 1536, "float32")
READER = recipe.Reader("4.0.1", "5.0.0", "area-integer-1", "views-1", "as stored")
WHOLE = recipe.Recipe(PATCH, TEACHER, {"name": "g2l", "hue": 0.05}, READER)


def test_digest_is_pinned() -> None:
    """Other labs compare it: a change of the canonical form is a new schema."""
    assert WHOLE.digest() == "86eb11f0cd58e59dc899ca93c46bb2efde55310dd8f657a727669065147cc18d"


def test_round_trip(tmp_path: Path) -> None:
    for value in (WHOLE, recipe.Recipe(PATCH)):
        recipe.save(tmp_path, value)
        assert recipe.load(tmp_path) == value
        assert recipe.load(tmp_path).digest() == value.digest()


def test_complete_needs_teacher_policy_and_reader() -> None:
    assert WHOLE.complete
    for name in ("teacher", "policy", "reader"):
        without: dict[str, Any] = {name: None}
        assert not replace(WHOLE, **without).complete


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        (replace(WHOLE, teacher=replace(TEACHER, dtype="bfloat16")), "teacher.dtype"),
        (replace(WHOLE, teacher=replace(TEACHER, mean=(0.1, 0.6, 0.7))), "teacher.mean"),
        (replace(WHOLE, patch=replace(PATCH, tissue={"kind": "mask", "version": 1})), "patch.tissue.kind"),
        (replace(WHOLE, policy={"name": "g2l", "hue": 0.06}), "policy.hue"),
        (replace(WHOLE, reader=replace(READER, openslide="3.4.1")), "reader.openslide"),
    ],
)
def test_mismatch_names_the_field_and_both_values(changed: recipe.Recipe, name: str) -> None:
    assert changed.digest() != WHOLE.digest()
    ((found, old, new),) = recipe.differences(WHOLE, changed)
    assert found == name
    with pytest.raises(RecipeMismatch) as caught:
        recipe.require_same(WHOLE, changed, "the store")
    message = str(caught.value)
    assert f"recipe.{name}" in message
    assert repr(old) in message
    assert repr(new) in message
    assert "\n" not in message


def test_several_differences_are_all_named() -> None:
    changed = replace(WHOLE, teacher=replace(TEACHER, dim=8, dtype="float16"))
    with pytest.raises(RecipeMismatch, match=r"1 more: teacher\.dtype"):
        recipe.require_same(WHOLE, changed, "the store")


def broken(**changes: Any) -> dict[str, Any]:
    return {**WHOLE.to_json(), **changes}


@pytest.mark.parametrize(
    ("value", "match"),
    [
        ([], "JSON object"),
        (broken(schema=2), "schema 2"),
        (broken(extra=1), "unknown field 'extra'"),
        (broken(patch=None), "patch: expected the fields"),
        (broken(policy=[1]), "policy: expected an object"),
        (broken(patch={**WHOLE.to_json()["patch"], "mpp": "0.5"}), r"patch\.mpp"),
        (broken(teacher={**WHOLE.to_json()["teacher"], "dim": True}), r"teacher\.dim"),
        (broken(teacher={**WHOLE.to_json()["teacher"], "mean": [1, 2]}), r"teacher\.mean"),
        (broken(teacher={**WHOLE.to_json()["teacher"], "mean": {}}), r"teacher\.mean"),
    ],
)
def test_foreign_json_is_checked(value: Any, match: str) -> None:
    with pytest.raises(StoreError, match=match):
        recipe.from_json(value, "recipe.json")


def test_no_store(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="not a store; make one"):
        recipe.load(tmp_path)


def test_a_saved_recipe_proves_itself(tmp_path: Path) -> None:
    recipe.save(tmp_path, WHOLE)
    assert recipe.load(tmp_path) == WHOLE
    path = tmp_path / layout.RECIPE
    path.write_text(path.read_text().replace('"min_tissue": 0.5', '"min_tissue": 0.7'))
    with pytest.raises(CorruptStore, match="its digest differs"):
        recipe.load(tmp_path)


def test_a_part_that_came_later_does_not_change_older_digests() -> None:
    assert "compact" not in WHOLE.to_json()
    other = replace(WHOLE, compact={"kind": "int8"})
    assert recipe.from_json(other.to_json(), "r") == other
    assert other.digest() != WHOLE.digest()


def _declared(**changes: object) -> recipe.Recipe:
    about = recipe.Declared("trident", 256, "bilinear", "12.0.0")
    teacher = replace(TEACHER, weights_sha256=recipe.UNKNOWN)
    patch = replace(PATCH, grid=recipe.AS_DECLARED)
    whole = replace(WHOLE, patch=patch, teacher=teacher, declared=about)
    return replace(whole, **changes)  # type: ignore[arg-type]


def test_declared_features_are_a_part_of_their_own() -> None:
    assert "declared" not in WHOLE.to_json()
    found = recipe.from_json(_declared().to_json(), "x")
    assert found == _declared()
    assert recipe.require_complete(found, Path("s")).declared == found.declared
    assert list(recipe.problems(found)) == []
    assert found.digest() != replace(found, declared=None).digest()


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"declared": None}, "patch.grid 'declared', without a part `declared`"),
        ({"patch": PATCH}, "patch.grid 'non-overlapping', with a part `declared`"),
        ({"declared": recipe.Declared("x", 256, "bilinear", "1")}, "declared.by 'x'; allowed: trident, clam"),
        (
            {"declared": recipe.Declared("clam", 256, "x", "1")},
            "declared.filter 'x'; allowed: bilinear, bicubic",
        ),
        (
            {"declared": recipe.Declared("clam", 0, "bicubic", "1")},
            "declared.cut_px 0; allowed is 1 to 32767",
        ),
        ({"tokens": recipe.Tokens(1, 2, 3, "tokens-1")}, "tokens, which no declared teacher has"),
    ],
)
def test_contradictions_of_declared_features(changes: dict[str, object], problem: str) -> None:
    assert problem in list(recipe.problems(_declared(**changes)))


def test_only_declared_weights_are_unknown() -> None:
    own = replace(WHOLE, teacher=replace(TEACHER, weights_sha256=recipe.UNKNOWN))
    assert any("weights_sha256 'unknown'; allowed are 64 hex digits" in text for text in recipe.problems(own))


def test_what_surrounds_small_tiles_is_known() -> None:
    for pad, expected in (("white", []), ("x", ["patch.tissue.pad 'x'; allowed: none, white, reflect"])):
        patch = replace(PATCH, grid=recipe.IN_TILES, tissue={"kind": "none", "pad": pad})
        assert [text for text in recipe.problems(replace(WHOLE, patch=patch)) if "pad" in text] == expected
