"""Prototypes of several stores: a folder for each."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline.distill import train
from pipeline.distill.prototypes import fit
from pipeline.distill.prototypes.options import PrototypeOptions
from pipeline.distill.weighted import WeightedStore, prototypes_of
from pipeline.runtime.progress import Silent
from stores.errors import OptionError
from tests.tools.distill import SHORT

TWO = [WeightedStore("x/a", name="a"), WeightedStore("y/b", name="b")]
DINO, MSE = {"dino": 1.0, "mse": 1.0}, {"mse": 1.0}


def test_a_folder_for_all_or_for_each(tmp_path: Path) -> None:
    assert prototypes_of(TWO, [DINO, DINO], None) == [None, None]
    assert prototypes_of(TWO, [DINO, {"ibot": 1.0}], Path("p")) == [Path("p")] * 2
    assert prototypes_of(TWO, [MSE, DINO], Path("b=p/k=4096,x")) == [None, Path("p/k=4096,x")]
    assert prototypes_of(TWO, [DINO, DINO], Path("b=q,a=p,c=r")) == [Path("p,c=r"), Path("q")]
    assert prototypes_of(TWO[:1], [DINO], Path("a=p")) == [Path("a=p")]
    here = tmp_path / "k=4096"
    here.mkdir()
    assert prototypes_of(TWO, [DINO, DINO], here) == [here, here]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("c=p,b=q", "--prototypes c=p,b=q: c is no store of this run; allowed: a, b"),
        ("a=p", "no prototypes for the store b; give NAME=DIR for it"),
        ("a=p,a=q,b=r", "a is given twice"),
    ],
)
def test_folders_that_do_not_fit(text: str, said: str) -> None:
    with pytest.raises(OptionError, match=said):
        prototypes_of(TWO, [DINO, DINO], Path(text))
    with pytest.raises(OptionError, match="the loss of b uses no prototypes; leave b= out"):
        prototypes_of(TWO, [DINO, MSE], Path("a=p,b=q"))


@pytest.mark.slow
def test_a_run_on_two_stores_with_prototypes_of_each(store: Path, token_store: Path, tmp_path: Path) -> None:
    for name, path in (("a", store), ("b", token_store)):
        fit.fit(path, tmp_path / name, PrototypeOptions(k=4, epochs=1, window=64, threads=1), Silent())
    two = [WeightedStore(store, 1.0, "a"), WeightedStore(token_store, 1.0, "b")]
    options = replace(SHORT, loss="a=dino,b=dino+ibot", head_hidden=8, head_bottleneck=4, steps=1)
    own = replace(options, prototypes=Path(f"a={tmp_path / 'a'},b={tmp_path / 'b'}"))
    train.distill(two, tmp_path / "run", own, False, Silent())
    begun = json.loads((tmp_path / "run/options.json").read_text())["options"]
    assert begun["prototypes"] == f"a={tmp_path / 'a'},b={tmp_path / 'b'}"
    state = torch.load(tmp_path / "run/checkpoints/step-00000001.pt", weights_only=True)["model"]
    heads = {name for name in state if name.endswith("prototypes")}
    assert heads == {
        f"{of}heads.{term}.prototypes"
        for of, term in (("", "dino"), ("others.0.", "dino"), ("others.0.", "ibot"))
    }
    with pytest.raises(
        OptionError, match=r"fitted on a store with recipe .*; fit them again .*NAME=DIR gives each its own"
    ):
        train.distill(two, tmp_path / "x", replace(options, prototypes=tmp_path / "a"), False, Silent())
