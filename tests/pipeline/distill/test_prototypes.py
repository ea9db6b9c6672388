"""Prototypes: spherical k-means finds what is there, resumes exactly, and what it wrote is judged before it is used."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from torch.nn import functional

import cli
from pipeline.distill.heads import Assigner
from pipeline.distill.prototypes import files, fit
from pipeline.distill.prototypes.kmeans import Chunks, SphericalKMeans
from pipeline.distill.prototypes.options import PrototypeOptions
from pipeline.runtime.progress import Silent
from stores import sampler
from stores.errors import DistillError, G2LError, OptionError, StoreError
from stores.format import features, recipe
from stores.format.layout import feature_array
from tests.tools.kill import kill_at_random, prototypes_job
from tests.tools.zarr_arrays import whole

pytestmark = pytest.mark.slow

OPTIONS = PrototypeOptions(k=12, epochs=4, window=32, threads=2)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def fitted(token_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("prototypes") / "p"
    fit.fit(token_store, out, OPTIONS, Silent())
    return out


def tensors(out: Path) -> dict[str, npt.NDArray[Any]]:
    return load_file(out / files.TENSORS)


def equal(a: Path, b: Path) -> bool:
    one, two = tensors(a), tensors(b)
    return one.keys() == two.keys() and all(np.array_equal(one[name], two[name]) for name in one)


# The numbers


def planted(n: int, k: int, dim: int, noise: float) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    centres = functional.normalize(torch.randn(k, dim, generator=generator), dim=1)
    label = torch.randint(k, (n,), generator=generator)
    return functional.normalize(
        centres[label] + noise * torch.randn(n, dim, generator=generator), dim=1
    ), centres


def test_planted_directions_are_found() -> None:
    x, centres = planted(4000, 8, 24, 0.05)
    chunks = Chunks(2, CPU)
    model = SphericalKMeans.begin(x[:8].clone(), chunks)
    for _ in range(6):
        for part in x.split(2500):  # several chunks each
            model.step(part)
        model.end_epoch(part)
    chunks.close()
    best = (centres @ model.prototypes.T).max(dim=1).values
    assert best.min() > 0.99
    torch.testing.assert_close(model.prototypes.norm(dim=1), torch.ones(8))


def reference_step(
    p: npt.NDArray[np.float64], counts: npt.NDArray[np.int64], x: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    out = p.copy()
    nearest = [max(range(len(p)), key=lambda k: float(row @ p[k])) for row in x]
    for k in range(len(p)):
        mine = x[[i for i, n in enumerate(nearest) if n == k]]
        if len(mine):
            share = len(mine) / (counts[k] + len(mine))
            moved = (1 - share) * p[k] + share * mine.mean(axis=0)
            out[k] = moved / np.linalg.norm(moved)
    return out


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(2, 6), st.integers(0, 1000))
def test_a_step_is_what_its_formula_says(n: int, k: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, p = (
        v / np.linalg.norm(v, axis=1, keepdims=True)
        for v in (rng.normal(size=(n, 5)), rng.normal(size=(k, 5)))
    )
    counts = rng.integers(0, 50, k)
    chunks = Chunks(1, CPU)
    model = SphericalKMeans(
        torch.tensor(p).float(), torch.tensor(counts), torch.zeros(k, dtype=torch.int64), chunks
    )
    model.step(torch.tensor(x).float())
    chunks.close()
    np.testing.assert_allclose(model.prototypes.numpy(), reference_step(p, counts, x), atol=2e-5)


def test_an_unused_prototype_starts_again_where_the_fit_is_worst() -> None:
    x = functional.normalize(torch.tensor([[1.0, 0.0], [1.0, 0.1], [-1.0, 0.2], [0.9, 0.0]]), dim=1)
    chunks = Chunks(1, CPU)
    model = SphericalKMeans.begin(
        functional.normalize(torch.tensor([[1.0, 0.05], [0.0, -1.0]]), dim=1), chunks
    )
    model.step(x[:2])
    assert model.end_epoch(x) == 1
    chunks.close()
    torch.testing.assert_close(model.prototypes[1], x[2])
    assert model.counts.tolist() == [2, 0]


# The command


def test_what_it_writes(fitted: Path, token_store: Path) -> None:
    assert sorted(path.name for path in fitted.iterdir()) == [
        "log.jsonl", "options.json", "prototypes.json", "prototypes.png", "prototypes.safetensors",
    ]  # fmt: skip
    stored = recipe.load(token_store)
    spaces = files.load(fitted, stored.digest(), {"features": 24, "tokens": 24})
    units = sampler.find_units(token_store, "train", None)
    assert stored.tokens is not None
    vectors: dict[str, list[npt.NDArray[np.float64]]] = {"features": [], "tokens": []}
    for unit in units:
        opened = features.open_features(token_store, unit.commit.slide_id)
        kept = whole(token_store, feature_array(unit.commit.slide_id, "tokens"))
        for seed in unit.seeds:
            vectors["features"].append(opened.read_block(seed, 0).astype(np.float64))
            vectors["tokens"].append(kept[seed].reshape(-1, 24).astype(np.float64))
    about = json.loads((fitted / "prototypes.json").read_text())
    for name, space in spaces.items():
        x = np.concatenate(vectors[name])
        if name == "features":  # of the tokens a sample tells
            np.testing.assert_allclose(space.mean, x.mean(axis=0), rtol=1e-3, atol=1e-4)
            np.testing.assert_allclose(space.std, x.std(axis=0), rtol=1e-3, atol=1e-4)
        unit_x = (x - space.mean) / space.std
        unit_x /= np.linalg.norm(unit_x, axis=1, keepdims=True)
        cosine = unit_x @ space.prototypes.T
        np.testing.assert_allclose(np.linalg.norm(space.prototypes, axis=1), 1, rtol=1e-5)
        np.testing.assert_allclose(space.centre, cosine.mean(axis=0), atol=0.06 if name == "tokens" else 1e-4)
        start = unit_x[np.random.default_rng(0).choice(len(unit_x), 12, replace=False)]
        # better than any vectors
        assert cosine.max(axis=1).mean() > (unit_x @ start.T).max(axis=1).mean() + 0.02
        assert about["figures"][name]["used"] == 12
        assert about["figures"][name]["perplexity"]["0.02"] < about["figures"][name]["perplexity"]["0.1"]


@pytest.mark.slow
def test_threads_change_no_byte_and_seeds_do(fitted: Path, token_store: Path, tmp_path: Path) -> None:
    fit.fit(token_store, tmp_path / "one", replace(OPTIONS, threads=1), Silent())
    assert equal(fitted, tmp_path / "one")
    fit.fit(token_store, tmp_path / "other", replace(OPTIONS, seed=1), Silent())
    assert not equal(fitted, tmp_path / "other")


@pytest.mark.kill
def test_killed_and_started_again_is_bit_identical(fitted: Path, token_store: Path, tmp_path: Path) -> None:
    out, left = tmp_path / "p", set()

    def state() -> int:
        try:
            return (out / fit.STATE).stat().st_mtime_ns
        except FileNotFoundError:
            return 0

    job = token_store, out, OPTIONS
    killed = kill_at_random(
        prototypes_job, job, 5, 0, out, 0.02, lambda: left.add(state()), marks=state, changes=3
    )
    assert killed >= 3
    assert len(left - {0}) >= 3  # they went on from what an earlier start had left
    fit.fit(token_store, out, OPTIONS, Silent())
    assert equal(fitted, out)
    assert not list(out.glob("*.partial"))
    assert not (out / fit.STATE).exists()


@pytest.mark.slow
def test_a_store_without_tokens_has_prototypes_of_features(store: Path, tmp_path: Path) -> None:
    fit.fit(store, tmp_path / "p", OPTIONS, Silent())
    digest = recipe.load(store).digest()
    assert files.load(tmp_path / "p", digest, {"features": 24}).keys() == {"features"}
    with pytest.raises(
        OptionError, match="has no prototypes of tokens; extract with --tokens and fit them again"
    ):
        files.load(tmp_path / "p", digest, {"tokens": 24})


@pytest.mark.slow
def test_on_the_command_line(token_store: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(token_store, tmp_path / "s"))
    arguments = ["prototypes", "--store", str(path), "--k", "6", "--epochs", "1", "--window", "64"]
    done = CliRunner().invoke(cli.g2l, arguments)
    assert done.exit_code == 0, done.output
    assert "6 of 6 prototypes used" in done.stdout
    assert (tmp_path / "s-prototypes-6" / "prototypes.png").exists()
    again = CliRunner().invoke(cli.g2l, arguments)
    assert again.exit_code == 0
    assert "is complete; use another --out to fit again" in again.stderr


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"k": 1}, "--k 1: allowed is 2 to"),
        ({"k": 5000}, "--k 5000: the training split has 177 views under its seeds; ask for fewer"),
        ({"epochs": 0}, "--epochs 0"),
        ({"seeds": 9}, "seed 3 is needed"),
    ],
)
def test_wrong_uses(token_store: Path, tmp_path: Path, change: dict[str, Any], said: str) -> None:
    with pytest.raises(G2LError, match=said):
        fit.fit(token_store, tmp_path / "p", replace(OPTIONS, **change), Silent())
    assert not (tmp_path / "p").exists()


def test_a_folder_belongs_to_one_request(
    fitted: Path, store: Path, token_store: Path, tmp_path: Path
) -> None:
    with pytest.raises(OptionError, match=r"--k 13: .* was begun with 12; use that, or another --out"):
        fit.fit(token_store, fitted, replace(OPTIONS, k=13), Silent())
    with pytest.raises(OptionError, match="begun on another store"):
        fit.fit(store, fitted, OPTIONS, Silent())
    (tmp_path / "notes.txt").touch()
    with pytest.raises(OptionError, match="is not empty and contains no prototypes"):
        fit.fit(token_store, tmp_path, OPTIONS, Silent())
    with pytest.raises(StoreError, match=r"no recipe\.json"):
        fit.fit(tmp_path, tmp_path / "p", OPTIONS, Silent())


@pytest.mark.parametrize("about", ["[]", "3", "null", '"x"'])
def test_about_foreign_prototypes(fitted: Path, tmp_path: Path, about: str) -> None:
    path = Path(shutil.copytree(fitted, tmp_path / "p"))
    (path / files.ABOUT).write_text(about)
    with pytest.raises(DistillError, match=r"prototypes\.json: expected a JSON object"):
        files.load(path, "digest", {"features": 24})


def test_a_folder_that_safetensors_cannot_open(fitted: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(fitted, tmp_path / os.fsdecode(b"\xff")))
    with pytest.raises(OptionError, match="a path that is not UTF-8"):
        files.load(path, "digest", {"features": 24})


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("features.prototypes", np.zeros((12, 23), np.float32), r"features.prototypes is float32 \(12, 23\)"),
        (
            "features.prototypes",
            np.zeros((13, 24), np.float32),
            r"features.centre is float32 \(12,\), expected finite float32 \(13,\)",
        ),
        ("features.centre", np.full(12, np.nan, np.float32), "features.centre is"),
        ("features.mean", np.zeros(24, np.float64), "features.mean is float64"),
        ("features.std", np.zeros(24, np.float32), "features.std has a value that is not above 0"),
    ],
)
def test_foreign_prototypes_are_judged(
    fitted: Path, token_store: Path, tmp_path: Path, name: str, value: npt.NDArray[Any], said: str
) -> None:
    path = Path(shutil.copytree(fitted, tmp_path / "p"))
    save_file({**tensors(path), name: value}, path / files.TENSORS)
    with pytest.raises(DistillError, match=said):
        files.load(path, recipe.load(token_store).digest(), {"features": 24})


def test_prototypes_that_cannot_be_used(fitted: Path, token_store: Path, tmp_path: Path) -> None:
    digest = recipe.load(token_store).digest()
    with pytest.raises(OptionError, match="no finished prototypes there; make them with `g2l prototypes`"):
        files.load(tmp_path, digest, {"features": 24})
    with pytest.raises(OptionError, match=r"fitted on a store with recipe .*, this one has 0123"):
        files.load(fitted, "0123456789abcdef", {"features": 24})
    path = Path(shutil.copytree(fitted, tmp_path / "p"))
    (path / files.TENSORS).write_bytes((path / files.TENSORS).read_bytes()[:100])
    with pytest.raises(DistillError, match="damaged"):
        files.load(path, digest, {"features": 24})


def test_the_assigner_follows_what_the_file_says() -> None:
    rng = np.random.default_rng(0)
    p = rng.normal(size=(7, 5)).astype(np.float32)
    p /= np.linalg.norm(p, axis=1, keepdims=True)
    mean, std = rng.normal(size=5).astype(np.float32), rng.uniform(1, 2, 5).astype(np.float32)
    centre = rng.uniform(-0.2, 0.2, 7).astype(np.float32)
    x = rng.normal(size=(9, 5)).astype(np.float32)
    z = (x - mean) / std
    cosine = z / np.linalg.norm(z, axis=1, keepdims=True) @ p.T
    space = files.Space(mean, std, p, centre)
    unbalanced, expected = (
        np.exp(logits / 0.1) / np.exp(logits / 0.1).sum(axis=1, keepdims=True)
        for logits in (cosine, cosine - centre)
    )
    found = Assigner(space, "centre", 0.1)(torch.tensor(x)).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    balanced = Assigner(space, "sinkhorn", 0.1)(torch.tensor(x)).numpy()
    np.testing.assert_allclose(balanced.sum(axis=1), 1, rtol=1e-5)
    assert balanced.sum(axis=0).std() < unbalanced.sum(axis=0).std()


def test_what_a_kill_in_the_first_write_left_does_not_block(
    fitted: Path, token_store: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / ".options.json.123.partial").write_text("{")
    (out / "mine.partial").touch()
    with pytest.raises(OptionError, match="the folder is not empty"):
        fit.fit(token_store, out, OPTIONS, Silent())
    assert [path.name for path in out.iterdir()] == ["mine.partial"]  # a name that we never make
    (out / "mine.partial").unlink()
    (out / ".options.json.123.partial").write_text("{")
    fit.fit(token_store, out, OPTIONS, Silent())
    (out / "state.safetensors").touch()  # killed after the last file, before this one was removed
    fit.fit(token_store, out, OPTIONS, Silent())
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in fitted.iterdir())
