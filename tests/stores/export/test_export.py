"""``store export``: nothing that names anybody leaves, and what a compact copy costs is measured and written down."""

import csv
import json
import os
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import cli
from pipeline.demo.synthetic_slides import write_slide
from pipeline.distill import train
from pipeline.distill.metrics_log import read_metrics
from pipeline.distill.options import DistillOptions
from pipeline.extract.extract import extract
from pipeline.extract.options import ExtractOptions
from pipeline.runtime.progress import Silent
from pipeline.tile.options import TileOptions
from pipeline.verify.options import VerifyOptions
from pipeline.verify.verify import verify
from stores.combine.merge import merge
from stores.combine.subset import Selection, subset
from stores.errors import CorruptStore, OptionError, RecipeMismatch
from stores.export.export import Exported, ExportOptions, export
from stores.export.pseudonyms import Pseudonyms, read_key
from stores.format import features, manifest, recipe
from stores.format.int8 import neighbour_overlap, relative_error
from stores.verify.structure import verify_structure
from tests.tools.interrupted import Interrupted
from tests.tools.stores import content, files_of, make_store

pytestmark = pytest.mark.slow

KEY = Pseudonyms(b"0123456789abcdef")
NAMES = ("TCGA-CR-7395-01A-01-TS1", "TCGA-CR-7396-01Z-00-DX1", "H2024-118.HE", "TCGA-BH-A0B1-01Z-00-DX1")
PATIENTS = ("TCGA-CR-7395", "TCGA-CR-7396", "MRN-00451178", "TCGA-BH-A0B1")
OPTIONS = DistillOptions(
    student="tests.tools.tiny:student", random_weights=0, steps=8, batch_size=16, window=64, val_every=4, val_views=16,
    threads=2, device="cpu", teacher_norm="store",
)  # fmt: skip


def give(store: Path, out: Path, **options: Any) -> Exported:
    return export(store, out, ExportOptions(**options))


def grep(text: str, folder: Path) -> bool:
    return subprocess.run(["grep", "-r", "-q", "-a", "-F", text, str(folder)], check=False).returncode == 0


def in_names(text: str, folder: Path) -> bool:
    return any(text in str(path.relative_to(folder)) for path in folder.rglob("*"))


def losses(store: Path, run: Path, options: DistillOptions = OPTIONS) -> list[float]:
    train.distill(store, run, options, False, Silent())
    return [r["loss"] if r["kind"] == "train" else r["cka"] for r in read_metrics(run / "metrics.jsonl")]


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of slides with the names that such slides have, one of them unusable, and a column that says when."""
    folder = tmp_path_factory.mktemp("named") / "archive of Dr Smith"
    folder.mkdir()
    for seed, name in enumerate(NAMES):
        write_slide(folder / f"{name}.tiff", seed=seed, width_px=1024, height_px=1024)
    (folder / "broken-case-77.svs").write_bytes(b"not a slide")
    splits = ("train", "train", "train", "val")
    days = (f"2024-03-0{day}" for day in range(1, 5))
    rows = [f"{','.join(cells)},x" for cells in zip(NAMES, PATIENTS, splits, days, strict=True)]
    (folder / "meta.csv").write_text("slide_id,patient_id,split,scan_date,site\n" + "\n".join(rows) + "\n")
    store = folder.parent / "store"
    options = ExtractOptions(
        teacher="tests.tools.tiny:teacher", random_weights=0, seeds=3, threads=2, pixels=True
    )
    extract([folder], store, options, TileOptions(slides_csv=folder / "meta.csv"), Silent())
    return store


@pytest.fixture(scope="module")
def secret(named: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("secret") / "export"
    give(named, out, pseudonyms=KEY)
    return out


def test_nothing_that_names_anybody_leaves(named: Path, secret: Path) -> None:
    words = [
        *NAMES,
        *PATIENTS,
        *(f"{name}.tiff" for name in NAMES),
        "broken-case-77",
        "2024-03-0",
        "Dr Smith",
    ]
    words += [row["fingerprint"] for row in manifest.read_slides(named) if row["fingerprint"]]
    for word in words:
        assert not grep(word, secret), word
        assert not in_names(word, secret), word
    for word in (NAMES[0], "Dr Smith"):
        assert grep(word, named)  # the same search finds them where they are
    text = "\n".join(
        str(manifest.read_slides(secret)) + str(c.read().to_pylist()) for c in manifest.commits(secret)
    )
    assert not any(word in text for word in words)
    assert not (secret / "pictures").exists()
    assert verify_structure(secret).findings == []
    assert len(manifest.read_slides(secret)) == 4


def test_training_on_pseudonyms_is_the_same_run(named: Path, secret: Path, tmp_path: Path) -> None:
    assert losses(named, tmp_path / "r1") == losses(secret, tmp_path / "r2")
    student = "student/model.safetensors"
    assert (tmp_path / "r1" / student).read_bytes() == (tmp_path / "r2" / student).read_bytes()
    vals = [
        [r for r in read_metrics(tmp_path / n / "metrics.jsonl") if r["kind"] == "val"] for n in ("r1", "r2")
    ]
    assert [r["cka"] for r in vals[0]] == [r["cka"] for r in vals[1]]


def test_views_of_a_pseudonymised_store_can_still_be_checked(secret: Path) -> None:
    result = verify(secret, VerifyOptions(views=True, sample=4, threads=2), Silent())
    assert result.findings == []
    assert result.views_checked > 0


def test_one_key_one_pseudonym(named: Path, secret: Path, tmp_path: Path) -> None:
    """So exports of parts can be merged, and the parts of one patient stay together."""
    subset(named, tmp_path / "x", Selection(slides=NAMES[:2]))
    subset(named, tmp_path / "y", Selection(slides=NAMES[2:]))
    for name in "xy":
        give(tmp_path / name, tmp_path / f"{name}-out", pseudonyms=KEY)
    merge([tmp_path / "x-out", tmp_path / "y-out"], tmp_path / "z", False)
    assert content(tmp_path / "z") == content(secret)
    assert KEY.of("slide", "a") != Pseudonyms(b"f" * 16).of("slide", "a") != KEY.of("patient", "a")


def test_columns_stay_at_home_unless_asked_and_harmless(named: Path, tmp_path: Path) -> None:
    result = give(named, tmp_path / "a", pseudonyms=KEY, keep_columns=("site",))
    assert "can identify" in result.notes[2]
    assert result.notes[3:] == [
        "1 unusable slide is left out, reasons too",
        "columns left out: scan_date; --keep-column keeps one",
    ]
    assert {row["site"] for row in manifest.read_slides(tmp_path / "a")} == {"x"}
    with pytest.raises(OptionError, match="--keep-column grade: no such column; there are scan_date, site"):
        give(named, tmp_path / "b", pseudonyms=KEY, keep_columns=("grade",))
    leaky = Path(shutil.copytree(named, tmp_path / "leaky"))
    rows = [row | {"site": f"seen with {NAMES[1]}"} for row in manifest.read_slides(leaky)]
    manifest.write_slides(leaky, rows)
    with pytest.raises(
        OptionError, match=r"--keep-column site: holds the original name .* nothing was exported"
    ):
        give(leaky, tmp_path / "c", pseudonyms=KEY, keep_columns=("site",))
    assert not (tmp_path / "c").exists()


def test_a_teacher_that_is_named_by_a_path(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", {"slide-number-1": 5}, with_pixels=True)
    stored = recipe.load(store)
    assert stored.teacher is not None
    from dataclasses import replace

    recipe.save(store, replace(stored, teacher=replace(stored.teacher, name="/home/smith/weights")))
    result = give(store, tmp_path / "out", pseudonyms=KEY)
    assert not grep("smith", tmp_path / "out")
    assert any("named by a path" in note for note in result.notes)


def test_keys(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"no readable key file .*; make one with `openssl rand"):
        read_key(tmp_path / "none")
    (tmp_path / "short").write_text("hunter2\n")
    with pytest.raises(OptionError, match="a key of 7 bytes can be guessed"):
        read_key(tmp_path / "short")
    (tmp_path / "key").write_bytes(b"0123456789abcdef\n")
    assert read_key(tmp_path / "key") == KEY


def test_the_command(named: Path, secret: Path, tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(b"0123456789abcdef\n")

    def run(*arguments: str) -> Any:
        return CliRunner().invoke(cli.g2l, ["store", "export", str(named), *arguments])

    base = ["--out", str(tmp_path / "out"), "--pseudonymise", str(tmp_path / "key")]
    done = run(*base, "--mapping", str(tmp_path / "out/map.csv"))
    assert "lies within" in done.stderr
    done = run(*base, "--compact", "lossless", "--mapping", str(tmp_path / "map.csv"), "--json")
    assert done.exit_code == 0, done.stderr
    assert not any(name in done.stdout for name in NAMES)
    assert stat.S_IMODE((tmp_path / "map.csv").stat().st_mode) == 0o600
    with (tmp_path / "map.csv").open() as file:
        mapping = {r["original"]: r["pseudonym"] for r in csv.DictReader(file) if r["kind"] == "slide"}
    assert set(mapping) == set(NAMES)
    assert {row["slide_id"] for row in manifest.read_slides(tmp_path / "out")} == set(mapping.values())
    assert content(tmp_path / "out") == content(secret)
    assert "give --pseudonymise KEYFILE, --compact" in run("--out", str(tmp_path / "x")).stderr


# compact copies


def test_lossless_is_smaller_and_the_same(store: Path, tmp_path: Path) -> None:
    big = make_store(tmp_path / "s", {"a": 1000, "b": 40})
    give(big, tmp_path / "l", compact="lossless")
    assert content(tmp_path / "l") == content(big)  # the recipe too: no value has changed
    sizes = [(s / "features.zarr/a/features/c/0/0/0").stat().st_size for s in (big, tmp_path / "l")]
    assert sizes[1] < 0.92 * sizes[0]
    assert verify_structure(tmp_path / "l").findings == []
    merge([big, tmp_path / "l"], tmp_path / "m", False)
    give(store, tmp_path / "copy", compact="lossless")
    assert losses(store, tmp_path / "r1") == losses(tmp_path / "copy", tmp_path / "r2")


def test_int8_says_what_it_cost(store: Path, tmp_path: Path) -> None:
    big = make_store(tmp_path / "s", {"a": 1000, "b": 40, "d": 1})
    result = give(big, tmp_path / "q", compact="int8")
    stored = recipe.load(tmp_path / "q")
    assert stored.compact == result.compact
    assert result.compact is not None
    errors = []
    for slide_id in ("a", "b", "d"):
        old, new = features.open_features(big, slide_id), features.open_features(tmp_path / "q", slide_id)
        for seed in range(3):
            for block in range(features.n_blocks(old.n_rows)):
                x, y = old.read_block(seed, block), new.read_block(seed, block)
                there = np.isfinite(x).all(axis=1)
                np.testing.assert_array_equal(np.isfinite(y).all(axis=1), there)
                errors.append(relative_error(x[there], y[there]))
    every = np.concatenate(errors)
    assert result.compact["rows"] == len(every)
    assert result.compact["relative_error"] == pytest.approx(every.mean(), rel=5e-3)
    assert result.compact["max_relative_error"] == pytest.approx(every.max(), rel=5e-3)
    assert 0 < result.compact["relative_error"] < 0.02
    assert 0.9 < result.compact["nn10_overlap"] <= 1
    assert stored.digest() != recipe.load(big).digest()
    assert verify_structure(tmp_path / "q").findings == []
    np.testing.assert_array_equal(features.read_stats(big, "a"), features.read_stats(tmp_path / "q", "a"))
    with pytest.raises(OptionError, match="is a compact copy already"):
        give(tmp_path / "q", tmp_path / "qq", compact="int8")
    with pytest.raises(RecipeMismatch, match=r"recipe.compact"):
        merge([big, tmp_path / "q"], tmp_path / "m", False)


def test_training_on_int8_follows_the_original(store: Path, tmp_path: Path) -> None:
    give(store, tmp_path / "q", compact="int8")
    a, b = losses(store, tmp_path / "r1"), losses(tmp_path / "q", tmp_path / "r2")
    assert a != b
    np.testing.assert_allclose(a, b, rtol=0.02)


def test_damage_of_a_compact_copy_is_found(tmp_path: Path) -> None:
    big = make_store(tmp_path / "s", {"a": 40})
    for kind in ("lossless", "int8"):
        copy = tmp_path / kind
        give(big, copy, compact=kind)
        for name, whole in files_of(copy / "features.zarr").items():
            path = copy / "features.zarr" / name
            damaged = bytearray(whole)
            damaged[len(whole) // 2] ^= 2
            path.write_bytes(damaged)
            assert verify_structure(copy).findings, name
            path.unlink()
            assert verify_structure(copy).findings, name
            path.write_bytes(whole)


def test_extraction_does_not_go_on_in_a_compact_copy(
    store: Path, slides: Path, tile_options: TileOptions, tmp_path: Path
) -> None:
    give(store, tmp_path / "q", compact="int8")
    options = ExtractOptions(
        teacher="tests.tools.tiny:teacher", random_weights=0, seeds=4, threads=2, pixels=True
    )
    with pytest.raises(RecipeMismatch, match=r"recipe\.compact"):
        extract([slides], tmp_path / "q", options, tile_options, Silent())
    give(store, tmp_path / "l", compact="lossless")
    extract([slides], tmp_path / "l", options, tile_options, Silent())
    assert features.open_features(tmp_path / "l", "a").n_seeds == 4
    assert verify_structure(tmp_path / "l").findings == []


def test_a_lost_chunk_is_not_exported_as_zeros(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", {"a": 40})
    (store / "features.zarr/a/features/c/1/0/0").unlink()
    with pytest.raises(CorruptStore, match="slide a seed 1 block 0: 39 committed rows"):
        give(store, tmp_path / "q", compact="int8")
    assert not (tmp_path / "q").exists()


def test_a_second_run_after_an_interruption_gives_the_same_bytes(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", {"a": 40, "b": 70, "d": 5}, with_pixels=True)
    give(store, tmp_path / "whole", compact="int8", pseudonyms=KEY)
    with pytest.raises(KeyboardInterrupt):
        export(store, tmp_path / "out", ExportOptions(compact="int8", pseudonyms=KEY), Interrupted(2))
    assert not (tmp_path / "out").exists()
    give(store, tmp_path / "out", compact="int8", pseudonyms=KEY)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")
    assert sorted(os.listdir(tmp_path)) == ["out", "s", "whole"]


def test_neighbours() -> None:
    random = np.random.default_rng(0)
    values = random.normal(size=(60, 8)).astype(np.float16)
    assert neighbour_overlap(values, values) == 1
    reversed_overlap = neighbour_overlap(values, values[::-1])
    assert reversed_overlap is not None
    assert reversed_overlap < 0.5
    assert json.dumps(neighbour_overlap(values, values + np.float16(0.01)))
