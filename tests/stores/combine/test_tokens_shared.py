"""Patch tokens in merge, subset and export: they travel with their features, or are left out when asked."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from stores.errors import CorruptStore, OptionError, RecipeMismatch, StoreError
from stores.export import export
from stores.export.pseudonyms import Pseudonyms
from stores.format import manifest, recipe, tokens
from stores.format.layout import feature_array
from tests.tools.share import joined, part, wrong
from tests.tools.stores import TOKENS, content, files_of, make_store
from tests.tools.zarr_arrays import whole


def open_of(store: Path, slide_id: str) -> tokens.SlideTokens:
    return tokens.open_tokens(store, slide_id, TOKENS)


SLIDES = {"a": 5, "b": 40, "cv": 33, "d": 1}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("made") / "s", SLIDES, about=TOKENS)


@pytest.mark.slow
def test_the_parts_of_a_store_make_the_whole(made: Path, tmp_path: Path) -> None:
    assert wrong(made) == []
    part(made, tmp_path / "x", slides=("a", "b"))
    part(made, tmp_path / "y", slides=("b", "cv", "d"))
    joined([tmp_path / "y", tmp_path / "x"], tmp_path / "z")
    assert content(tmp_path / "z") == content(made)
    part(made, tmp_path / "one", seeds=1)
    assert open_of(tmp_path / "one", "cv").tokens.shape == (1, 33, 3, 6)
    assert wrong(tmp_path / "one") == wrong(tmp_path / "z") == []


def test_a_subset_without_tokens_is_a_store_without_tokens(made: Path, tmp_path: Path) -> None:
    part(made, tmp_path / "x", tokens=False)
    assert recipe.load(tmp_path / "x").tokens is None
    assert wrong(tmp_path / "x") == []
    plain = make_store(tmp_path / "plain", SLIDES)
    assert content(tmp_path / "x") == content(plain)
    joined([tmp_path / "x", plain], tmp_path / "z")
    with pytest.raises(RecipeMismatch, match=r"recipe\.tokens"):
        joined([made, plain], tmp_path / "no")


@pytest.mark.parametrize(
    ("leaf", "said"), [("tokens", r"token \(1, 2\) of row 0 seed 2 is"), ("positions", "token position")]
)
def test_stores_that_contradict_each_other(made: Path, tmp_path: Path, leaf: str, said: str) -> None:
    other = Path(shutil.copytree(made, tmp_path / "other"))
    place = (2, 0, 1, 2) if leaf == "tokens" else (2, 0, 2)
    array = zarr.open_array(other / "features.zarr/a" / leaf, mode="r+")
    before = np.asarray(array[2, 0, 2])
    array[place] = 9.5 if leaf == "tokens" else (15 if before != 15 else 14)
    with pytest.raises(StoreError, match=f"slide a: {said}"):
        joined([made, other], tmp_path / "z")


def test_lost_tokens_are_not_copied_in_silence(made: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(made, tmp_path / "s"))
    (path / "features.zarr/b/tokens/c/1/0/0/0").unlink()
    with pytest.raises(CorruptStore, match="tokens/c/1/0/0/0: is missing: committed tokens are lost"):
        part(path, tmp_path / "x")


@pytest.mark.slow
def test_exports(made: Path, tmp_path: Path) -> None:
    def exported(out: str, **options: Any) -> Path:
        export.export(made, tmp_path / out, export.ExportOptions(**options))
        assert wrong(tmp_path / out) == []
        return tmp_path / out

    lossless = exported("lossless", compact="lossless")
    assert content(lossless) == content(made)
    assert '"blosc"' in (lossless / "features.zarr/a/tokens/zarr.json").read_text()
    with pytest.raises(
        OptionError, match=r"--compact int8: keeps no tokens, and .* has 3 a view; add --no-tokens"
    ):
        exported("no", compact="int8")
    assert recipe.load(exported("int8", compact="int8", tokens=False)).tokens is None
    hidden = exported("hidden", pseudonyms=Pseudonyms(b"k" * 32))
    assert recipe.load(hidden).tokens == TOKENS
    (name,) = (row["slide_id"] for row in manifest.read_slides(hidden) if row["n_patches"] == 40)
    for leaf in tokens.LEAVES:
        old, new = (whole(s, feature_array(i, leaf)) for s, i in ((made, "b"), (hidden, name)))
        np.testing.assert_array_equal(old, new)
    bare = exported("bare", pseudonyms=Pseudonyms(b"k" * 32), tokens=False)
    assert not [file for file in files_of(bare) if "tokens" in file or "positions" in file]
