"""All structural checks of one slide, in order."""

import contextlib

import numpy as np
import pyarrow as pa

from stores.errors import StoreError
from stores.format import features, layout, manifest
from stores.format.index import record_of
from stores.io.location import StoreLike
from stores.verify.attention_checks import check_attention
from stores.verify.checks import SlideCheck, SlideFiles, SlideFindings, StoreCheck
from stores.verify.token_checks import check_tokens

MAX_VIEWS = 1 << 27
"""Of a slide: memory is taken for each, and the slides table may state any number."""


def check_slide(store: StoreLike, files: SlideFiles) -> SlideFindings:
    """Read everything that a store has of one slide. It needs no other slide, so it runs in any process and order."""
    slides = {} if files.row is None else {files.slide_id: files.row}
    state = StoreCheck(store, files.sizes, slides, files.stored, files.partial, files.n_seeds)
    n_ok = 0
    with state.unexpected(layout.slide_group(files.slide_id), files.slide_id):
        commits = _read_commits(state, files.slide_id)
        if files.row is not None and files.row["status"] == manifest.OK:
            check = SlideCheck(state, files.slide_id, files.row, commits, list(files.sizes))
            _check_usable(check)
            n_ok = check.n_ok
    result = SlideFindings(files.slide_id, state.found, n_ok)
    if files.indexed and commits:
        with contextlib.suppress(StoreError):  # what is wrong with the statistics was named above
            stats = features.read_stats(store, files.slide_id)
            for commit, table in commits:
                result.records.append(record_of(commit, table, files.sizes.get(commit.file, 0)))
                result.figures.add(commit, table, stats)
    return result


def _read_commits(state: StoreCheck, slide_id: str) -> list[tuple[manifest.Commit, pa.Table]]:
    """Readable commit records. Unreadable ones, and those that another record replaces, become findings."""
    folder = layout.views_folder(slide_id)
    found, relied = [], set()
    for commit in manifest.commits(state.store, slide_id):
        relied.add(commit.file)
        try:
            found.append((commit, commit.read()))
        except StoreError as error:
            place = {"block": commit.block, "seeds": commit.seeds}
            state.add(commit.file, str(error).replace(f"{commit.path}: ", ""), "commit", slide_id, **place)
    for name in sorted(name for name in state.listed if name.startswith(f"{folder}/") and name not in relied):
        state.add(name, "is not relied on: `g2l store reindex` removes it", "stray", slide_id)
    return found


def _check_usable(check: SlideCheck) -> None:
    """Check patches, commit records, then arrays: mistakes in the first explain those in the last."""
    n_rows = check.row["n_patches"]
    patches = check.read_patches()
    if patches is not None:
        n_rows = len(patches)
    if check.state.n_seeds * n_rows > MAX_VIEWS:
        text = f"{n_rows} patches under {check.state.n_seeds} seeds: more than {MAX_VIEWS} views, which no slide has"
        return check.add(layout.SLIDES, text, "patches")
    # 0: not listed, 1: bad read, 2: ok
    listed = np.zeros((check.state.n_seeds, n_rows), np.int8)
    for commit, table in check.commits:
        check.check_commit(commit, table, patches, listed)
    check.n_ok = int((listed == 2).sum())
    found = [f for f in check.state.found if f.slide_id == check.slide_id and f.kind == "commit"]
    check.broken = {(f.block, seed) for f in found for seed in f.seeds or ()}
    check.check_missing(listed)
    if check.commits or any(name.startswith(f"{layout.FEATURES}/") for name in check.files):
        check.check_coords(patches)
        check.check_features(listed)
        check_tokens(check, listed)
        check_attention(check, listed)
        check.check_pixels(listed)
