"""Slides or patients that come equally often: the same stream in any number of processes, and after a resume."""

import itertools
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from pipeline.data.balance import described, group_units
from pipeline.data.dataset import ViewDataset
from pipeline.data.loader import LoaderOptions
from pipeline.data.split import Split, files_and_recipe, open_split
from pipeline.distill import train
from pipeline.extract.extract import extract
from pipeline.runtime.interrupt import Interrupted
from pipeline.runtime.progress import Silent
from pipeline.tile.options import TileOptions
from stores import sampler
from stores.errors import OptionError
from stores.format import manifest
from tests.tools.distill import OPTIONS as DISTILL
from tests.tools.distill import same
from tests.tools.notes import Notes
from tests.tools.settings import TEACHER

OPTIONS = LoaderOptions(6, 40, 2, 3, "none", 1, balance="patient")


@pytest.fixture(scope="module")
def uneven(slides: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of which patient p1 has two slides in training, and p2 a few patches of one."""
    store = tmp_path_factory.mktemp("uneven") / "store"
    table = store.parent / "slides.csv"
    table.write_text("slide_id,patient_id,split\na,p1,train\nb,p1,train\nc,p2,train\n")
    masks = store.parent / "masks"
    masks.mkdir()
    for name, side in (("a", 64), ("b", 96), ("c", 32)):  # of 192: patches are 32 wide
        mask = np.zeros((192, 192), np.uint8)
        mask[:side, :side] = 255
        cv2.imwrite(str(masks / f"{name}.png"), mask)
    tiled = TileOptions(slides_csv=table, masks=masks)
    extract([slides], store, replace(TEACHER, seeds=2), tiled, Silent())
    assert [row["n_patches"] for row in manifest.read_slides(store)] == [4, 9, 1]
    return store


@pytest.fixture(scope="module")
def split(uneven: Path) -> Split:
    return open_split(*files_and_recipe(uneven), "train", None)


def batches(split: Split, count: int, start: int = 0, **options: Any) -> list[bytes]:
    with split.loader(replace(OPTIONS, **options), start) as loader:
        return [b.targets.tobytes() + b.views.tobytes() for b in itertools.islice(loader, count)]


def test_units_are_grouped_by_slide_and_by_patient(uneven: Path, split: Split) -> None:
    by_slide = list(group_units(uneven, split.units, "slide").values())
    assert sorted(sum(u.n_views for u in group) for group in by_slide) == [2, 8, 18]
    by_patient = split.groups("patient")
    assert sorted({u.commit.slide_id for u in group} for group in by_patient) in (
        [{"a", "b"}, {"c"}],
        [{"c"}, {"a", "b"}],
    )
    assert split.groups("none") == []
    assert described(by_patient, "patient") == (
        "balance patient: 14 views of each of 2 patients in an epoch; the views of the smallest (2) come 7 times each, "
        "of the largest (26) 0.538 times"
    )


def test_patients_of_tiles_stand_beside_them(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    lines = ["path,patient_id,split"]
    for i in range(6):
        cv2.imwrite(str(tmp_path / f"{i}.png"), rng.integers(0, 255, (64, 64, 3), np.uint8))
        lines.append(f"{i}.png,{'' if i == 5 else 'xyy'[i % 3]},train")
    (tmp_path / "tiles.csv").write_text("\n".join(lines))
    store = tmp_path / "store"
    teacher = replace(TEACHER, teacher="tests.tools.tiny:teacher_of_64_px", seeds=1, policy="none")
    extract([tmp_path / "tiles.csv"], store, teacher, TileOptions(patch=64), Silent())
    units = sampler.find_units(store, "train", None)
    assert len(group_units(store, units, "slide")) == 1
    groups = list(group_units(store, units, "patient").values())
    assert sorted(sum(u.n_views for u in group) for group in groups) == [1, 2, 3]
    rows = [row for group in groups for unit in group for row in unit.rows.tolist()]
    assert sorted(rows) == list(range(6))


def test_every_patient_comes_equally_often(uneven: Path, split: Split) -> None:
    owner = {
        share: number
        for number, group in enumerate(split.groups("patient"))
        for unit in group
        for share in ((unit.commit.slide_id, row) for row in unit.rows.tolist())
    }
    seen: Counter[int] = Counter()
    stream = sampler.Stream(split.units, 3, 40, 2, split.groups("patient"))
    for window in itertools.takewhile(lambda window: window.epoch < 5, stream.windows()):
        for share in window.shares:
            seen.update(owner[share.segment.commit.slide_id, row] for row in share.rows.tolist())
    assert seen == {0: 70, 1: 70}  # 5 epochs of 28 views


def test_ranks_and_workers_share_out_one_stream_from_any_position(split: Split) -> None:
    """Over more than two epochs of 28 views."""
    whole = batches(split, 10)
    assert whole != batches(split, 10, balance="none")
    assert batches(split, 6, start=24) == whole[4:]
    for workers in (2, 4):
        dealt = [batches(split, 2, worker=worker, workers=workers) for worker in range(workers)]
        assert [dealt[i % workers][i // workers] for i in range(2 * workers)] == whole[: 2 * workers]
    views = batches(split, 24, batch_size=1)
    for world in (2, 4):
        ranks = [batches(split, 24 // world, batch_size=1, rank=rank, world=world) for rank in range(world)]
        assert [ranks[i % world][i // world] for i in range(24)] == views


def test_the_dataset_has_the_same_stream_and_knows_its_name(uneven: Path, split: Split) -> None:
    settings: dict[str, Any] = {"batch_size": 6, "window": 40, "seed": 3, "views_per_read": 2, "threads": 1}
    balanced = ViewDataset(uneven, balance="patient", **settings)
    found = [b.targets.numpy().tobytes() + b.views.numpy().tobytes() for b in itertools.islice(balanced, 6)]
    assert found == batches(split, 6)
    state = balanced.state_dict()
    assert state["stream"].startswith("lanes-1-patient-1, seed 3")
    with pytest.raises(OptionError, match="views_per_read and balance"):
        ViewDataset(uneven, **settings).load_state_dict(state)
    with pytest.raises(OptionError, match="balance='site': allowed is none, slide or patient"):
        ViewDataset(uneven, balance="site", **settings)


class Stopping(Notes):
    """Asks a run to stop at its sixth step."""

    def advance(self, count: int = 1, detail: str = "") -> None:
        self.said.append("step")
        if self.said.count("step") == 6:
            raise KeyboardInterrupt


def test_a_run_that_was_stopped_ends_with_the_same_student(uneven: Path, tmp_path: Path) -> None:
    options = replace(DISTILL, steps=10, checkpoint_every=4, balance="slide", seed=2)
    notes = Notes()
    train.distill(uneven, tmp_path / "whole", options, False, notes)
    assert any(
        text.startswith("balance slide: 9 views of each of 3 slides in an epoch") for text in notes.said
    )
    with pytest.raises((KeyboardInterrupt, Interrupted)):
        train.distill(uneven, tmp_path / "run", options, False, Stopping())
    with pytest.raises(OptionError, match=r"--balance none: .* was begun with slide"):
        train.distill(uneven, tmp_path / "run", replace(options, balance="none"), False, Silent())
    train.distill(uneven, tmp_path / "run", options, True, Silent())
    assert same(tmp_path / "whole", tmp_path / "run")


def test_one_group_is_balanced_already() -> None:
    one = sampler.Segment(manifest.Commit("a", 0, range(1), Path("a")), (0,), np.arange(4, dtype=np.int32))
    assert described([[one]], "slide") == "balance slide: there is one slide only, so it changes nothing"
