"""The upper bound of a store with endlessly many views: an online teacher that sees a fresh view at every step.

This is how G2L and H0-mini train, with the teacher in memory. A baseline for experiments, no part of the product.
"""

import numpy as np
import torch

from pipeline.data.committed import BlockCache
from pipeline.distill.inputs import open_data
from pipeline.distill.model import Targets
from pipeline.distill.options import DistillOptions
from pipeline.distill.ranks import Ranks
from pipeline.distill.schedule import cosine_annealing
from pipeline.distill.start import with_defaults
from pipeline.distill.train import load_student
from pipeline.distill.trainer import make_trainer
from pipeline.encoders.encoder import Encoder
from pipeline.extract.options import ExtractOptions
from pipeline.inference.loaded import EncoderSpec, load_on_device
from pipeline.runtime.progress import Silent
from pipeline.slides.sources import Reader
from pipeline.views.draw import draw
from pipeline.views.render import render
from stores import sampler
from stores.format import manifest
from stores.io.location import StoreLike

FIRST_SEED = 1_000_000
"""Far from any stored one; each occurrence of a patch takes the next."""


def distill_fresh(store: StoreLike, options: DistillOptions, teaching: ExtractOptions) -> Encoder:
    """Train as `distill` does, its steps, batches, schedule and loss, but on views and targets made for each step."""
    data = open_data(store, options, 1, Silent())
    teacher = load_on_device(EncoderSpec.of(teaching.teacher, teaching))
    assert options.steps is not None
    student = load_student(options)
    options = with_defaults(options, student, options.steps, Silent())
    assert options.steps is not None
    assert options.lr is not None
    trainer = make_trainer(student, data, options, Ranks(0, 1, 1, torch.device("cpu")))
    fingerprints = {row["slide_id"]: row["fingerprint"] for row in manifest.read_slides(store)}
    commits = BlockCache(store)
    # one seed of each patch: an epoch is a pass over the patches
    units = [sampler.Segment(unit.commit, (0,), unit.rows) for unit in data.train.units if 0 in unit.seeds]
    windows = sampler.Stream(units, options.seed, 2048).windows()
    readers: dict[str, Reader] = {slide_id: source.open() for slide_id, source in data.train.sources.items()}
    held: list[tuple[str, int, int, int]] = []
    occurrence = 0
    for step in range(options.steps):
        while len(held) < options.batch_size:
            window = next(windows)
            places: list[tuple[str, int, int, int] | None] = [None] * window.n_views
            for share in window.shares:
                block = commits.commit(share.segment.commit)
                for row, place in zip(share.rows.tolist(), share.places.tolist(), strict=True):
                    x, y, _ = block.request(row, {0: False})
                    places[place] = (share.segment.commit.slide_id, row, x, y)
            held += [place for place in places if place is not None]
        batch, held = held[: options.batch_size], held[options.batch_size :]
        views = []
        for slide_id, row, x, y in batch:
            params = draw(data.train.policy, fingerprints[slide_id], x, y, FIRST_SEED + occurrence)
            views.append(render(readers[slide_id].read(row, x, y), params, data.train.policy))
            occurrence += 1
        stacked = np.stack(views)
        features = teacher.launch(stacked).clone()  # out of inference mode
        none = torch.empty(len(stacked), 0, 0), torch.empty(len(stacked), 0, dtype=torch.int64)
        lr = cosine_annealing(options.lr, step, options.steps, options.warmup_steps or 0)
        decay = cosine_annealing(options.weight_decay, step, options.steps)
        trainer.step(
            torch.from_numpy(stacked), Targets(features, *none), lr, decay, step * options.batch_size
        )
    for reader in readers.values():
        reader.close()
    return trainer.model.student.eval()
