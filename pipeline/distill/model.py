"""The model that is trained: the student, and the heads between it and the loss."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from pipeline.data.loader import Batch, Paired
from pipeline.distill import loss_spec
from pipeline.distill.grids import averaged, divided
from pipeline.distill.heads import Assigner, DinoHead, Projector, TargetNorm, standardise
from pipeline.distill.layers import frozen_parts
from pipeline.distill.losses import assignment, attention_kl, cosine, feature_loss, infonce, koleo
from pipeline.distill.options import DistillOptions
from pipeline.distill.prototypes.files import Space
from pipeline.encoders.attention import last_attention, with_attentions
from pipeline.encoders.class_tokens import part_of, places_of
from pipeline.encoders.encoder import Encoder, take_tokens, token_grid
from stores.errors import OptionError, StoreError
from stores.format.recipe import Attention, Tokens

Pass = Callable[[Tensor], tuple[Tensor, Tensor | None, Tensor | None]]
"""Views to features, tokens and attention."""


@dataclass(frozen=True, slots=True)
class Teaching:
    """Facts about the teacher, from the store and the prototypes."""

    dim: int
    mean: npt.NDArray[np.float64]
    """Mean of the targets, (dim,)."""
    variance: npt.NDArray[np.float64]
    tokens: Tokens | None = None
    """The tokens that the loss uses, if any."""
    spaces: Mapping[str, Space] = field(default_factory=dict)
    """Prototypes, where the loss needs them."""
    attention: Attention | None = None
    """The attention that the loss uses, if any."""
    name: str = ""
    """Of the store, where there are several."""
    weight: float = 1.0
    """Of its loss, where there are several."""
    loss: Mapping[str, float] | None = None
    """Terms and weights of this teacher; None takes those of ``--loss``."""

    def space(self, name: str) -> Space:
        """The prototypes of a space; OptionError when there are none."""
        if name not in self.spaces:
            raise OptionError(
                f"--prototypes: none of {name}, which the loss needs; fit them with `g2l prototypes`"
            )
        return self.spaces[name]

    def require_tokens(self) -> Tokens:
        """The tokens; StoreError when the store has none."""
        if self.tokens is None:
            raise StoreError(
                "the store has no patch tokens, which the loss needs; run extract-teacher --tokens N"
            )
        return self.tokens


@dataclass(frozen=True, slots=True)
class Targets:
    """The teacher's outputs for a batch, not normalised; t is 0 when the loss uses no tokens."""

    features: Tensor
    """float32 (B, dim)"""
    tokens: Tensor
    """float32 (B, t, width)"""
    positions: Tensor
    """int64 (B, t)"""
    attention: Tensor | None = None
    """float32 (B, grid * grid) of the teacher; None when the loss uses none."""
    others: tuple["Targets", ...] = ()
    """Those of further teachers."""
    present: Tensor | None = None
    """uint8 (B, K), which of K teachers has a target for which view; None where there is one teacher."""
    let_go: Tensor | None = None
    """uint8 (B, K), which targets ``--teacher-drop`` drew."""
    beside: Tensor | None = None
    """uint8 (B, H, W, 3), for each view one of another tile of its place; None when the loss uses no pairs."""
    has_beside: Tensor | None = None
    """uint8 (B,), whether there is one; where not, `beside` holds anything."""
    places: Tensor | None = None
    """int64 (B,), number of the place that each view shows; -1 where no other tile shows it."""

    @classmethod
    def of(cls, batch: Batch) -> "Targets":
        """The targets of a batch from the stores, on the CPU."""
        return cls.stored(batch).widened()

    @classmethod
    def stored(cls, batch: Batch) -> "Targets":
        """As `of`, in the types of the stores, float16 and int32: half the bytes on the way to a GPU."""
        first, *others = (
            cls(
                torch.from_numpy(part.targets),
                torch.from_numpy(part.tokens),
                torch.from_numpy(part.positions),
                torch.from_numpy(part.attention) if part.attention.shape[1] else None,
            )
            for part in batch.stored
        )
        present = None if batch.present is None else torch.from_numpy(batch.present).to(torch.uint8)
        found = replace(first, others=tuple(others), present=present)
        return found if batch.paired is None else found.with_pairs(batch.paired)

    def widened(self) -> "Targets":
        """The same in the types that the loss computes with, which changes no number."""
        wider = {torch.float16: torch.float32, torch.int32: torch.int64}
        return self.map(lambda tensor: tensor.to(wider.get(tensor.dtype, tensor.dtype)))

    def with_pairs(self, paired: Paired) -> "Targets":
        """The same with what comes beside the views, on the CPU."""
        has, places = torch.from_numpy(paired.has).to(torch.uint8), torch.from_numpy(paired.place).long()
        others = tuple(replace(other, has_beside=has, places=places) for other in self.others)
        beside = torch.from_numpy(paired.views)
        return replace(self, others=others, beside=beside, has_beside=has, places=places)

    def map(self, fn: Callable[[Tensor], Tensor]) -> "Targets":
        """Apply `fn` to each tensor."""
        attention, *further = (
            None if tensor is None else fn(tensor)
            for tensor in (
                self.attention,
                self.present,
                self.let_go,
                self.beside,
                self.has_beside,
                self.places,
            )
        )
        others = tuple(other.map(fn) for other in self.others)
        return Targets(fn(self.features), fn(self.tokens), fn(self.positions), attention, others, *further)

    def rows(self, index: Tensor | slice) -> "Targets":
        """Those of some of the views."""
        return self.map(lambda tensor: tensor[index])

    def alone(self, index: Tensor) -> "Targets":
        """Those of some of the views, of this teacher alone."""
        own = replace(self, others=(), present=None, let_go=None, beside=None)
        return own.rows(index)


@dataclass(frozen=True, slots=True)
class Embedded:
    """The student's outputs for a batch, float32."""

    features: Tensor
    """(B, d_s), the whole embedding: `Lesson.own` is what a teacher is compared with."""
    tokens: Tensor | None = None
    """(B, t, width), of the places that the loss compares; None when the loss uses no tokens."""
    attention: Tensor | None = None
    """(B, G * G) of its own grid; None when the loss uses none."""
    beside: Tensor | None = None
    """(B, d_s) of the views beside these, 0 where there is none; None when the loss uses no pairs."""

    def map(self, fn: Callable[[Tensor], Tensor]) -> "Embedded":
        """Apply `fn` to each tensor."""
        further = (None if part is None else fn(part) for part in (self.tokens, self.attention, self.beside))
        return Embedded(fn(self.features), *further)

    def rows(self, index: Tensor) -> "Embedded":
        """Those of some of the views."""
        return self.map(lambda tensor: tensor[index])

    def to(self, device: torch.device) -> "Embedded":
        """The same on a device."""
        return self.map(lambda tensor: tensor.to(device))


def different(found: Sequence[Embedded]) -> list[Tensor]:
    """The different tensors of what each teacher compares: they share most."""
    tensors: dict[int, Tensor] = {}
    for embedded in found:
        embedded.map(lambda tensor: tensors.setdefault(id(tensor), tensor))
    return list(tensors.values())


def with_others(found: Sequence[Embedded], tensors: Sequence[Tensor]) -> list[Embedded]:
    """The same with other tensors, in the order of `different`."""
    other = {id(old): new for old, new in zip(different(found), tensors, strict=True)}
    return [embedded.map(lambda tensor: other[id(tensor)]) for embedded in found]


class Lesson(nn.Module):
    """What stands between a student and the loss of one teacher.

    Parameters
    ----------
    student
        Whose features and tokens it takes.
    loss
        Terms and their weights, see `pipeline.distill.loss_spec.parse`.
    number
        Of the teacher, from 0: its class token, with ``--student-tokens per-teacher``.
    keeps_student : bool
        Whether the student is a part of this module.
    """

    projector: Projector | None
    places: Sequence[slice] | None
    """Those of the numbers of the embedding that are compared; None for all."""

    def __init__(
        self,
        student: Encoder,
        loss: Mapping[str, float],
        teaching: Teaching,
        options: DistillOptions,
        number: int = 0,
        keeps_student: bool = False,
    ) -> None:
        super().__init__()
        if keeps_student:  # before the heads: checkpoints know parameters by their order
            self.student = student
        self.loss = loss
        per_teacher = options.student_tokens == "per-teacher"
        self.class_token, self.places = (number, places_of(student, number)) if per_teacher else (0, None)
        dim = student.dim if self.places is None else sum(place.stop - place.start for place in self.places)
        self.temperature, self.infonce_temp = options.student_temp, options.infonce_temp
        self.feature_losses = {
            n: feature_loss(n, options.alpha, options.infonce_temp)
            for n in loss
            if n in loss_spec.FEATURE_TERMS
        }
        self.projector = Projector(dim, teaching.dim) if self.feature_losses else None
        self.target_norm = TargetNorm(options.teacher_norm, teaching.mean, teaching.variance)
        self.heads, self.assigners = nn.ModuleDict(), nn.ModuleDict()
        self.about, self.grid, width = teaching.tokens, 0, 0
        if self.about is not None:
            self.grid, width = token_grid(student)
        for term, of, side in (("dino", "features", dim), ("ibot", "tokens", width)):
            if term in loss:
                space = teaching.space(of)
                self.heads[term] = DinoHead(
                    side, len(space.prototypes), options.head_hidden, options.head_bottleneck
                )
                self.assigners[term] = Assigner(space, options.assign, options.teacher_temp)
        if "token-cosine" in loss:
            self.heads["token-cosine"] = Projector(width, teaching.require_tokens().dim)

        if "attention" in loss:
            last_attention(student)
            if student.class_tokens > 1 and self.places is None:
                raise OptionError(
                    f"--loss {options.loss}: {options.student} has {student.class_tokens} class tokens, and attention "
                    "compares one; use --student-tokens per-teacher"
                )
            self.grid = token_grid(student)[0]
        self.nested = nn.ModuleDict()
        for length in loss_spec.prefixes(options.nested):
            if length >= student.dim:
                raise OptionError(
                    f"--nested {options.nested}: the embedding of {options.student} has {student.dim} numbers; allowed "
                    f"is 2 to {student.dim - 1}"
                )
            self.nested[str(length)] = Projector(length, teaching.dim)

    @property
    def uses_tokens(self) -> bool:
        """Whether a term of the loss looks at patch tokens."""
        return any(term in self.loss for term in loss_spec.TOKEN_TERMS)

    def own(self, features: Tensor) -> Tensor:
        """What the loss compares of embeddings (B, d_s): all numbers, or those of this teacher's class token."""
        return features if self.places is None else part_of(features, self.places)

    def compare(self, student: Embedded, targets: Targets) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of what the student made of a batch, and each of its terms, detached.

        Batches are normalised by their own statistics, in training and outside of it.
        """
        pairs = []
        if self.projector is not None:
            target = self.target_norm(targets.features)
            pairs = [(projected, target) for projected in self.every_projected(student.features).values()]
        return self.weighted(student, targets, pairs)

    def weighted(
        self, student: Embedded, targets: Targets, pairs: Sequence[tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum of `terms`, and each of them, detached."""
        found = self.terms(student, targets, pairs)
        total = torch.stack([self.loss[name] * value for name, value in found.items()]).sum()
        return total, {name: value.detach() for name, value in found.items()}

    def projected(self, features: Tensor) -> Tensor:
        """The student's own features in the teacher's dimensions, normalised over these rows."""
        assert self.projector is not None
        return self._over_rows(self.projector, features)

    def every_projected(self, features: Tensor) -> dict[int, Tensor]:
        """As `projected`, by how many numbers of the features were projected: all of them first, then each prefix."""
        features = self.own(features)
        found = {features.shape[1]: self.projected(features)}
        for length, projector in self.nested.items():
            assert isinstance(projector, Projector)
            found[int(length)] = self._over_rows(projector, features[:, : int(length)])
        return found

    def loss_constant(self, targets: Targets) -> Tensor | None:
        """The loss of predicting the mean of the targets for every view; None unless all terms compare features."""
        if set(self.loss) != set(self.feature_losses):
            return None
        t_BD = self.target_norm(targets.features)
        s_BD = (
            self.target_norm.mean.expand_as(t_BD)
            if self.target_norm.kind == "none"
            else t_BD.new_zeros(t_BD.shape)
        )
        return torch.stack(
            [self.loss[name] * fn(s_BD, t_BD) for name, fn in self.feature_losses.items()]
        ).sum()

    def compared_tokens(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """The student's tokens that have a target: all, or those on the places of the tokens that the store keeps."""
        about = self._about_tokens()
        if about.grid != self.grid:
            tokens = tokens.float()
            if about.whole:
                return tokens
            tokens = averaged(tokens, about.grid)
        return take_tokens(tokens, positions).float()

    def _target_tokens(self, targets: Targets) -> Tensor:
        """The teacher's tokens of the same places."""
        return averaged(targets.tokens, self.grid) if self._about_tokens().whole else targets.tokens

    def _about_tokens(self) -> Tokens:
        assert self.about is not None
        return self.about

    def terms(
        self, student: Embedded, targets: Targets, pairs: Sequence[tuple[Tensor, Tensor]]
    ) -> dict[str, Tensor]:
        """The terms of the loss, not weighted, in the order of ``--loss``.

        Parameters
        ----------
        pairs
            For the terms of features: projected student and normalised teacher, (B, dim) each. Several are the whole
            embedding and its prefixes, and a term is their mean: Kusupati et al., arXiv 2205.13147, equation 1, with
            equal weights that sum to 1, so that a term weighs the same beside others with and without ``--nested``.
        """
        found: dict[str, Tensor] = {}
        for name in self.loss:
            if name in self.feature_losses:
                loss = self.feature_losses[name]
                if name == "infonce" and targets.places is not None:
                    loss = partial(infonce, temperature=self.infonce_temp, places_B=targets.places)
                of_each = [loss(*pair) for pair in pairs]
                found[name] = of_each[0] if len(of_each) == 1 else torch.stack(of_each).mean()
            elif name == "attention":
                assert student.attention is not None
                assert targets.attention is not None
                found[name] = attention_kl(student.attention, divided(targets.attention, self.grid))
            elif name == "koleo":
                found[name] = koleo(self.own(student.features))
            elif name == loss_spec.PAIR:
                found[name] = self._pair(student, targets)
            elif name == "dino":
                found[name] = self._assignment(name, self.own(student.features), targets.features)
            else:
                assert student.tokens is not None
                rows, target = student.tokens.flatten(0, 1), self._target_tokens(targets).flatten(0, 1)
                if name == "ibot":
                    found[name] = self._assignment(name, rows, target)
                else:
                    found[name] = cosine(self._projected_tokens(rows), self._token_norm(target))
        return found

    def _pair(self, student: Embedded, targets: Targets) -> Tensor:
        """InfoNCE between the features of views and of the views beside them; 0 where no view has one.

        With ``--nested`` the mean over the prefixes and the whole, as of other terms.
        """
        assert student.beside is not None
        assert targets.has_beside is not None
        assert targets.places is not None
        rows = targets.has_beside.nonzero().flatten()
        if not len(rows):
            return 0.0 * (student.features.sum() + student.beside.sum())
        mine, other = self.own(student.features[rows]), self.own(student.beside[rows])
        lengths = [mine.shape[1], *map(int, self.nested)]
        of_each = [
            infonce(mine[:, :n], other[:, :n], self.infonce_temp, targets.places[rows]) for n in lengths
        ]
        return torch.stack(of_each).mean()

    def _assignment(self, term: str, rows: Tensor, target: Tensor) -> Tensor:
        with torch.no_grad():
            assigned = self.assigners[term](target)
        return assignment(self.heads[term](rows), assigned, self.temperature)

    def _projected_tokens(self, rows: Tensor) -> Tensor:
        projector = self.heads["token-cosine"]
        assert isinstance(projector, Projector)
        return self._over_rows(projector, rows)

    def _over_rows(self, projector: Projector, rows: Tensor) -> Tensor:
        # outside training the running statistics must not change
        return projector(rows) if self.training else standardise(projector.linear(rows))

    def _token_norm(self, target: Tensor) -> Tensor:
        """The store has no statistics of tokens, so they are normalised by batch, or not at all."""
        return target if self.target_norm.kind == "none" else standardise(target)


class Distiller(Lesson):
    """Student and heads, trained together; only the student is kept in the end.

    Parameters
    ----------
    loss
        Terms and their weights, see `pipeline.distill.loss_spec.parse`.
    dtype
        Arithmetic of the student's forward pass; heads compute in float32.
    gather
        Puts the rows of all processes together before the heads; see `pipeline.distill.ranks.Gather`.
    """

    def __init__(
        self,
        student: Encoder,
        loss: Mapping[str, float],
        teaching: Teaching,
        options: DistillOptions,
        dtype: torch.dtype = torch.float32,
        gather: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__(student, loss, teaching, options, keeps_student=True)
        self.names, self.weights = [teaching.name], [teaching.weight]
        self.dtype, self.gather = dtype, gather
        self.compiled: Pass | None = None
        """`student_pass` as ``--compile`` has it, for training; see `pipeline.distill.compiled`."""

    @property
    def lessons(self) -> list[Lesson]:
        """What stands between the student and each teacher."""
        return [self]

    @property
    def per_teacher(self) -> bool:
        """Whether each teacher has a class token of its own."""
        return self.places is not None

    def train(self, mode: bool = True) -> "Distiller":
        """As of any module; what is frozen stays in evaluation, where batch normalisation learns no statistics."""
        super().train(mode)
        for part in frozen_parts(self.student):
            part.eval()
        return self

    def forward(self, views: Tensor, targets: Targets) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch, and each of its terms, detached.

        Parameters
        ----------
        views : uint8 (B, H, W, 3)
        """
        places = [targets.positions, *(other.positions for other in targets.others)]
        return self.loss_of(self.embed_for(views, places, targets), targets)

    def loss_of(self, students: Sequence[Embedded], targets: Targets) -> tuple[Tensor, dict[str, Tensor]]:
        """As `forward`, of what `embed_for` returned."""
        (student,), targets = self._gathered(students, targets)
        return self.compare(student, targets)

    def _gathered(self, students: Sequence[Embedded], targets: Targets) -> tuple[Sequence[Embedded], Targets]:
        """What the loss compares, with the rows of all processes where `gather` is given."""
        targets = replace(targets, beside=None)
        if self.gather is None:
            return students, targets
        rows = [self.gather(tensor) for tensor in different(students)]
        with torch.no_grad():
            targets = targets.map(self.gather)
        return with_others(students, rows), targets

    def embed(self, views: Tensor, positions: Tensor) -> Embedded:
        """The student's features, its tokens at `positions` and its attention where the loss uses them."""
        (found,) = self.embed_for(views, [positions])
        return found

    def student_pass(self, views: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """What the student makes of views: features, and tokens and attention where a loss uses them."""
        lessons = self.lessons
        with torch.autocast(views.device.type, self.dtype, enabled=self.dtype != torch.float32):
            if any("attention" in lesson.loss for lesson in lessons):
                return with_attentions(self.student, views)
            if any(lesson.uses_tokens for lesson in lessons):
                return *self.student.with_tokens(views), None
            return self.student(views), None, None

    def embed_for(
        self, views: Tensor, positions: Sequence[Tensor], targets: Targets | None = None
    ) -> list[Embedded]:
        """As `embed`, as the loss of each teacher takes it; the student computes once.

        Parameters
        ----------
        targets
            Those of the views; with them the views beside these are embedded too, where they have such.
        """
        lessons, n, rows = self.lessons, len(views), None
        if targets is not None and targets.beside is not None and targets.has_beside is not None:
            rows = targets.has_beside.nonzero().flatten()
            views = torch.cat([views, targets.beside[rows]])
        run = self.compiled if self.compiled is not None and self.training else self.student_pass
        features, tokens, attention = run(views)
        features, beside = features.float(), None
        if rows is not None:
            beside = features.new_zeros(n, features.shape[1]).index_copy(0, rows, features[n:])
            features = features[:n]
        return [
            Embedded(
                features,
                lesson.compared_tokens(tokens[:n], at) if tokens is not None and lesson.uses_tokens else None,
                attention[:n, lesson.class_token]
                if attention is not None and "attention" in lesson.loss
                else None,
                beside,
            )
            for lesson, at in zip(lessons, positions, strict=True)
        ]
