"""The teacher's attention in the store: its values, what it leaves alone, verified, repaired, shared, learned from."""

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr

import pipeline
from pipeline.data.committed import BlockCache
from pipeline.data.dataset import ViewDataset
from pipeline.distill import train
from pipeline.distill.grids import divided
from pipeline.distill.losses import attention_kl
from pipeline.distill.metrics_log import read_metrics
from pipeline.encoders.attention import with_attention
from pipeline.encoders.load import load_encoder
from pipeline.extract import extract as stage
from pipeline.extract import plan
from pipeline.extract.options import ExtractOptions, PlanOptions
from pipeline.runtime.progress import Silent
from pipeline.tile.options import TileOptions
from pipeline.verify.verify import seal_store
from stores import info
from stores.errors import CorruptStore, EncoderError, OptionError, RecipeMismatch, StoreError
from stores.export import export
from stores.export.pseudonyms import Pseudonyms
from stores.format import attention, layout, manifest, recipe
from stores.publish import card
from stores.verify import reindex
from tests.tools import distill as distilling
from tests.tools.distill import SHORT, STUDENT
from tests.tools.ranks import run_several
from tests.tools.settings import TEACHER, VIT
from tests.tools.share import contents, joined, part, wrong
from tests.tools.stores import content, files_of
from tests.tools.verify import SAME_TEACHER, look, named, structure

WITH_ATTENTION = replace(TEACHER, teacher=VIT, tokens=5, attention=True)
ABOUT = recipe.Attention(8, "attention-1")
SAME = replace(SAME_TEACHER, teacher=VIT)
OPTIONS = replace(SHORT, loss="attention")


@pytest.fixture(scope="module")
def made(slides: Path, tile_options: TileOptions, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("attention") / "store"
    stage.extract([slides], path, WITH_ATTENTION, tile_options, Silent())
    return path


@torch.inference_mode()
def test_kept_attention_is_the_teachers(made: Path) -> None:
    _, batch = distilling.made(made, OPTIONS)
    encoder = load_encoder(VIT, random_weights=0)
    expected = with_attention(encoder, torch.from_numpy(batch.views))[2]
    assert batch.attention.shape == (16, 64)
    np.testing.assert_allclose(batch.attention, expected.half().numpy(), rtol=2e-3)
    opened = attention.open_attention(made, "a", ABOUT)
    assert opened.spec.shape[::2] == (3, 64)
    assert (opened.read_block(2, 0).astype(np.float32).sum(axis=1) < 1).all()


def test_all_else_is_as_without_it(made: Path, token_store: Path, tmp_path: Path) -> None:
    plain = contents(token_store)
    found = {name: sha for name, sha in contents(made).items() if "/attention/" not in name}
    differ = {name for name in plain | found if plain.get(name) != found.get(name)}
    assert differ == {"recipe.json", "manifest/index.parquet"}
    stored = recipe.load(made)
    assert stored.attention == ABOUT
    assert replace(stored, attention=None).digest() == recipe.load(token_store).digest()
    assert "attention" not in recipe.load(token_store).to_json()
    assert recipe.from_json(stored.to_json(), "here") == stored
    assert any("8x8 patches" in line for line in info.info_lines(info.store_info(made)))
    other = Path(shutil.copytree(made, tmp_path / "s"))
    card.write_card(other, card.CardOptions("s", "2026-11-28"))
    assert "attention | of the class token to 8x8 patches of a view" in (other / "README.md").read_text()
    assert "Also attention[seed, row, patch of the view]." in (other / "croissant.json").read_text()


def test_a_store_has_it_from_the_start(made: Path, slides: Path, tile_options: TileOptions) -> None:
    with pytest.raises(RecipeMismatch, match=r"recipe\.attention"):
        stage.extract([slides], made, replace(WITH_ATTENTION, attention=False), tile_options, Silent())
    with pytest.raises(OptionError, match="--attention and --compile: give one of them"):
        ExtractOptions(teacher="x", attention=True, compile=True).validate()


_OF_THE_STORE = ("recipe.json", "manifest/slides.parquet")


def test_a_plan_knows_its_bytes_and_files(made: Path, slides: Path, tile_options: TileOptions) -> None:
    options = PlanOptions(teacher=VIT, dim=24, seeds=3, pixels=True, tokens=5, attention=True)
    planned = plan.plan([slides], options, tile_options, Silent())
    names = layout.list_files(made)
    found = sum(size for name, size in names.items() if "/attention/c/" in name)
    assert planned.attention_bytes == planned.to_json()["attention_bytes"] == found
    other = {n for n in names if n.startswith("options/") or n in _OF_THE_STORE}
    assert planned.files == len(names) - len(other)
    assert any(re.search(r"bytes .*, attention [\d.]+ kB, pixels", line) for line in planned.lines())
    h_optimus = plan.plan(made, PlanOptions(teacher="h-optimus-0", attention=True), tile_options, Silent())
    assert h_optimus.attention == 16
    for teacher, error, said in (
        (None, OptionError, "--attention: needs --teacher"),
        (
            "tests.tools.tiny:teacher",
            OptionError,
            "--attention: the patches of tests.tools.tiny:teacher are not",
        ),
        ("resnet18", EncoderError, "has no square grid"),
    ):
        with pytest.raises(error, match=said):
            plan.plan(made, replace(options, teacher=teacher), tile_options, Silent())


@pytest.mark.parametrize(("value", "said"), [(np.nan, "no finite"), (-0.25, "no prob"), (1.5, "no prob")])
def test_hostile_attention_is_refused(made: Path, tmp_path: Path, value: float, said: str) -> None:
    path = Path(shutil.copytree(made, tmp_path / "s"))
    zarr.open_array(path / "features.zarr/a/attention", mode="r+")[0, 2, 3] = value
    cache = BlockCache(path, attention=ABOUT)
    with pytest.raises(CorruptStore, match=said):
        cache.attention(next(manifest.commits(path, "a")), np.arange(4, dtype=np.int32), 0)
    assert [finding for finding in structure(path) if "attention" in finding.file]
    with pytest.raises(CorruptStore, match="expected"):
        attention.open_attention(made, "a", replace(ABOUT, grid=7))


@pytest.mark.slow
def test_damage_is_found_and_repaired(made: Path, slides: Path, tmp_path: Path) -> None:
    assert structure(made) == []
    path = Path(shutil.copytree(made, tmp_path / "s"))
    flipped = path / "features.zarr/a/attention/c/1/0/0"
    raw = bytearray(flipped.read_bytes())
    raw[100] ^= 4
    flipped.write_bytes(raw)
    for name in ("b/attention/zarr.json", "c/attention/c/2/0/0"):
        (path / "features.zarr" / name).unlink()
    found = structure(path)
    for name in ("a/attention/c/1/0/0", "b/attention/zarr.json", "c/attention/c/2/0/0"):
        assert named(found, f"features.zarr/{name}"), name
    result = look(path, replace(SAME, slides=(slides,), repair=True))
    assert result.findings == []
    assert files_of(path) == files_of(made)


@pytest.mark.slow
def test_attention_of_another_view_is_not_the_teachers(made: Path, tmp_path: Path) -> None:
    assert look(made, SAME).findings == []
    path = Path(shutil.copytree(made, tmp_path / "s"))
    array = zarr.open_array(path / "features.zarr/a/attention", mode="r+")
    array[1] = np.asarray(array[1])[:, ::-1]
    assert structure(path) == []
    (found,) = look(path, SAME).findings
    assert "views have attention that are not the teacher's" in found.problem
    assert found.file == "features.zarr/a/attention"


@pytest.mark.slow
def test_of_the_views_of_another_store(made: Path, store: Path, slides: Path, tmp_path: Path) -> None:
    """``--like``: patches, policy and seeds of a store without attention, and attention of another teacher."""
    options: dict[str, Any] = {"teacher": VIT, "random_weights": 0, "tokens": 5, "pixels": True, "threads": 2}
    found = pipeline.extract([slides], tmp_path / "s", like=store, attention=True, **options)
    assert found.compared == found.views > 0
    assert recipe.load(tmp_path / "s").attention == ABOUT
    assert content(tmp_path / "s") == content(made)
    seal_store(tmp_path / "s", False, Silent())
    assert structure(tmp_path / "s") == []
    (tmp_path / "s/features.zarr/a/attention/c/1/0/0").write_bytes(b"")
    assert "seal" in {finding.kind for finding in structure(tmp_path / "s")}


def test_leftovers_are_seen(made: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(made, tmp_path / "s"))
    next(manifest.commits(path, "a")).path.unlink()
    assert any("attention/c/0/0/0" in str(f) and "not listed" in str(f) for f in structure(path))
    result = reindex.reindex(path, False, True)
    assert "attention" in {name.split("/")[2] for name in result.leftovers}


@pytest.mark.slow
def test_parts_make_the_whole_and_can_leave_it_out(made: Path, token_store: Path, tmp_path: Path) -> None:
    part(made, tmp_path / "x", slides=("a", "b"))
    part(made, tmp_path / "y", slides=("b", "c"))
    joined([tmp_path / "y", tmp_path / "x"], tmp_path / "z")
    assert content(tmp_path / "z") == content(made)
    assert wrong(tmp_path / "z") == []
    part(made, tmp_path / "one", seeds=1)
    assert attention.open_attention(tmp_path / "one", "a", ABOUT).spec.shape[0] == 1
    assert wrong(tmp_path / "one") == []
    bare = part(made, tmp_path / "bare", attention=False)
    assert recipe.load(bare).attention is None
    assert content(bare) == content(token_store)
    assert layout.read_options(bare, "extract-teacher")["attention"] is False
    with pytest.raises(RecipeMismatch, match=r"recipe\.attention"):
        joined([made, bare], tmp_path / "no")
    array = zarr.open_array(tmp_path / "x/features.zarr/b/attention", mode="r+")
    array[2, 0, 2] = 0.125
    with pytest.raises(StoreError, match="slide b: attention to patch 2 of row 0 seed 2 is"):
        joined([tmp_path / "y", tmp_path / "x"], tmp_path / "no")
    (tmp_path / "y/features.zarr/b/attention/c/1/0/0").unlink()
    with pytest.raises(CorruptStore, match="committed attention are lost"):
        part(tmp_path / "y", tmp_path / "no")


@pytest.mark.slow
def test_exports(made: Path, tmp_path: Path) -> None:
    def exported(out: str, **options: Any) -> Path:
        export.export(made, tmp_path / out, export.ExportOptions(**options))
        assert wrong(tmp_path / out) == []
        return tmp_path / out

    assert content(exported("lossless", compact="lossless")) == content(made)
    small = exported("int8", compact="int8", tokens=False)
    whole = [attention.open_attention(path, "a", ABOUT).read_block(1, 0) for path in (made, small)]
    np.testing.assert_array_equal(whole[0], whole[1])
    hidden = exported("hidden", pseudonyms=Pseudonyms(b"k" * 32))
    assert recipe.load(hidden).attention == ABOUT
    bare = exported("bare", pseudonyms=Pseudonyms(b"k" * 32), attention=False)
    assert not [file for file in files_of(bare) if "attention" in file]
    assert recipe.load(bare).attention is None
    said = {path.name: layout.read_options(path, "extract-teacher")["attention"] for path in (hidden, bare)}
    assert said == {"hidden": True, "bare": False}


# What a student learns from it


def test_the_dataset_gives_it(made: Path, store: Path) -> None:
    batch = next(iter(ViewDataset(made, attention=True, batch_size=4, threads=1, check_views="none")))
    assert batch.attention is not None
    assert batch.attention.shape == (4, 64)
    assert batch.tokens is None
    with pytest.raises(
        StoreError, match=r"attention=True: .* has no attention; run extract-teacher --attention"
    ):
        ViewDataset(store, attention=True)


def test_the_loss_is_the_divergence_of_two_maps() -> None:
    random = np.random.default_rng(0)
    s, t = random.uniform(0.1, 1, (2, 5, 9))
    total = 0.0
    for i in range(5):
        p, q = t[i] / t[i].sum(), s[i] / s[i].sum()
        total += sum(p[j] * np.log(p[j] / q[j]) for j in range(9)) / 5
    found = attention_kl(torch.tensor(s), torch.tensor(t))
    assert float(found) == pytest.approx(total, rel=1e-9)
    assert float(attention_kl(torch.tensor(3 * t), torch.tensor(t))) == pytest.approx(0, abs=1e-9)
    zero = torch.zeros(1, 9, requires_grad=True)
    attention_kl(zero, torch.tensor(t[:1])).backward()
    assert zero.grad is not None
    assert torch.isfinite(zero.grad).all()


@pytest.mark.slow
@pytest.mark.parametrize("patch", [28, 16])
def test_a_student_of_any_grid_learns_where_to_look(made: Path, patch: int) -> None:
    options = replace(OPTIONS, student=STUDENT.replace("patch_size=28", f"patch_size={patch}"))
    trainer, batch = distilling.made(made, options)
    views, targets = distilling.first_of(batch, 16)
    with torch.no_grad():
        assert trainer.model.embed(views, targets.positions).attention.shape == (16, (224 // patch) ** 2)  # type: ignore[union-attr]
    with torch.no_grad():
        student = trainer.model.embed(views, targets.positions)
        found = trainer.model.compare(student, targets)[0]
    assert student.attention is not None
    assert targets.attention is not None
    expected = attention_kl(student.attention, divided(targets.attention, 224 // patch))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    losses = [trainer.step(views, targets, 3e-3, 0.0)["loss"] for _ in range(10)]
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.slow
def test_a_run_with_it(made: Path, tmp_path: Path) -> None:
    options = replace(OPTIONS, loss="mse,attention:0.1,token-cosine")
    summary = train.distill(made, tmp_path / "run", options, False, Silent())
    assert summary["steps"] == 2
    assert summary["val_loss_after"] > 0


@pytest.mark.slow
@pytest.mark.torchrun
def test_two_processes_compare_the_maps_of_both(made: Path, tmp_path: Path) -> None:
    """The losses of one process with twice as many views a step; the student's grid is another than the teacher's."""
    student = STUDENT.replace("patch_size=28", "patch_size=16")
    options = replace(OPTIONS, student=student, loss="mse,attention", steps=4)
    path = Path(shutil.copytree(made, tmp_path / "s"))
    for number, name in enumerate("ab"):  # maps that differ, which those of an untrained teacher hardly do
        array = zarr.open_array(path / f"features.zarr/{name}/attention", mode="r+")
        drawn = np.random.default_rng(number).dirichlet(np.full(65, 0.3), array.shape[:2])
        array[:] = drawn[:, :, 1:].astype(np.float16)
    train.distill(path, tmp_path / "one", replace(options, batch_size=16), False, Silent())
    run_several(path, tmp_path / "two", options, 2)
    one, two = (
        [line for line in read_metrics(tmp_path / run / "metrics.jsonl") if line["kind"] == "train"]
        for run in ("one", "two")
    )
    assert len(one) == 4
    assert one[0]["loss_attention"] > 0.5
    for wanted, got in zip(one, two, strict=True):
        for name in ("loss", "loss_mse", "loss_attention"):
            assert got[name] == pytest.approx(wanted[name], rel=2e-4), name


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"student": "tests.tools.tiny:student"}, EncoderError, "has no square grid of patch tokens"),
        (
            {"student": STUDENT + "&class_token=false&global_pool=avg"},
            EncoderError,
            "has no attention of a class token that can be read",
        ),
    ],
)
def test_students_without_it(
    made: Path, tmp_path: Path, change: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        train.distill(made, tmp_path / "run", replace(OPTIONS, **change), False, Silent())


def test_a_store_without_it(store: Path, tmp_path: Path) -> None:
    with pytest.raises(
        StoreError, match=r"attention needs the teacher's attention, and .* has none; run extr"
    ):
        train.distill(store, tmp_path / "run", OPTIONS, False, Silent())
    assert layout.classify("features.zarr/a/attention/c/0/0/0") is not None
