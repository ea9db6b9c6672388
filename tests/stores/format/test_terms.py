"""Terms: what is unknown stays unknown, what one store knows is not lost, foreign files are judged."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from stores.combine.merge import merge
from stores.combine.subset import Selection, subset
from stores.errors import StoreError
from stores.export.export import ExportOptions, export
from stores.export.pseudonyms import Pseudonyms
from stores.format import recipe, terms
from stores.format.licences import front_matter, licence_of
from stores.format.terms import GATED, OPEN, Fact, Terms, expression, union
from stores.io import files

PAGE = "https://example.org/m"
NC = Terms("teacher", Fact("CC-BY-NC-ND-4.0", PAGE, "2026-11"), Fact(GATED, PAGE), Fact("no word", PAGE))
APACHE = Terms("start", Fact("apache-2.0", "timm"))


def test_all_licences_bind_in_one_expression() -> None:
    assert expression([APACHE, NC]) == "Apache-2.0 AND CC-BY-NC-ND-4.0"
    assert expression([APACHE, Terms("start 2", Fact("Apache-2.0"), Fact(OPEN))]) == "Apache-2.0"
    assert expression([]) == expression([Terms("x")]) == "unknown"
    assert expression([Terms("x"), NC]) == "unknown AND CC-BY-NC-ND-4.0"
    own = Terms("owner/Model 2", Fact("Apache-2.0"), Fact("own terms to accept"))
    assert expression([own, NC]) == "Apache-2.0 AND LicenseRef-owner-Model-2-access AND CC-BY-NC-ND-4.0"


@pytest.mark.parametrize(
    ("text", "commercial", "changed", "front"),
    [
        ("Apache-2.0 AND CC-BY-NC-ND-4.0", "no", "no", "apache-2.0-and-cc-by-nc-nd-4.0"),
        ("Apache-2.0 AND unknown", "unknown", "unknown", "apache-2.0-and-unknown"),
        ("unknown AND CC-BY-NC-4.0", "no", "unknown", "unknown-and-cc-by-nc-4.0"),
        ("MIT AND CC-BY-SA-4.0", "yes", "yes, under the same licence", "mit-and-cc-by-sa-4.0"),
        ("Apache-2.0 AND LicenseRef-x-access", "unknown", "unknown", "apache-2.0-and-licenseref-x-access"),
    ],
)
def test_the_strictest_of_several_licences_counts(
    text: str, commercial: str, changed: str, front: str
) -> None:
    found = licence_of(text)
    assert (found.commercial_use, found.changed_material, found.spdx) == (commercial, changed, None)
    assert front_matter(text) == {"license": "other", "license_name": front}


def test_a_union_keeps_what_says_more() -> None:
    assert union([Terms("teacher"), NC], [APACHE], [NC]) == (NC, APACHE)
    assert union([NC], [Terms("teacher", Fact("MIT"))]) == (NC, Terms("teacher", Fact("MIT")))


def test_terms_survive_json() -> None:
    assert terms.from_json(terms.to_json([NC, APACHE]), "x") == (NC, APACHE)


@pytest.mark.parametrize(
    "value",
    [5, {}, [5], [{"encoder": "x"}], [terms.to_json([NC])[0] | {"encoder": 5}],
     [terms.to_json([NC])[0] | {"licence": "MIT"}], terms.to_json([NC]) * 65,
     [terms.to_json([NC])[0] | {"licence": {"says": 1, "source": "", "date": ""}}]],
)  # fmt: skip
def test_terms_of_another_form_are_one_line(value: Any) -> None:
    with pytest.raises(StoreError, match=r"^here: ") as caught:
        terms.from_json(value, "here")
    assert "\n" not in str(caught.value)


def test_texts_of_terms_are_one_short_line() -> None:
    (found,) = terms.from_json(
        terms.to_json([Terms("a\n---\nb", Fact("\x1b[31mMIT\n" + "x" * 9999))]), "here"
    )
    assert found.encoder == "a --- b"
    assert found.licence.says.isprintable()
    assert len(found.licence.says) <= 500


def record(store: Path, values: dict[str, Any]) -> None:
    path = store / "options/extract-teacher.json"
    kept = {key: value for key, value in files.read_json(path).items() if not key.startswith("teacher_")}
    files.write_json(path, kept | values)


def test_an_old_store_has_a_licence_alone(copy: Path) -> None:
    name = recipe.load_complete(copy).teacher.name
    record(copy, {"teacher_licence": "CC-BY-NC-ND-4.0"})
    (found,) = terms.of_store(copy, name)
    assert (found.encoder, found.licence.says, found.access) == (name, "CC-BY-NC-ND-4.0", Fact())
    record(copy, {})
    assert terms.of_store(copy, name) == (Terms(name),)
    record(copy, terms.recorded([APACHE]) | {"teacher_licence": "CC-BY-NC-ND-4.0"})
    assert expression(terms.of_store(copy, name)) == "Apache-2.0 AND CC-BY-NC-ND-4.0"


def test_copies_keep_the_terms(copy: Path, tmp_path: Path) -> None:
    name = recipe.load_complete(copy).teacher.name
    secret = Terms("/home/alice/mine.py:make", Fact("MIT", "declared by the function"))
    record(copy, terms.recorded([NC, secret]))
    export(copy, tmp_path / "e", ExportOptions(pseudonyms=Pseudonyms(b"k" * 32)))
    found = terms.of_store(tmp_path / "e", name)
    assert found == (NC, Terms("mine.py:make", secret.licence))
    subset(copy, tmp_path / "s", Selection(splits=("train",)))
    assert terms.of_store(tmp_path / "s", name) == (NC, secret)


def test_a_merge_loses_no_licence(copy: Path, tmp_path: Path) -> None:
    name = recipe.load_complete(copy).teacher.name
    other = Path(shutil.copytree(copy, tmp_path / "other"))
    record(copy, {"teacher_licence": "Apache-2.0"})
    record(other, terms.recorded([NC]))
    merge([copy, other], tmp_path / "m")
    assert expression(terms.of_store(tmp_path / "m", name)) == "Apache-2.0 AND CC-BY-NC-ND-4.0"
    assert NC in terms.of_store(tmp_path / "m", name)
