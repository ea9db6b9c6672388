"""Patch tokens in the store: drawn places, the teacher's values, verified, repaired, shared, never unchecked."""

import hashlib
import re
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import zarr
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

import cli
from pipeline.data.committed import BlockCache
from pipeline.data.loader import LoaderOptions, ViewLoader
from pipeline.data.sources import find_sources
from pipeline.encoders.load import load_encoder
from pipeline.extract import extract as stage
from pipeline.extract import plan
from pipeline.extract.options import PlanOptions
from pipeline.runtime.progress import Silent
from pipeline.slides.openslide_reader import OpenSlidePatches
from pipeline.slides.registry import inspect
from pipeline.slides.slide import plan_read
from pipeline.tile.options import TileOptions
from pipeline.verify.options import VerifyOptions
from pipeline.views import draw
from pipeline.views.policy import POLICIES
from pipeline.views.render import render
from stores import sampler
from stores.errors import CorruptStore, EncoderError, OptionError, ReadError, RecipeMismatch, StoreError
from stores.format import features, layout, manifest, recipe, tokens
from stores.format.layout import feature_array
from stores.verify import reindex
from tests.tools.settings import TEACHER, VIT
from tests.tools.share import contents
from tests.tools.stores import content, files_of
from tests.tools.verify import SAME_TEACHER, look, named, structure
from tests.tools.zarr_arrays import whole

POLICY = POLICIES["g2l"]
WITH_TOKENS = replace(TEACHER, teacher=VIT, tokens=5)
GRID = 8


# Places


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 1 << 40), st.integers(0, 50), st.integers(1, 300), st.data())
def test_places_follow_the_written_rule(x: int, seed: int, total: int, data: st.DataObject) -> None:
    """docs/concepts/views.md: the words of the view's key after the sixteenth, one a token, the smallest kept."""
    count = data.draw(st.integers(1, total))
    text = f"g2l view 1\nsha256:ab\n{x}\n7\n{seed}\n{POLICY.digest()}"
    key = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")
    words = np.random.Philox(key=key).random_raw(16 + total).tolist()[16:]
    expected = sorted(sorted(range(total), key=lambda i: words[i])[:count])
    drawn = draw.draw_tokens(POLICY, "sha256:ab", x, 7, seed, count, total)
    assert drawn.dtype == np.int32
    assert drawn.tolist() == expected


def test_golden_places() -> None:
    drawn = [draw.draw_tokens(POLICY, "sha256:ab", 2048, 512, seed, 6, 256).tolist() for seed in (0, 1, 2)]
    assert drawn == GOLDEN


# other labs depend on them
GOLDEN = [[3, 51, 88, 99, 144, 200], [6, 42, 83, 115, 145, 248], [35, 64, 95, 113, 150, 236]]


def test_every_place_comes_equally_often() -> None:
    seen = Counter(
        place for x in range(2000) for place in draw.draw_tokens(POLICY, "p", x, 0, 1, 4, 16).tolist()
    )
    # 500 expected of each, standard deviation 19
    assert len(seen) == 16
    assert all(400 < n < 600 for n in seen.values())
    assert draw.draw_tokens(POLICY, "p", 0, 0, 3, 16, 16).tolist() == list(range(16))


# Extraction


def rows_of(store: Path) -> list[dict[str, Any]]:
    return manifest.read_slides(store)


def open_of(store: Path, slide_id: str) -> tokens.SlideTokens:
    about = recipe.load(store).tokens
    assert about is not None
    return tokens.open_tokens(store, slide_id, about)


def arrays_of(store: Path, slide_id: str) -> tuple[npt.NDArray[np.float16], npt.NDArray[np.int32]]:
    """All tokens of a slide and their positions, as Zarr reads them."""
    found = (whole(store, feature_array(slide_id, leaf)) for leaf in ("tokens", "positions"))
    return tuple(found)  # type: ignore[return-value]


@torch.inference_mode()
def test_kept_tokens_are_those_of_a_full_forward_pass(
    token_store: Path, slides: Path, request: pytest.FixtureRequest
) -> None:
    """From the slide, with timm's own forward pass: every view, every kept token, in float16 to the bit."""
    encoder = load_encoder(VIT, random_weights=0)
    model: Any = encoder.backbone
    for row in rows_of(token_store):
        info = inspect(row["slide_id"], slides / row["file_name"])
        reader = OpenSlidePatches(info.path, plan_read(info, 0.5, 256))
        request.addfinalizer(reader.close)
        of_slide = arrays_of(token_store, row["slide_id"])
        patches = manifest.read_patches(token_store, row["slide_id"])
        for seed in range(3):
            kept, places = (array[seed] for array in of_slide)
            for i in range(0, len(patches), 7):
                x, y = int(patches.x_px0[i]), int(patches.y_px0[i])
                view = render(reader.read(x, y), draw.draw(POLICY, row["fingerprint"], x, y, seed), POLICY)
                assert (
                    places[i].tolist()
                    == draw.draw_tokens(POLICY, row["fingerprint"], x, y, seed, 5, GRID**2).tolist()
                )
                every = model.forward_features(encoder.normalized(torch.from_numpy(view[None])))[0]
                assert every.shape == (1 + 4 + GRID**2, 24)
                full = every[5:][places[i]].half().numpy()
                np.testing.assert_allclose(kept[i], full, rtol=2e-3, atol=2e-3)
                assert not np.allclose(kept[i], every[4:-1][places[i]].half().numpy(), rtol=2e-3, atol=2e-3)


@pytest.mark.slow
def test_features_are_what_they_are_without_tokens(
    token_store: Path, slides: Path, tile_options: TileOptions, tmp_path: Path
) -> None:
    stage.extract([slides], tmp_path / "s", replace(WITH_TOKENS, tokens=None), tile_options, Silent())
    without, beside = contents(tmp_path / "s"), contents(token_store)
    for name in ("recipe.json", layout.INDEX):  # which counts the bytes of the tokens too
        assert without.pop(name) != beside.pop(name)
    extra = {name for name in beside if re.search(r"/(tokens|positions)/", name)}
    assert extra
    assert {name: value for name, value in beside.items() if name not in extra} == without


@pytest.mark.slow
def test_all_tokens_and_their_recipe(slides: Path, tile_options: TileOptions, tmp_path: Path) -> None:
    every = replace(WITH_TOKENS, tokens=GRID**2, limit=3)
    stage.extract([slides / "a.tiff"], tmp_path, every, tile_options, Silent())
    assert recipe.load(tmp_path).tokens == recipe.Tokens(GRID**2, GRID, 24, "tokens-1")
    kept, places = arrays_of(tmp_path, "a")
    assert (places[:, :3] == np.arange(GRID**2)).all()
    assert np.isfinite(kept[:, :3]).all()
    assert np.isnan(kept[:, 3:]).all()
    assert (places[:, 3:] == -1).all()
    assert structure(tmp_path, partial=True) == []


@pytest.mark.slow
def test_limit_then_more_seeds_then_the_rest_is_the_same_store(
    token_store: Path, slides: Path, tile_options: TileOptions, tmp_path: Path
) -> None:
    for options in (replace(WITH_TOKENS, limit=4, threads=1), replace(WITH_TOKENS, seeds=2), WITH_TOKENS):
        stage.extract([slides], tmp_path / "s", replace(options, readers="threads"), tile_options, Silent())
    assert content(tmp_path / "s") == content(token_store)
    assert structure(tmp_path / "s") == []


def test_a_store_has_tokens_or_has_none(
    token_store: Path, store: Path, slides: Path, tile_options: TileOptions, tmp_path: Path
) -> None:
    path = Path(shutil.copytree(token_store, tmp_path / "s"))
    with pytest.raises(RecipeMismatch, match=r"recipe\.tokens.*'count': 5"):
        stage.extract([slides], path, replace(WITH_TOKENS, tokens=None), tile_options, Silent())
    with pytest.raises(RecipeMismatch, match=r"recipe\.tokens\.count: .* has 5, this run has 6"):
        stage.extract([slides], path, replace(WITH_TOKENS, tokens=6), tile_options, Silent())


@pytest.mark.parametrize(
    ("teacher", "count", "error", "said"),
    [
        (VIT, 65, OptionError, "--tokens 65: a view of vit_tiny.* has 8x8; allowed is 1 to 64"),
        (VIT, 0, OptionError, "--tokens 0: allowed is 1 or more"),
        ("demo-teacher", 4, EncoderError, "demo-teacher has no square grid of patch tokens"),
        ("tests.tools.tiny:teacher", 4, EncoderError, "no square grid of patch tokens"),
    ],
)
def test_tokens_that_cannot_be(
    slides: Path, tmp_path: Path, teacher: str, count: int, error: type[Exception], said: str
) -> None:
    options = replace(TEACHER, teacher=teacher, tokens=count)
    with pytest.raises(error, match=said):
        stage.extract([slides], tmp_path / "s", options, TileOptions(), Silent())
    assert not (tmp_path / "s" / "recipe.json").exists()


@pytest.mark.slow
def test_a_bad_read_has_no_tokens(
    slides: Path, tile_options: TileOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = OpenSlidePatches.read
    seen: list[int] = []

    def read(self: Any, x: int, y: int) -> npt.NDArray[np.uint8]:
        seen.append(x)
        if len(seen) == 2:
            raise ReadError("a.tiff: broken here")
        return original(self, x, y)

    monkeypatch.setattr(OpenSlidePatches, "read", read)
    options = replace(WITH_TOKENS, threads=1, pixels=False)
    stage.extract([slides / "a.tiff"], tmp_path, options, tile_options, Silent())
    kept, places = arrays_of(tmp_path, "a")
    assert np.isnan(kept[:, 1]).all()
    assert (places[:, 1] == -1).all()
    assert np.isfinite(np.delete(kept, 1, axis=1)).all()
    assert structure(tmp_path) == []


def test_a_plan_knows_their_bytes_and_files(
    token_store: Path, slides: Path, tile_options: TileOptions
) -> None:
    options = PlanOptions(dim=24, seeds=3, pixels=True, tokens=5)
    planned = plan.plan([slides], options, tile_options, Silent())
    sizes = {n: size for n, size in layout.list_files(token_store).items() if "zarr.json" not in n}
    found = sum(size for name, size in sizes.items() if re.search(r"/(tokens|positions)/c/", name))
    assert planned.tokens is not None
    assert planned.token_bytes(planned.tokens) == found
    names = layout.list_files(token_store)
    other = {n for n in names if n.startswith("options/") or n in ("recipe.json", "manifest/slides.parquet")}
    assert planned.files == len(names) - len(other)


def test_a_view_of_h_optimus_0_with_all_tokens_is_786_kb() -> None:
    result = CliRunner().invoke(cli.g2l, ["plan", "--help"])
    assert "--tokens" in result.output
    planned = plan.Plan([plan.SlidePlan("a", 4096, "train", "p")], {}, 2, 1536, None, None, "")
    size = planned.token_bytes(plan.TokenPlan(256, 1536)) / planned.views
    assert size == pytest.approx(786_432 + 1024, abs=1)  # of tokens, of their positions; checksums
    planned.tokens = plan.TokenPlan(256, 1536)
    assert any("tokens 6.5 GB (787.5 kB a view)" in line for line in planned.lines())


# Memory: a chunk at a time


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 200), st.integers(1, 3), st.integers(1, 3), st.randoms(use_true_random=False))
def test_chunks_are_handed_on_whole_and_in_order(n_rows: int, n_seeds: int, dim: int, random: Any) -> None:
    about = recipe.Tokens(2, 2, dim, "tokens-1")
    values = np.arange(n_seeds * n_rows * 2 * dim, dtype=np.float16).reshape(n_seeds, n_rows, 2, dim)
    bad = {row for row in range(n_rows) if random.random() < 0.3}
    out = np.full_like(values, -1)
    size = tokens.chunk_rows(n_rows, 2, dim)

    def write(seed: int, index: int, held: npt.NDArray[np.float16]) -> None:
        assert len(held) == min(size, n_rows - index * size)
        out[seed, index * size : index * size + size] = held

    for block in range(features.n_blocks(n_rows)):
        buffer = tokens.ChunkBuffer(n_seeds, features.block_range(n_rows, block), n_rows, about, write)
        for row in features.block_range(n_rows, block):
            for seed in range(n_seeds) if row not in bad else ():
                buffer.put(seed, row, values[seed, row])
        buffer.flush()
    good = sorted(set(range(n_rows)) - bad)
    np.testing.assert_array_equal(out[:, good], values[:, good])


@pytest.mark.parametrize("n_rows", [1, 31, 33, 1024, 1025, 3000])
@pytest.mark.parametrize(("count", "dim"), [(1, 8), (16, 1536), (256, 1536), (3000, 1536)])
def test_a_chunk_has_one_writer_and_fits_in_memory(n_rows: int, count: int, dim: int) -> None:
    rows, size = tokens.chunk_rows(n_rows, count, dim), features.block_rows(n_rows)
    assert size % rows == 0
    assert rows == 1 or rows * count * dim * 2 <= 8 << 20


# What stage two reads


def test_the_loader_gives_each_view_its_own_tokens(token_store: Path) -> None:
    units = sampler.find_units(token_store, "train", None)
    sources = find_sources(token_store, recipe.load(token_store), {u.commit.slide_id for u in units}, ())
    options = LoaderOptions(8, 40, 2, 0, "all", 2)
    about = recipe.load(token_store).tokens
    expected = {}
    for row in rows_of(token_store):
        if row["split"] == "train":
            values, places = arrays_of(token_store, row["slide_id"])
            kept = features.open_features(token_store, row["slide_id"])
            for seed in range(3):
                of_block = kept.read_block(seed, 0)
                for i in range(kept.n_rows):
                    key = of_block[i].tobytes()
                    expected[key] = values[seed, i], places[seed, i]
    total = sum(unit.n_views for unit in units)
    seen = 0
    with ViewLoader(token_store, units, sources, POLICY, options, tokens=about) as loader:
        for batch in loader:
            for i in range(len(batch.views)):
                values, places = expected[batch.targets[i].tobytes()]
                np.testing.assert_array_equal(batch.tokens[i], values)
                np.testing.assert_array_equal(batch.positions[i], places)
            seen += len(batch.views)
            if seen >= 2 * total:
                break
    assert seen >= 2 * total


def edit(store: Path, leaf: str, place: tuple[Any, ...], value: float) -> None:
    array = zarr.open_array(store / "features.zarr" / "a" / leaf, mode="r+")
    array[place] = value


@pytest.mark.parametrize(
    ("leaf", "place", "value", "said"),
    [
        ("positions", (0, 0, 0), 64, "token positions that are not ascending numbers from 0 to 63"),
        ("positions", (0, 0, 0), -3, "token positions"),
        ("positions", (0, 0, 4), 0, "token positions"),
        ("tokens", (0, 0, 2, 1), np.nan, "1 committed rows have no finite features"),
    ],
)
def test_hostile_tokens_are_refused(
    token_store: Path, tmp_path: Path, leaf: str, place: tuple[int, ...], value: float, said: str
) -> None:
    path = Path(shutil.copytree(token_store, tmp_path / "s"))
    edit(path, leaf, place, value)
    cache = BlockCache(path, recipe.load(path).tokens)
    commit = next(manifest.commits(path, "a"))
    with pytest.raises(CorruptStore, match=said):
        cache.tokens(commit, np.arange(4, dtype=np.int32), 0)
    assert [finding for finding in structure(path) if finding.kind == "features" and leaf in finding.file]


def test_arrays_of_another_form_are_refused(token_store: Path, tmp_path: Path) -> None:
    about = recipe.load(token_store).tokens
    assert about is not None
    for other in (replace(about, count=4), replace(about, dim=23)):
        with pytest.raises(CorruptStore, match="expected"):
            tokens.open_tokens(token_store, "a", other)
    path = Path(shutil.copytree(token_store, tmp_path / "s"))
    text = (path / "features.zarr/a/tokens/zarr.json").read_text()
    n_rows = open_of(path, "a").n_rows
    huge = text.replace(f"{n_rows},", "2000000000,", 1)
    assert huge != text
    (path / "features.zarr/a/tokens/zarr.json").write_text(huge)
    with pytest.raises(StoreError, match="expected"):
        open_of(path, "a")
    assert named(structure(path), "features.zarr/a/tokens/zarr.json")
    with pytest.raises(StoreError, match=r"recipe.tokens: 300 tokens of length 8 of a grid of side 16"):
        recipe.Tokens(300, 16, 8, "tokens-1")


# Verify and repair


@pytest.mark.slow
def test_damaged_tokens_are_found_and_repaired(token_store: Path, slides: Path, tmp_path: Path) -> None:
    assert structure(token_store) == []
    path = Path(shutil.copytree(token_store, tmp_path / "s"))
    flipped = path / "features.zarr/a/tokens/c/1/0/0/0"
    raw = bytearray(flipped.read_bytes())
    raw[1000] ^= 4
    flipped.write_bytes(raw)
    gone = ["b/positions/c/0/0/0", "c/tokens/c/2/0/0/0", "b/tokens/zarr.json"]
    for name in gone:
        (path / "features.zarr" / name).unlink()
    found = structure(path)
    for name in ("a/tokens/c/1/0/0/0", "b/tokens/zarr.json", "c/tokens/c/2/0/0/0"):
        assert named(found, f"features.zarr/{name}"), name
    same = replace(SAME_TEACHER, teacher=VIT)
    result = look(path, replace(same, slides=(slides,), repair=True))
    assert result.findings == []
    result = look(path, replace(same, slides=(slides,), repair=True))
    assert [f for f in files_of(path) if files_of(path)[f] != files_of(token_store)[f]] == []


@pytest.mark.slow
def test_tokens_of_another_view_are_not_the_teachers(token_store: Path, slides: Path, tmp_path: Path) -> None:
    same = replace(SAME_TEACHER, teacher=VIT)
    assert look(token_store, same).findings == []
    path = Path(shutil.copytree(token_store, tmp_path / "s"))
    array = zarr.open_array(path / "features.zarr/a/tokens", mode="r+")
    array[1] = np.asarray(array[1])[::-1]
    assert structure(path) == []
    (found,) = look(path, same).findings
    assert "views have tokens that are not the teacher's" in found.problem
    assert found.file == "features.zarr/a/tokens"
    assert found.seeds == range(1, 2)


@pytest.mark.slow
def test_places_that_no_seed_draws_are_named(token_store: Path, slides: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(token_store, tmp_path / "s"))
    array = zarr.open_array(path / "features.zarr/a/positions", mode="r+")
    array[1, 0] = [0, 1, 2, 3, 4]
    assert structure(path) == []
    (found,) = look(path, VerifyOptions(slides=(slides,), threads=2)).findings
    assert found.problem == "1 views: the places of its tokens are not those that the seed draws"
    result = look(path, replace(SAME_TEACHER, teacher=VIT, slides=(slides,), repair=True))
    assert result.findings == []
    assert files_of(path) == files_of(token_store)


@pytest.mark.slow
def test_leftover_chunks_of_tokens_are_seen(slides: Path, tile_options: TileOptions, tmp_path: Path) -> None:
    path = tmp_path / "s"
    stage.extract([slides], path, replace(WITH_TOKENS, pixels=False), tile_options, Silent())
    next(manifest.commits(path, "a")).path.unlink()
    (path / layout.INDEX).unlink()  # a killed run leaves none
    problems = [str(finding) for finding in structure(path)]
    assert any("tokens/c/0/0/0/0" in text and "not listed" in text for text in problems)
    assert structure(path, partial=True) == []
    result = reindex.reindex(path, False, True)
    assert {name.split("/")[2] for name in result.leftovers} == {"features", "stats", "tokens", "positions"}
