"""The drawn parameters of a slide's views, and the places of its tokens: those that policy, fingerprint and seed draw.

Needs neither pixels nor teacher, so it is a part of what structure says. It stands in `pipeline` because `stores` knows
no policy and draws nothing.
"""

import contextlib
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from pipeline.data.committed import BlockCache, CommittedBlock, read_commit
from pipeline.verify.options import ALL
from pipeline.views import draw, stored
from pipeline.views.policy import Policy
from stores import sampler
from stores.errors import G2LError, OptionError, StoreError
from stores.export.pseudonyms import is_keyed
from stores.format import layout, manifest, recipe, tiles
from stores.io.location import StoreLike
from stores.verify.checks import SlideFiles
from stores.verify.findings import Finding

NOT_DRAWN = "the parameters are not those that the seed draws"
OTHER_PLACES = "the places of its tokens are not those that the seed draws"


def sample_rows(
    rows: npt.NDArray[np.int32], n_patches: int, slide_id: str, block: int, sample: int | str
) -> npt.NDArray[np.int32]:
    """Rows of a block to look at again, ascending, when `sample` of the slide's patches are wanted."""
    if sample == ALL:
        return np.sort(rows)
    share = max(1, round(int(sample) * len(rows) / max(n_patches, 1)))
    return np.sort(rows[sampler.permutation(len(rows), "verify", slide_id, block)[:share]])


def check_policy(store: StoreLike) -> list[Finding]:
    """Whether the recipe's policy is one that this version draws from; nothing where the recipe is unreadable."""
    with contextlib.suppress(StoreError):
        about = recipe.load(store)
        if about.policy is not None and about.reader is not None and about.reader.rendering == draw.RENDERING:
            try:
                Policy.from_json(about.policy)
            except OptionError as error:
                return [Finding(layout.RECIPE, str(error), "file")]
    return []


def check_draws(
    store: StoreLike, files: SlideFiles, found: list[Finding], sample: int | str
) -> list[Finding]:
    """What is wrong with the parameters of a slide; nothing where recipe or commit records are broken already.

    Every view is compared with the range of the policy, those of a sample with what their seed draws.

    Parameters
    ----------
    found
        What the structure of the slide has shown.
    """
    about = files.stored
    if about is None or about.policy is None or about.reader is None or files.row is None:
        return []
    if files.row["status"] != manifest.OK or about.reader.rendering != draw.RENDERING:
        return []
    try:
        policy = Policy.from_json(about.policy)
        records = list(manifest.commits(store, files.slide_id))
        tiled = about.patch.grid == tiles.GRID  # only there the key of a row is not that of the slide
        patches = manifest.read_patches(store, files.slide_id) if tiled else None
    except G2LError:
        return []  # named with the recipe, or by the structure
    broken = {finding.file for finding in found}
    cache = BlockCache(store, about.tokens)
    wrong: list[Finding] = []
    for commit in records:
        if commit.file in broken:
            continue
        with contextlib.suppress(StoreError):  # the structure has named it
            block = read_commit(commit)
            for (seed, problem), rows in _by_seed(
                _of_block(block, commit, files, policy, cache, sample, patches)
            ).items():
                span = range(min(rows), max(rows) + 1)
                wrong.append(
                    Finding(
                        commit.file,
                        f"{len(rows)} views: {problem}",
                        "view",
                        files.slide_id,
                        commit.block,
                        range(seed, seed + 1),
                        span,
                    )
                )
    return wrong


def _by_seed(places: Iterator[tuple[int, int, str]]) -> dict[tuple[int, str], list[int]]:
    grouped: dict[tuple[int, str], list[int]] = {}
    for seed, row, problem in places:
        grouped.setdefault((seed, problem), []).append(row)
    return dict(sorted(grouped.items()))


def _of_block(
    block: CommittedBlock,
    commit: manifest.Commit,
    files: SlideFiles,
    policy: Policy,
    cache: BlockCache,
    sample: int | str,
    patches: manifest.Patches | None,
) -> Iterator[tuple[int, int, str]]:
    """(seed, row, problem) of the views of a commit record."""
    assert files.row is not None
    seeds, rows = block.columns["seed"], block.columns["row"]
    odd = np.zeros(len(rows), bool)
    drawn = {name: block.drawn[name] for name in manifest.DRAWN_SCHEMA.names}
    for name, at in stored.impossible(policy, seeds, drawn):
        odd |= at
        for i in np.flatnonzero(at).tolist():
            yield int(seeds[i]), int(rows[i]), f"{name} is not within what the policy draws"
    fingerprint = files.row["fingerprint"]
    if not fingerprint or is_keyed(fingerprint) or (patches is not None and len(patches) <= rows.max()):
        return  # draws need the fingerprint, which is a pseudonym there; the other, structure has named
    of_first = rows[seeds == commit.seeds.start]
    for row in sample_rows(of_first, files.row["n_patches"], files.slide_id, commit.block, sample).tolist():
        for seed in commit.seeds:
            place = block.at(row, seed)
            if odd[place]:
                continue
            x_px0, y_px0 = (int(block.columns[name][place]) for name in ("x_px0", "y_px0"))
            of_row = fingerprint if patches is None else patches.key(row, fingerprint)
            key = policy, of_row, x_px0, y_px0, seed
            if block.params(place) != draw.draw(*key):
                yield seed, row, NOT_DRAWN
            elif _other_places(cache, commit, row, seed, files, key):
                yield seed, row, OTHER_PLACES


def _other_places(
    cache: BlockCache,
    commit: manifest.Commit,
    row: int,
    seed: int,
    files: SlideFiles,
    key: tuple[Policy, str, int, int, int],
) -> bool:
    """Whether a view's tokens are from other places than its seed draws."""
    about = None if files.stored is None else files.stored.tokens
    if about is None:
        return False
    try:
        found = cache.positions(commit, np.array([row], np.int32), seed)
    except StoreError:
        return False  # a bad read, or named by the structure
    return not np.array_equal(found[0], draw.draw_tokens(*key, about.count, about.grid**2))
