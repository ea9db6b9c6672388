"""The card: hubs and mlcroissant take it, licences say whom they bind, foreign text stays text."""

import dataclasses
import datetime
import hashlib
import json
import logging
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner

import cli
from stores.errors import OptionError, StoreError
from stores.export.export import ExportOptions, export
from stores.format import features, manifest, recipe
from stores.format.licences import LICENCES, Licence, licence_of
from stores.io import files
from stores.io.text import markdown, one_line
from stores.publish.card import MAX_GROUPS, CardOptions, compact_lines, size_category, write_card
from tests.tools.stores import make_store

OPTIONS = CardOptions("brca", "2026-11-26", title="TCGA breast, H-optimus-0", creator="Lab A")


@pytest.fixture
def copy(store: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(store, tmp_path / "store"))


def front_matter(store: Path) -> tuple[dict[str, Any], str]:
    _, head, body = (store / "README.md").read_text().split("---\n", 2)
    found: dict[str, Any] = yaml.safe_load(head)
    return found, body


def with_licence(store: Path, licence: str) -> None:
    """As stores were recorded before they had terms."""
    path = store / "options/extract-teacher.json"
    kept = {key: value for key, value in files.read_json(path).items() if key != "teacher_terms"}
    files.write_json(path, kept | {"teacher_licence": licence})


def test_front_matter_and_cohort(copy: Path) -> None:
    with_licence(copy, "Apache-2.0")
    write_card(copy, dataclasses.replace(OPTIONS, cohort_column=("site",)))
    head, body = front_matter(copy)
    assert head["license"] == "apache-2.0"
    assert head["pretty_name"] == OPTIONS.title
    assert head["size_categories"] == ["n<1K"]
    assert head["task_categories"] == ["image-feature-extraction"]
    rows = [row for row in manifest.read_slides(copy) if row["site"] == "x"]
    n = sum(row["n_patches"] for row in rows)
    assert f"| x | 2 | 2 | {n} | {3 * n} |" in body
    assert "| all | 3 | 3 | 89 | 267 |" in body
    assert recipe.load(copy).digest() in body
    assert recipe.load(copy).teacher.weights_sha256 in body  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("licence", "commercial", "changed", "tag"),
    [
        ("CC-BY-NC-ND-4.0", "no", "no", "cc-by-nc-nd-4.0"),
        ("CC BY-NC 4.0", "no", "yes", "cc-by-nc-4.0"),
        ("cc-by-nd-4.0", "yes", "no", "cc-by-nd-4.0"),
        ("cc-by-sa-4.0", "yes", "yes, under the same licence", "cc-by-sa-4.0"),
        ("Apache-2.0", "yes", "yes", "apache-2.0"),
        ("Apache-2.0, non-commercial use only", "unknown", "unknown", "other"),
        ("own terms", "unknown", "unknown", "other"),
        ("", "unknown", "unknown", "unknown"),
    ],
)
def test_what_the_card_knows_of_the_teachers_licence(
    copy: Path, licence: str, commercial: str, changed: str, tag: str
) -> None:
    with_licence(copy, licence)
    write_card(copy, OPTIONS)
    head, body = front_matter(copy)
    assert "| licence | of the teacher, as recorded by the maker of this store |" in body
    assert f"| name | **{licence_of(licence).spdx or licence or 'unknown'}** |" in body
    assert f"| commercial use | {commercial} |" in body
    assert f"| passing on of changed material | {changed} |" in body
    assert ("| text | https://" in body) == ("| text | unknown |" not in body) == (commercial != "unknown")
    assert "the teacher's terms bind everyone who trains on them" in body
    assert f"| tests.tools.tiny:teacher | {licence or 'unknown'}" in body  # as it was written
    assert "| unknown | unknown |\n\nUnknown means that this card does not know it" in body
    assert "not legal advice" in body
    assert head["license"] == tag


@pytest.mark.parametrize(
    "licence",
    ["Apache-2.0, non-commercial use only", "MIT (NC)", "Apache-2.0 nonCommercial", "apache-2.0-no-derivatives",
     "permissive", "Apache", "Apache-2.0 with additions", "academic use only", " ?! ", "", "unknown", "none"],
)  # fmt: skip
def test_nothing_is_known_of_a_licence_that_is_not_named_exactly(licence: str) -> None:
    found = licence_of(licence)
    assert found == Licence(found.tag)
    assert "unknown" == found.commercial_use == found.changed_material == found.outputs == found.source
    assert found.tag not in LICENCES


def test_no_restriction_gets_lost_in_the_table_of_licences() -> None:
    for tag, licence in LICENCES.items():
        assert licence_of(licence.spdx or licence.tag) is licence
        assert (licence.commercial_use == "no") == ("-nc" in tag or "-non-commercial" in tag)
        assert (licence.changed_material == "no") == ("-nd" in tag)
        assert licence.source.startswith("https://")


@pytest.mark.parametrize(
    ("n_views", "category"),
    [(999, "n<1K"), (1000, "1K<n<10K"), (40_000_000, "10M<n<100M"), (10**9, "1B<n<10B"), (10**12, "n>1T")],
)
def test_size_categories_are_those_of_the_hub(n_views: int, category: str) -> None:
    assert size_category(n_views) == category


def test_another_licence_does_not_hide_the_recorded_one(copy: Path) -> None:
    with_licence(copy, "CC-BY-NC-ND-4.0")
    write_card(copy, dataclasses.replace(OPTIONS, licence="MIT"))
    head, body = front_matter(copy)
    assert head["license"] == "mit"
    assert (
        "| licence | of the teacher, as recorded by the maker of this store | of the features, as stated"
        in body
    )
    assert "| name | **CC-BY-NC-ND-4.0** | **MIT** |" in body
    assert "| commercial use | no | yes |" in body
    assert "cannot permit what the teacher's terms do not" in body
    assert json.loads((copy / "croissant.json").read_text())["license"] == "https://spdx.org/licenses/MIT"


def run_code(store: Path, check: str) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (store / "README.md").read_text(), flags=re.S)
    subprocess.run([sys.executable, "-W", "error", "-c", code + check], cwd=store, check=True)


@pytest.mark.slow
def test_the_code_of_the_card_reads_the_features(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", {"a": 40, "b": 1100})
    write_card(store, OPTIONS)
    ok = [row for row in range(1100) if row != 1]
    opened = features.open_features(store, "b")
    expected = np.concatenate([opened.read_block(0, 0), opened.read_block(0, 1)])[ok]
    np.save(tmp_path / "expected.npy", expected)
    run_code(
        store, "\nimport numpy as np\nnp.testing.assert_array_equal(targets, np.load('../expected.npy'))"
    )


@pytest.mark.slow
def test_the_code_of_the_card_rebuilds_a_compact_copy(tmp_path: Path) -> None:
    export(make_store(tmp_path / "s", {"a": 40}), tmp_path / "q", ExportOptions(compact="int8"))
    write_card(tmp_path / "q", OPTIONS)
    block = features.open_features(tmp_path / "q", "a").read_block(0, 0)
    np.save(tmp_path / "expected.npy", np.delete(block, 1, axis=0))
    check = "np.testing.assert_allclose(targets, np.load('../expected.npy'), rtol=1e-3, atol=1e-4)"
    run_code(tmp_path / "q", f"\nimport numpy as np\n{check}")


def test_same_inputs_same_bytes(copy: Path) -> None:
    write_card(copy, OPTIONS)
    first = [(copy / name).read_bytes() for name in ("README.md", "croissant.json")]
    write_card(copy, OPTIONS)
    assert [(copy / name).read_bytes() for name in ("README.md", "croissant.json")] == first


def croissant_of(store: Path) -> Any:
    import mlcroissant

    return mlcroissant.Dataset(jsonld=str(store / "croissant.json"))


def as_python(value: Any) -> Any:
    """A value of mlcroissant, which gives text as bytes and passes numbers through float where some are missing."""
    return value.decode() if isinstance(value, bytes) else value


def quiet(test: Any) -> Any:
    """Without the warnings that rdflib and pandas have for mlcroissant."""
    for text in ("ConjunctiveGraph is deprecated:DeprecationWarning", "The inplace keyword"):
        test = pytest.mark.filterwarnings(f"ignore:{text}")(test)
    return test


@pytest.mark.slow
@quiet
@pytest.mark.parametrize("kind", ["extracted", "with bad reads and a slide without tissue"])
def test_croissant_validates_and_loads_records(
    kind: str, store: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "store"
    if kind == "extracted":
        shutil.copytree(store, path)
    else:
        make_store(path, {"a": 40, "b": 0, "cv": 7}, own={"a": {"site": "x", "age, <b>": "7"}})
    write_card(path, OPTIONS)
    with caplog.at_level(logging.WARNING):
        data = croissant_of(path)
    assert not caplog.records, caplog.text
    assert not data.metadata.ctx.issues.errors
    assert not data.metadata.ctx.issues.warnings
    tables = {"slides": "manifest/slides.parquet", "views": "manifest/views"}
    fields = {f.id: f.source.extract.column for r in data.metadata.record_sets for f in r.fields}
    for name, table in tables.items():
        expected = [dict(sorted(row.items())) for row in pq.read_table(path / table).to_pylist()]
        found = [
            dict(sorted((fields[key], as_python(value)) for key, value in record.items()))
            for record in data.records(name)
        ]
        assert found == expected


@pytest.mark.slow
@quiet
def test_croissant_names_the_bytes_of_the_slides_table(copy: Path) -> None:
    write_card(copy, OPTIONS)
    manifest.write_slides(copy, [row | {"reason": "x"} for row in manifest.read_slides(copy)])
    with pytest.raises(Exception, match="slides-table") as caught:
        list(croissant_of(copy).records("slides"))
    assert "is not identical" in str(caught.value.__cause__)


def test_croissant_lists_what_is_there(copy: Path) -> None:
    write_card(copy, OPTIONS)
    listed = {item["@id"]: item for item in json.loads((copy / "croissant.json").read_text())["distribution"]}
    assert set(listed) == {"recipe", "slides-table", "patches-tables", "views-tables", "features", "pixels"}
    for item in listed.values():
        assert list(copy.glob(item.get("contentUrl") or item["includes"]))
    digest = hashlib.sha256((copy / "recipe.json").read_bytes()).hexdigest()
    assert listed["recipe"]["sha256"] == digest
    # no attention here
    assert listed["features"]["description"].endswith("tokens[seed, row, token, dimension].")


EVIL = "<script>alert(1)</script>|`x`\n---\nlicense: mit\n[a](javascript:b) ~~\u202e\x1b[31m https://evil.example"


def test_foreign_text_stays_text(tmp_path: Path) -> None:
    own = {"site": EVIL, "vendor": EVIL, EVIL: EVIL}
    store = make_store(
        tmp_path / "s", {"a": 5, "b": 5}, own={"a": own, "b": {"status": EVIL, "reason": EVIL}}
    )
    stored = recipe.load(store)
    assert stored.teacher is not None
    assert stored.reader is not None
    hostile = dataclasses.replace(
        stored,
        teacher=dataclasses.replace(stored.teacher, name=EVIL, pooling=EVIL, dtype=EVIL, weights_sha256=EVIL),
        patch=dataclasses.replace(stored.patch, grid=EVIL),
        policy={"name": EVIL, EVIL: EVIL},
        reader=recipe.Reader(*[EVIL] * 5),
    )
    recipe.save(store, hostile)
    files.write_json(store / "options/extract-teacher.json", {"teacher_licence": EVIL})
    write_card(store, CardOptions(EVIL, "2026-11-26", EVIL, EVIL, cohort_column=("site", EVIL)))
    text = (store / "README.md").read_text()
    head, body = front_matter(store)
    assert set(head) == {"license", "license_name", "pretty_name", "tags", "task_categories", "size_categories",
                         "configs"}  # fmt: skip
    assert head["license"] == "other"
    assert re.fullmatch("[a-z0-9.-]{1,100}", head["license_name"])
    assert body.count("&lt;script&gt;") > 12
    for bad in ("<script", "](javascript", "\u202e", "\x1b", "https://evil"):
        assert bad not in body
    assert text.count("\n---\n") == 1
    for table in re.findall(r"(?:^\|.*\n)+", body, flags=re.M):
        assert len({line.count("|") for line in table.splitlines()}) == 1
    described = json.loads((store / "croissant.json").read_text())
    assert described["license"] == one_line(EVIL)
    assert "\u202e" not in described["description"]
    assert markdown("a\n\n# b") == "a # b"


def test_text_that_no_file_can_hold(tmp_path: Path) -> None:
    """JSON can spell half a character, which is no text in UTF-8."""
    store = make_store(tmp_path / "s", {"a": 5})
    files.write_json(store / "options/extract-teacher.json", {"teacher_licence": "\ud800"})
    write_card(store, OPTIONS)
    assert "| name | **?** |" in (store / "README.md").read_text()


@pytest.mark.slow
def test_a_column_of_many_values_is_cut(tmp_path: Path) -> None:
    slides = {f"s{i}": 3 for i in range(MAX_GROUPS + 2)}
    own = {slide_id: {"note": f"{i:03d}"} for i, slide_id in enumerate(slides)}
    store = make_store(tmp_path / "s", slides, records=[range(1)], own=own)
    write_card(store, dataclasses.replace(OPTIONS, cohort_column=("note",)))
    body = front_matter(store)[1]
    assert "| 049 | 1 | 1 | 3 | 2 |" in body
    assert "| 050 |" not in body
    assert "| 2 more values | 2 | 2 | 6 | 4 |" in body


def test_own_columns_are_asked_for_by_name(copy: Path) -> None:
    write_card(copy, OPTIONS)
    assert "site" not in (copy / "README.md").read_text()
    with pytest.raises(OptionError, match="--cohort-column grade: no such column; there are site"):
        write_card(copy, dataclasses.replace(OPTIONS, cohort_column=("grade",)))


def test_a_compact_copy_says_what_it_lost(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", {"a": 40})
    assert compact_lines(recipe.load(store).to_json()) == ""
    export(store, tmp_path / "q", ExportOptions(compact="int8"))
    write_card(tmp_path / "q", OPTIONS)
    found = recipe.load(tmp_path / "q").compact
    assert found is not None
    body = (tmp_path / "q/README.md").read_text()
    assert f"| relative_error | {found['relative_error']} |" in body
    assert "stored in int8" in body
    lines = compact_lines({"compact": {"kind": "<x>", "error": 0.25, "by": {"no": "scalar"}}})
    assert lines.splitlines()[-2:] == ["| error | 0.25 |", "| kind | &lt;x&gt; |"]


def test_unusable_slides_are_counted_and_not_named(copy: Path) -> None:
    row = {"slide_id": "secret", "patient_id": "q", "split": "train", "status": "failed", "n_patches": 0}
    manifest.write_slides(
        copy, [*manifest.read_slides(copy), row | {"reason": "/home/a/secret.svs: not a slide"}]
    )
    write_card(copy, OPTIONS)
    body = (copy / "README.md").read_text()
    assert "slides that could not be used (failed 1)" in body
    assert "secret" not in body + (copy / "croissant.json").read_text()


def test_not_for_sealed_or_empty_stores(copy: Path, tmp_path: Path) -> None:
    (copy / "checksums.sha256").touch()
    with pytest.raises(OptionError, match="is sealed"):
        write_card(copy, OPTIONS)
    recipe.save(tmp_path / "tiled", recipe.Recipe(recipe.load(copy).patch))
    with pytest.raises(StoreError, match="has no teacher features yet"):
        write_card(tmp_path / "tiled", OPTIONS)


def test_a_store_without_its_slides_table(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", {"a": 5})
    manifest.slides_path(store).unlink()
    with pytest.raises(StoreError, match=r"no manifest/slides\.parquet"):
        write_card(store, OPTIONS)
    assert not (store / "README.md").exists()


@pytest.mark.parametrize(
    "url", ["javascript:alert(1)", "https://a b", "https://a>", "https://a|b", "file:///x"]
)
def test_addresses(copy: Path, url: str) -> None:
    with pytest.raises(OptionError, match="--url"):
        write_card(copy, dataclasses.replace(OPTIONS, url=url))
    write_card(copy, dataclasses.replace(OPTIONS, url="https://hub.example/brca"))
    assert (copy / "README.md").read_text().count("<https://hub.example/brca>") == 2
    assert json.loads((copy / "croissant.json").read_text())["url"] == "https://hub.example/brca"


def test_the_command(copy: Path) -> None:
    done = CliRunner().invoke(cli.g2l, ["store", "card", str(copy), "--date", "2026-11-26", "--json"])
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["written"] == [str(copy / "README.md"), str(copy / "croissant.json")]
    assert json.loads((copy / "croissant.json").read_text())["datePublished"] == "2026-11-26"
    assert "# store\n" in (copy / "README.md").read_text()
    wrong = CliRunner().invoke(cli.g2l, ["store", "card", str(copy), "--date", "yesterday"])
    assert wrong.exit_code == 2
    today = datetime.date.today().isoformat()
    more = ["--title", "T", "--creator", "C", "--licence", "MIT", "--cohort-column", "site", "--name", "n"]
    assert CliRunner().invoke(cli.g2l, ["store", "card", str(copy), *more]).exit_code == 0
    described = json.loads((copy / "croissant.json").read_text())
    assert [described[key] for key in ("name", "alternateName", "datePublished")] == ["n", "T", today]
    assert described["creator"]["name"] == "C"
    assert "| site |" in (copy / "README.md").read_text()
