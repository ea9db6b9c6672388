"""The model card of an exported student: what it is, from whom, under which licence, how to load it."""

from typing import Any

from pipeline.encoders.encoder import Encoder
from stores.format.recipe import CompleteRecipe
from stores.io.text import markdown

_FIGURES = (
    "steps",
    "views_seen",
    "loss_first",
    "loss_last",
    "cosine_before",
    "cosine_after",
    "cka_before",
    "cka_after",
    "cka_ema_after",
)


def model_card(
    student: Encoder, stored: CompleteRecipe, teacher_licence: str, summary: dict[str, Any], averaged: bool
) -> str:
    """Markdown with YAML front matter, as model hubs expect it; `averaged` is the moving average of a student.

    Names come from the store and from the student's folder: they are escaped.
    """
    teacher, name = markdown(stored.teacher.name), markdown(student.name)
    weights = markdown(stored.teacher.weights_sha256, 16)
    figures = "\n".join(
        f"| {name} | {summary[name]:.4f} |"
        if isinstance(summary[name], float)
        else f"| {name} | {summary[name]} |"
        for name in _FIGURES
        if summary.get(name) is not None
    )
    folder, what = (
        ("student-ema", "The moving average of a student") if averaged else ("student", "A student")
    )
    return f"""---
library_name: timm
tags: [histopathology, feature-extraction, knowledge-distillation]
---
# {name}, distilled from {teacher}

{what}, an encoder of {student.dim}-d features, trained by g2l {summary["g2l_version"]} against stored features of
{teacher} (weights `{weights}`), store recipe `{stored.digest()[:16]}`.

## Licence

Trained on the outputs of {teacher} (licence: {markdown(teacher_licence) or "not known"}), starting from {name}
(licence: {markdown(student.licence) or "not known"}). Both licences may bind whoever uses this model; read them first.

## Use

RGB images of {student.image_px} px at {stored.patch.mpp:g} micrometres per pixel, scaled to [0, 1], normalised
with mean {list(student.mean)} and std {list(student.std)}; embedding: {markdown(student.pooling)}.

```python
import timm
model = timm.create_model("local-dir:{folder}", pretrained=True)
```

or `pipeline.encoders.load_encoder("{folder}")` of g2l, which takes uint8 views and applies Normalize and pooling
itself. Projector and heads of the training are not part of the model.

## Training

| figure | value |
|---|---|
{figures}

Cosine and CKA are against the teacher on held-out patients, seed 0. Not for clinical use.
"""
