"""Stage one and the index of its store: dropped before anything changes, written when all is done."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline.extract import extract as stage_one
from pipeline.extract.extract import extract
from pipeline.runtime.progress import Silent
from pipeline.tile.options import TileOptions
from stores.errors import CorruptStore
from stores.format import layout, manifest
from stores.format.index import read_index
from tests.tools.settings import TEACHER


def test_it_is_dropped_before_the_work_and_written_after_it(
    slides: Path, store: Path, tile_options: TileOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = (store / layout.INDEX).read_bytes()
    path = Path(shutil.copytree(store, tmp_path / "s"))
    next(manifest.commits(path)).path.unlink()
    with pytest.raises(CorruptStore, match="which is not there"):
        read_index(path)

    def killed(*arguments: Any) -> None:
        assert not (path / layout.INDEX).exists()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stage_one, "_encode", killed)
        with pytest.raises(KeyboardInterrupt):
            extract([slides], path, TEACHER, tile_options, Silent())
    assert read_index(path) is None
    extract([slides], path, TEACHER, tile_options, Silent())
    assert (path / layout.INDEX).read_bytes() == whole


def test_a_finished_store_is_planned_by_its_index_and_gets_one_where_it_has_none(
    slides: Path, store: Path, tile_options: TileOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(shutil.copytree(store, tmp_path / "s"))
    read: list[str] = []
    of_record = manifest.Commit.read

    def counted(commit: manifest.Commit, *rest: Any) -> Any:
        read.append(commit.file)
        return of_record(commit, *rest)

    monkeypatch.setattr(manifest.Commit, "read", counted)
    done = extract([slides], path, TEACHER, tile_options, Silent())
    assert read == []
    (path / layout.INDEX).unlink()
    again = extract([slides], path, TEACHER, tile_options, Silent())
    assert read
    assert (again.views_before, again.bad_reads) == (done.views_before, done.bad_reads)
    assert done.views_before > 0
    assert read_index(path) is not None
