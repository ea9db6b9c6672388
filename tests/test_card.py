"""The card: hubs and mlcroissant take it, licences say whom they bind, foreign text stays text."""

import dataclasses
import json
import logging
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

import cli
from stores import files, manifest, recipe
from stores.card import CardOptions, consequences, plain, write_card
from stores.errors import OptionError, StoreError
from stores.export import ExportOptions, export
from stores.info import store_info
from tests.store_tools import make_store

OPTIONS = CardOptions("TCGA breast, H-optimus-0", "2026-11-26", creator="Lab A")


@pytest.fixture
def copy(store: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(store, tmp_path / "store"))


def front_matter(store: Path) -> tuple[dict[str, Any], str]:
    _, head, body = (store / "README.md").read_text().split("---\n", 2)
    found: dict[str, Any] = yaml.safe_load(head)
    return found, body


def with_licence(store: Path, licence: str) -> None:
    path = store / "options/extract-teacher.json"
    files.write_json(path, files.read_json(path) | {"teacher_licence": licence})


def test_front_matter_and_cohort(copy: Path) -> None:
    with_licence(copy, "Apache-2.0")
    write_card(copy, dataclasses.replace(OPTIONS, columns=("site",)))
    head, body = front_matter(copy)
    assert head["license"] == "apache-2.0"
    assert head["pretty_name"] == OPTIONS.name
    assert head["size_categories"] == ["n<1K"]
    assert head["task_categories"] == ["image-feature-extraction"]
    rows = [row for row in manifest.read_slides(copy) if row["site"] == "x"]
    assert f"| x | 2 | 2 | {sum(row['n_patches'] for row in rows)} |" in body
    assert recipe.load(copy).digest() in body
    assert recipe.load(copy).teacher.weights_sha256 in body  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("licence", "text", "tag"),
    [
        ("CC-BY-NC-ND-4.0", "may not be used commercially", "cc-by-nc-nd-4.0"),
        ("Apache-2.0", "allows any use", "apache-2.0"),
        ("own terms", "Read its terms", "other"),
        ("", "Nobody may assume a permission", "other"),
    ],
)
def test_what_the_teachers_licence_means(copy: Path, licence: str, text: str, tag: str) -> None:
    with_licence(copy, licence)
    write_card(copy, OPTIONS)
    head, body = front_matter(copy)
    assert text in body
    assert "the teacher's terms bind whoever trains on them" in " ".join(body.split())
    assert head["license"] == tag
    assert consequences("mit") != consequences("cc-by-nc-4.0")


def test_the_code_of_the_card_runs(copy: Path) -> None:
    write_card(copy, OPTIONS)
    (code,) = re.findall(r"```python\n(.*?)```", (copy / "README.md").read_text(), flags=re.S)
    check = "\nassert centre_crops.shape[1] == 24, centre_crops.shape\nassert len(views) > 0"
    subprocess.run([sys.executable, "-c", code + check], cwd=copy, check=True)


def test_same_inputs_same_bytes(copy: Path) -> None:
    write_card(copy, OPTIONS)
    first = [(copy / name).read_bytes() for name in ("README.md", "croissant.json")]
    write_card(copy, OPTIONS)
    assert [(copy / name).read_bytes() for name in ("README.md", "croissant.json")] == first


@pytest.mark.filterwarnings("ignore:ConjunctiveGraph is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The inplace keyword")  # pandas about mlcroissant
def test_croissant_validates_and_loads_records(copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    import mlcroissant

    write_card(copy, OPTIONS)
    with caplog.at_level(logging.WARNING):
        data = mlcroissant.Dataset(jsonld=str(copy / "croissant.json"), mapping={"store": str(copy)})
    assert not caplog.records, caplog.text
    assert not data.metadata.ctx.issues.errors
    assert not data.metadata.ctx.issues.warnings
    found = [record["slides/slide_id"].decode() for record in data.records("slides")]
    assert found == [row["slide_id"] for row in manifest.read_slides(copy)]
    crcs = sorted(record["views/view_crc32"] for record in data.records("views"))
    assert crcs == sorted(crc for c in manifest.commits(copy) for crc in c.read()["view_crc32"].to_pylist())


@pytest.mark.filterwarnings("ignore:ConjunctiveGraph is deprecated:DeprecationWarning")
def test_croissant_names_the_bytes_of_the_slides_table(copy: Path) -> None:
    import mlcroissant

    write_card(copy, OPTIONS)
    manifest.write_slides(copy, [row | {"reason": "x"} for row in manifest.read_slides(copy)])
    data = mlcroissant.Dataset(jsonld=str(copy / "croissant.json"))
    with pytest.raises(Exception, match="slides"):
        list(data.records("slides"))


def test_foreign_text_stays_text(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>|`x`\n---\nlicense: mit\n[a](javascript:b)"
    store = make_store(tmp_path / "s", {"a": 5}, own={"a": {"site": evil, "vendor": evil}})
    stored = recipe.load(store)
    assert stored.teacher is not None
    recipe.save(
        store,
        dataclasses.replace(
            stored,
            teacher=dataclasses.replace(stored.teacher, name=evil, pooling=evil),
            policy={"name": evil},
        ),
    )
    files.write_json(store / "options/extract-teacher.json", {"teacher_licence": evil})
    write_card(store, dataclasses.replace(OPTIONS, name=evil, columns=("site",)))
    text = (store / "README.md").read_text()
    head, body = front_matter(store)
    assert head["license"] == "other"
    assert "<script" not in body
    assert "](javascript" not in body
    assert not [line for line in text.splitlines() if line.startswith("license: mit")]
    widths = {line.count("|") for line in body.splitlines() if line.startswith("| ") and "slides" not in line}
    assert widths <= {3, 5}
    assert json.loads((store / "croissant.json").read_text())["license"] == evil
    assert plain("a\n\n# b") == "a # b"


def test_own_columns_are_asked_for_by_name(copy: Path) -> None:
    write_card(copy, OPTIONS)
    assert "site" not in (copy / "README.md").read_text()
    with pytest.raises(OptionError, match="--column grade: no such column; there are site"):
        write_card(copy, dataclasses.replace(OPTIONS, columns=("grade",)))


def test_a_compact_copy_says_what_it_lost(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", {"a": 40})
    export(store, tmp_path / "q", ExportOptions(compact="int8"), lambda *x: None, lambda *x: None)
    write_card(tmp_path / "q", OPTIONS)
    found = recipe.load(tmp_path / "q").compact
    assert found is not None
    assert f"| relative_error | {found['relative_error']} |" in (tmp_path / "q/README.md").read_text()


def test_not_for_sealed_or_empty_stores(copy: Path, tmp_path: Path) -> None:
    (copy / "checksums.sha256").touch()
    with pytest.raises(OptionError, match="is sealed"):
        write_card(copy, OPTIONS)
    recipe.save(tmp_path / "tiled", recipe.Recipe(recipe.load(copy).patch))
    with pytest.raises(StoreError, match="has no teacher features yet"):
        write_card(tmp_path / "tiled", OPTIONS)


def test_the_command(copy: Path) -> None:
    done = CliRunner().invoke(cli.g2l, ["store", "card", str(copy), "--date", "2026-11-26", "--json"])
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["written"] == [str(copy / "README.md"), str(copy / "croissant.json")]
    assert json.loads((copy / "croissant.json").read_text())["datePublished"] == "2026-11-26"


def test_statistics_are_those_of_the_features(store: Path) -> None:
    import numpy as np

    from stores import features

    parts = []
    for slide_id in "abc":
        opened = features.open_features(store, slide_id)
        parts += [opened.read_block(seed, 0) for seed in range(opened.n_seeds)]
    every = np.concatenate(parts).astype(np.float64)
    found = store_info(store)["statistics"]
    assert found["views"] == len(every)
    assert found["mean_min"] == pytest.approx(every.mean(axis=0).min())
    assert found["std_median"] == pytest.approx(np.median(every.std(axis=0)))
    assert found["constant_dimensions"] == 0
