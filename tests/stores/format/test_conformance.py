"""The conformance suite passes on whole stores of every form and fails, by the right test, on damaged ones."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.runtime.progress import Silent
from pipeline.verify.verify import seal_store
from stores.export.export import ExportOptions, export
from stores.format import attention, features, manifest, tokens
from tests.tools.stores import ATTENTION, TOKENS, make_store


def change(column: str, values: Callable[[list[Any]], list[Any]]) -> Callable[[Path], None]:
    def damage(store: Path) -> None:
        commit = next(manifest.commits(store, "a"))
        table = commit.read()
        at = table.column_names.index(column)
        new = pa.array(values(table[column].to_pylist()), table[column].type)
        manifest.write_commit(store, "a", commit.block, commit.seeds, table.set_column(at, column, new))

    return damage


def edit(name: str, how: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def damage(store: Path) -> None:
        (store / name).write_bytes(how((store / name).read_bytes()))

    return damage


def other_stats(store: Path) -> None:
    features.write_stats(store, "a", 1, 0, features.open_features(store, "a").read_block(0, 0))


def a_nan(store: Path) -> None:
    values = features.open_features(store, "a").read_block(1, 0).copy()
    values[5] = np.nan
    features.write_block(store, "a", 1, 0, values)


def two_splits(store: Path) -> None:
    rows = manifest.read_slides(store)
    pairs = zip(rows, ("val", "train"), strict=True)
    manifest.write_slides(store, [row | {"patient_id": "p", "split": split} for row, split in pairs])


def other_coords(store: Path) -> None:
    shutil.copytree(store / "features.zarr/b/coords", store / "features.zarr/a/coords", dirs_exist_ok=True)


def other_tissue(raw: bytes) -> bytes:
    return raw.replace(b'"min_tissue": 0.5', b'"min_tissue": 0.7')


def codec(raw: bytes) -> bytes:
    about = json.loads(raw)
    about["codecs"].insert(1, {"name": "gzip", "configuration": {"level": 1}})
    return json.dumps(about).encode()


def lost_tokens(store: Path) -> None:
    (store / "features.zarr/a/tokens/c/1/0/0/0").unlink()


def a_place_outside(store: Path) -> None:
    places = tokens.open_tokens(store, "a", TOKENS).read_positions(2, 0).copy()
    places[3, 2] = 16
    tokens.write_positions(store, "a", 2, 0, places)


def lost_attention(store: Path) -> None:
    (store / "features.zarr/a/attention/c/1/0/0").unlink()


def no_probability(store: Path) -> None:
    values = attention.open_attention(store, "a", ATTENTION).read_block(2, 0).copy()
    values[3, 2] = -0.5
    attention.write_block(store, "a", 2, 0, values)


FEATURES = "features.zarr/a/features/c/1/0/0"
DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "stray": (lambda s: (s / "run.sh").touch(), "known_names"),
    "link": (lambda s: (s / "pictures").symlink_to("/etc"), "known_names"),
    "recipe": (edit("recipe.json", other_tissue), "canonical_form"),
    "parquet": (edit("manifest/patches/a.parquet", lambda raw: raw[:-30] + b"!" + raw[-29:]), "of_itself"),
    "split": (two_splits, "patient_is_in_one_split"),
    "coords": (other_coords, "patches_and_coords"),
    "unsorted": (change("row", lambda v: v[::-1]), "commit_records"),
    "place": (change("x_px0", lambda v: [7, *v[1:]]), "commit_records"),
    "crc": (change("view_crc32", lambda v: [None, *v[1:]]), "commit_records"),
    "codec": (edit("features.zarr/a/features/zarr.json", codec), "form_of_the_format"),
    "flip": (edit(FEATURES, lambda raw: bytes([raw[0] ^ 1]) + raw[1:]), "crc32c"),
    "lost": (lambda s: (s / FEATURES).unlink(), "there_and_finite"),
    "nan": (a_nan, "there_and_finite"),
    "stats": (other_stats, "statistics"),
    "lost-tokens": (lost_tokens, "has_its_tokens"),
    "place-outside": (a_place_outside, "has_its_tokens"),
    "lost-attention": (lost_attention, "has_its_attention"),
    "no-probability": (no_probability, "has_its_attention"),
}  # fmt: skip


def judge(*stores: Path) -> dict[str, set[str]]:
    """Names of the failing tests by store."""
    arguments = [part for store in stores for part in ("--store", str(store))]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "tests/conformance",
        "-q",
        "--tb=no",
        "-p",
        "no:cacheprovider",
        *arguments,
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=os.getcwd(), check=False)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    assert "passed" in done.stdout, done.stdout
    found: dict[str, set[str]] = {store.name: set() for store in stores}
    for test, path in re.findall(r"(?:FAILED|ERROR) \S+::(\w+)\[(.*?)\]", done.stdout):
        found[Path(path).name].add(test)
    return found


@pytest.mark.slow
def test_damaged_stores_fail_and_whole_ones_pass(tmp_path: Path) -> None:
    whole = make_store(tmp_path / "whole", {"a": 40, "b": 33}, about=TOKENS, looks=ATTENTION)
    export(whole, tmp_path / "lossless", ExportOptions(compact="lossless"))
    export(whole, tmp_path / "int8", ExportOptions(compact="int8", tokens=False))
    export(whole, tmp_path / "packed", ExportOptions(form="packed"))
    sealed = Path(shutil.copytree(whole, tmp_path / "sealed"))
    seal_store(sealed, False, Silent())
    stores = [whole, tmp_path / "lossless", tmp_path / "int8", tmp_path / "packed", sealed]
    for name, (damage, _) in DAMAGE.items():
        damage(Path(shutil.copytree(whole, tmp_path / name)))
        stores.append(tmp_path / name)
    changed = Path(shutil.copytree(sealed, tmp_path / "changed"))
    (changed / "options").mkdir()
    (changed / "options/tile.json").write_text("{}")
    shard = (
        Path(shutil.copytree(tmp_path / "packed", tmp_path / "shard")) / "features.zarr/a/features/c/0/0/0"
    )
    shard.write_bytes(shard.read_bytes()[:-9] + b"!" + shard.read_bytes()[-8:])
    found = judge(*stores, changed, shard.parents[6])
    for name in ("whole", "lossless", "int8", "packed", "sealed"):
        assert found[name] == set(), name
    for name, (_, test) in DAMAGE.items():
        assert any(test in failed for failed in found[name]), (name, found[name])
    assert any("the_seal" in failed for failed in found["changed"])
    assert any("crc32c" in failed for failed in found["shard"])


@pytest.mark.slow
def test_views_that_the_pixels_do_not_make(store: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(store, tmp_path / "views"))
    change("view_crc32", lambda v: [5] * len(v))(path)
    assert judge(path)["views"] == {"test_pixels_make_the_views_that_the_checksums_say"}
