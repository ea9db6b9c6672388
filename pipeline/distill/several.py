"""A student of several teachers: a projector, a normalisation and a loss for each.

The loss is the sum over the teachers of weight times loss, the loss of a teacher being that of the views that it has a
target for. Both sides are standardised, dimension by dimension, so that teachers count alike whatever the size and
number of their features. Teacher dropping is that of UNIC (naver/unic): each view keeps the teacher that it agrees
with least, and lets go of each other one with some probability.
"""

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.distill import loss_spec
from pipeline.distill.model import Distiller, Embedded, Lesson, Targets, Teaching
from pipeline.distill.options import DistillOptions
from pipeline.encoders.encoder import Encoder

_LEAST = 2
"""Views that a batch needs of a teacher: normalisation is over them."""


class SeveralDistiller(Distiller):
    """A student, and what stands between it and the loss of each teacher. The first teacher is the one of `Distiller`.

    Parameters
    ----------
    teachings
        With a name and a loss each.
    """

    def __init__(
        self,
        student: Encoder,
        teachings: Sequence[Teaching],
        options: DistillOptions,
        dtype: torch.dtype = torch.float32,
        gather: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        losses = [teaching.loss or {} for teaching in teachings]
        super().__init__(student, losses[0], teachings[0], options, dtype, gather)
        self.others = nn.ModuleList(
            Lesson(student, loss, teaching, options, number)
            for number, (loss, teaching) in enumerate(zip(losses[1:], teachings[1:], strict=True), 1)
        )
        self.names = [teaching.name for teaching in teachings]
        self.weights = [teaching.weight for teaching in teachings]

    @property
    def lessons(self) -> list[Lesson]:
        """What stands between the student and each teacher."""
        return [self, *(lesson for lesson in self.others if isinstance(lesson, Lesson))]

    def loss_of(self, students: Sequence[Embedded], targets: Targets) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch, and that of each teacher, not weighted, detached; 0 where one has no part in it."""
        students, targets = self._gathered(students, targets)
        losses = self._losses(students, targets)
        total = torch.stack([w * loss for w, loss in zip(self.weights, losses, strict=True)]).sum()
        return total, {name: loss.detach() for name, loss in zip(self.names, losses, strict=True)}

    def _losses(self, students: Sequence[Embedded], targets: Targets) -> list[Tensor]:
        assert targets.present is not None
        present = targets.present.bool()
        pairs: list[list[tuple[Tensor, Tensor]]] = []
        every = [targets, *targets.others]
        for number, (lesson, student, target) in enumerate(zip(self.lessons, students, every, strict=True)):
            rows = present[:, number].nonzero().flatten()
            if len(rows) < _LEAST or lesson.projector is None:
                pairs.append([])
            else:
                normed = lesson.target_norm(target.features[rows])
                projected = lesson.every_projected(student.features[rows])
                pairs.append([(one, normed) for one in projected.values()])
        kept = present if targets.let_go is None else self._kept(present, targets.let_go.bool(), pairs)
        losses = []
        for number, (lesson, student, target) in enumerate(zip(self.lessons, students, every, strict=True)):
            rows = present[:, number].nonzero().flatten()
            stays = kept[rows, number].nonzero().flatten()
            if len(stays) < _LEAST:
                losses.append(_nothing_of(lesson, student))
                continue
            chosen = rows[stays]
            of_kept = [(s[stays], t[stays]) for s, t in pairs[number]]
            losses.append(lesson.weighted(student.rows(chosen), target.alone(chosen), of_kept)[0])
        return losses

    @torch.no_grad()
    def _kept(
        self, present: Tensor, let_go: Tensor, pairs: Sequence[Sequence[tuple[Tensor, Tensor]]]
    ) -> Tensor:
        """Which targets have a part in the loss, bool (B, K): one of each view at least, if it has any."""
        error = torch.full(present.shape, -torch.inf, device=present.device)
        for number, of_teacher in enumerate(pairs):
            for s, t in of_teacher[:1]:  # of the whole embedding
                error[present[:, number], number] = (s - t).square().mean(dim=1)
        keeps = nn.functional.one_hot(error.argmax(dim=1), present.shape[1]).bool()
        return present & (~let_go | keeps)


def _nothing_of(lesson: Lesson, student: Embedded) -> Tensor:
    """0, in a graph with everything that a loss has in its own: processes of a training expect the same graph."""
    parts = [student.features, *(parameter for name, parameter in _own(lesson))]
    parts += [of for of in (student.tokens, student.attention, student.beside) if of is not None]
    return torch.stack([0.0 * part.sum() for part in parts]).sum()


def _own(lesson: Lesson) -> list[tuple[str, nn.Parameter]]:
    """The parameters of projector and heads, without those of the student."""
    return [
        (name, p)
        for name, p in lesson.named_parameters()
        if name.startswith(("projector.", "heads.", "nested."))
    ]


def build(
    student: Encoder,
    teachings: Sequence[Teaching],
    options: DistillOptions,
    dtype: torch.dtype = torch.float32,
    gather: Callable[[Tensor], Tensor] | None = None,
) -> Distiller:
    """A distiller with heads seeded by ``options.seed``; leaves the global random state alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        if len(teachings) > 1:
            return SeveralDistiller(student, teachings, options, dtype, gather)
        (teaching,) = teachings
        loss = teaching.loss or loss_spec.parse(options.loss)
        return Distiller(student, loss, teaching, options, dtype, gather)


def drawn(seed: int, position: int, n_views: int, n_teachers: int, share: float) -> torch.Tensor:
    """Which targets ``--teacher-drop`` lets go of, uint8 (n_views, n_teachers): a function of seed and place alone.

    Parameters
    ----------
    position : int
        Place in the stream of the first view. Each view has draws of its own, however the stream is cut into steps.
    share : float
        Of targets that are let go of.
    """
    key = hashlib.blake2b(str(seed).encode(), digest_size=16, person=b"g2l-teach").digest()
    blocks = -(-n_teachers // 4)  # Philox gives four numbers at once
    generator = np.random.Philox(key=int.from_bytes(key, "little"), counter=position * blocks)
    words = generator.random_raw(n_views * blocks * 4).reshape(n_views, blocks * 4)[:, :n_teachers]
    return torch.from_numpy(((words >> np.uint64(11)) * 2.0**-53 < share).astype(np.uint8))
