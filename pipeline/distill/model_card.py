"""The model card of an exported student: what it is, from whom, under which licence, how to load it."""

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from pipeline.encoders.encoder import Encoder
from stores.format.licences import front_matter
from stores.format.recipe import CompleteRecipe
from stores.format.terms import Terms, expression, union
from stores.io.text import markdown
from stores.publish.card import terms_table

_FIGURES = (
    "steps",
    "views_seen",
    "loss_first",
    "loss_last",
    "val_loss_after",
    "explained_before",
    "explained_after",
    "cka_before",
    "cka_after",
    "cka_unbiased_before",
    "cka_unbiased_after",
    "cosine_before",
    "cosine_after",
    "cka_ema_after",
)


def model_card(
    student: Encoder,
    recipes: Sequence[CompleteRecipe],
    teacher_terms: Sequence[Terms],
    summary: dict[str, Any],
    averaged: bool,
) -> str:
    """Markdown with YAML front matter, as model hubs expect it.

    Names come from the store and from the student's folder: they are escaped.

    Parameters
    ----------
    teacher_terms
        Terms of the teacher, and of what it was trained on.
    averaged : bool
        Whether this is the moving average of a student.
    """
    stored, name = recipes[0], markdown(student.name)
    teacher = _and([markdown(recipe.teacher.name) for recipe in recipes])
    sources = _and(
        [
            f"{markdown(recipe.teacher.name)} (weights `{markdown(recipe.teacher.weights_sha256, 16)}`), store recipe "
            f"`{recipe.digest()[:16]}`"
            for recipe in recipes
        ]
    )
    terms = union(student.terms, teacher_terms)
    front = front_matter(expression(terms)) | {
        "library_name": "timm",
        "tags": ["histopathology", "feature-extraction", "knowledge-distillation"],
    }
    began = name if student.terms else f"random weights of the architecture of {name}"
    figures = "\n".join(
        f"| {name} | {summary[name]:.4f} |"
        if isinstance(summary[name], float)
        else f"| {name} | {summary[name]} |"
        for name in _FIGURES
        if summary.get(name) is not None
    )
    shrinks, by_hand = "", ""
    if student.shrink > 1:
        side, by = student.image_px // student.shrink, student.shrink
        shrinks = f"; the network sees {side} px: means of squares of {by} px, integers rounded half up"
        by_hand = (
            f"total = uint8.int().unflatten(3, ({side}, {by})).unflatten(2, ({side}, {by})).sum((3, 5))\n"
            f'x = (total + {by * by // 2}).div({by * by}, rounding_mode="floor") / 255  # of (B, 3, '
            f"{student.image_px}, {student.image_px}); then Normalize\n"
        )
    its = "a teacher's" if summary.get("teachers") else "its"
    folder, what = (
        ("student-ema", "The moving average of a student") if averaged else ("student", "A student")
    )
    return f"""---
{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---
# {name}, distilled from {teacher}

{what}, an encoder of {student.dim}-d features, trained by g2l {summary["g2l_version"]} against stored features of
{sources}.

## Licence

**{markdown(expression(terms), 1000)}**

Trained on the outputs of {teacher}, starting from {began}. The terms of every encoder in this table bind who uses
the model. Unknown means that this card does not know, not that anything is permitted.

{terms_table(terms) if terms else "No terms are recorded."}

## Use

RGB images of {student.image_px} px at {stored.patch.mpp:g} micrometres per pixel{shrinks}, scaled to [0, 1], normalised
with mean {list(student.mean)} and std {list(student.std)}; embedding: {_embedding(student)}.

```python
import timm
model = timm.create_model("local-dir:{folder}", pretrained=True)
{by_hand}{_of_class_tokens(student)}```

or `pipeline.encoders.load_encoder("{folder}")` of g2l, which takes uint8 views and applies Normalize and pooling
itself{", and the means" if shrinks else ""}. Projector and heads of the training are not part of the model.

{_class_tokens(student, summary)}{_prefixes(summary)}## Training

| figure | value |
|---|---|
{figures}
{_by_teacher(summary)}
Beside loss_first and loss_last, figures are {_against(summary)} on held-out patients, seed 0; explained is the share of
the variance of {its} features that a linear map from the student's explains. Not for clinical use.
"""


def _against(summary: Mapping[str, Any]) -> str:
    """What the figures of a run are."""
    return "means over the teachers" if summary.get("teachers") else "against the teacher"


def _prefixes(summary: Mapping[str, Any]) -> str:
    """The section on prefixes of the embedding; empty where none were trained."""
    nested: dict[str, dict[str, float]] = summary.get("nested", {})
    if not nested:
        return ""
    names = [
        name for name in ("explained", "cka", "cka_unbiased", "cosine") if name in next(iter(nested.values()))
    ]
    table = [f"| numbers | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"] if names else []
    table += [
        f"| {length} | {' | '.join(f'{of[name]:.4f}' if name in of else '' for name in names)} |"
        for length, of in nested.items()
        if names
    ]
    figures = "\n".join(table) or "No held-out figures: the store has no split val."
    lengths = [*nested][:-1]
    return f"""## Shorter embeddings

The first {", ".join(lengths)} numbers were trained as embeddings of their own (Matryoshka). Other lengths were not.

```python
short = features[:, :{lengths[0]}]
```

Normalise to unit length after cutting, not before. Held out, {_against(summary)}:

{figures}

"""


def _embedding(student: Encoder) -> str:
    how = "" if student.pooling == "cls-average" else ", one after another"
    several = f" of {student.class_tokens} class tokens{how}" if student.class_tokens > 1 else ""
    return markdown(student.pooling) + several


def _of_class_tokens(student: Encoder) -> str:
    """Lines that take the embedding from timm's model where it has several class tokens; else empty."""
    n = student.class_tokens
    if n == 1:
        return ""
    lines = "tokens = model.forward_features(x)  # of normalised images; model(x) is the first class token alone\n"
    if student.pooling == "cls+mean":
        mean = "tokens[:, model.num_prefix_tokens:].mean(1)"
        return f"import torch\n{lines}features = torch.cat([tokens[:, :{n}].flatten(1), {mean}], 1)\n"
    joined = "mean" if student.pooling == "cls-average" else "flatten"
    return f"{lines}features = tokens[:, :{n}].{joined}(1)\n"


def _class_tokens(student: Encoder, summary: Mapping[str, Any]) -> str:
    """The section on class tokens; empty where there is one for all teachers."""
    names: list[str] = summary.get("class_tokens", [])
    if not names:
        return ""
    n = student.class_tokens
    width = student.dim // (n + (student.pooling == "cls+mean"))
    lines = [
        f"| {number * width} to {(number + 1) * width - 1} | {markdown(summary['teachers'][name]['teacher'])} | "
        f"{markdown(name)} |"
        for number, name in enumerate(names)
    ]
    table = "\n".join(["| numbers | trained against | store |", "|---|---|---|", *lines])
    return f"""## Class tokens

Each teacher trained a class token of its own; the embedding holds all of them. Their mean, of {width} numbers:
`features[:, :{n * width}].unflatten(1, ({n}, {width})).mean(1)`.

{table}

"""


def _and(names: Sequence[str]) -> str:
    """A list in words.

    >>> _and(["a"]), _and(["a", "b", "c"])
    ('a', 'a, b and c')
    """
    return " and ".join([part for part in (", ".join(names[:-1]), names[-1]) if part])


_OF_TEACHER = ("explained", "cka", "cka_unbiased", "cosine")


def _by_teacher(summary: Mapping[str, Any]) -> str:
    """A table with a line for each of several teachers; the figures above are means over them."""
    if "teachers" not in summary:
        return ""
    head = ("teacher", "store", "weight", "views", *(f"{name}, before, after" for name in _OF_TEACHER))
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for store, about in summary["teachers"].items():
        cells = [markdown(about["teacher"]), markdown(store), f"{about['weight']:g}", f"{about['views']:,}"]
        for name in _OF_TEACHER:
            values = [about.get(f"{name}_{when}") for when in ("before", "after")]
            cells.append(", ".join("-" if value is None else f"{value:.4f}" for value in values))
        lines.append(f"| {' | '.join(cells)} |")
    said = (
        "Figures above are means over the teachers; against each of them, on the held-out views that it has:"
    )
    return "\n".join(["", said, "", *lines, ""])
