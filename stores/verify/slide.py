"""All structural checks of one slide, in order."""

import pyarrow as pa

from stores.errors import StoreError
from stores.format import manifest
from stores.io.location import StoreLike
from stores.verify.checks import SlideCheck, SlideFiles, SlideFindings, StoreCheck


def check_slide(store: StoreLike, files: SlideFiles) -> SlideFindings:
    """Read everything that a store has of one slide; needs no other slide, hence runs anywhere and in any order."""
    slides = {} if files.row is None else {files.slide_id: files.row}
    state = StoreCheck(store, files.sizes, slides, files.stored, files.partial, files.n_seeds)
    commits = _read_commits(state, files.slide_id)
    n_ok = 0
    if files.row is not None and files.row["status"] == manifest.OK:
        check = SlideCheck(state, files.slide_id, files.row, commits, list(files.sizes))
        check.run()
        n_ok = check.n_ok
    return SlideFindings(files.slide_id, state.found, n_ok)


def _read_commits(state: StoreCheck, slide_id: str) -> list[tuple[manifest.Commit, pa.Table]]:
    """Readable commit records; the others become findings, and so do those that another has replaced."""
    folder = f"manifest/views/{slide_id}/"
    found, relied = [], set()
    for commit in manifest.commits(state.store, slide_id):
        file = folder + commit.path.name
        relied.add(file)
        try:
            found.append((commit, commit.read()))
        except StoreError as error:
            place = {"block": commit.block, "seeds": commit.seeds}
            state.add(file, str(error).replace(f"{commit.path}: ", ""), "commit", slide_id, **place)
    for name in sorted(name for name in state.listed if name.startswith(folder) and name not in relied):
        state.add(name, "is not relied on: `g2l store reindex` removes it", "stray", slide_id)
    return found
