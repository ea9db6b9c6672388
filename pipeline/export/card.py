"""The card of an export, ``README.md``, and the same for programs, ``export.json``."""

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from pipeline.export.base import Format, Job
from pipeline.export.check import Agreement
from pipeline.export.options import ExportOptions
from pipeline.runtime.version import g2l_version
from stores.format.licences import front_matter
from stores.format.terms import Terms, expression, not_commercial, to_json
from stores.io.text import human_bytes, markdown
from stores.publish.card import terms_table

CARD = "README.md"
FACTS = "export.json"
STUDENT_CARD = "STUDENT.md"
_NAMES = {
    "onnx": "ONNX",
    "torchscript": "TorchScript",
    "wsinfer": "TorchScript for WSInfer and QuPath",
    "hf": "a folder that timm opens",
}


def facts(
    job: Job,
    options: ExportOptions,
    agreement: Agreement,
    against: str,
    weights_sha256: str,
    made: Format,
    files: Mapping[str, str],
) -> dict[str, Any]:
    """What ``export.json`` says.

    Parameters
    ----------
    against
        The pixels of the comparison, in words.
    weights_sha256
        Identity of the original's weights.
    files
        SHA-256 by name.
    """
    encoder = job.encoder
    return {
        "format": options.format,
        "encoder": encoder.name,
        "weights_sha256": weights_sha256,
        "input": {
            "kind": job.takes,
            "dtype": "uint8" if job.takes == "uint8" else "float32",
            "layout": "batch, height, width, RGB" if job.takes == "uint8" else "batch, RGB, height, width",
            "side_px": encoder.image_px,
            "mean": list(encoder.mean),
            "std": list(encoder.std),
            "mpp": job.mpp,
        },
        "output": {
            "dtype": "float32",
            "dim": encoder.dim,
            "pooling": encoder.pooling,
            "prefixes": prefixes(job),
        },
        "arithmetic": job.dtype,
        "shrink": encoder.shrink,
        "class_tokens": encoder.class_tokens,
        "licence": encoder.licence,
        "terms": to_json(encoder.terms),
        "not_commercial": not_commercial(encoder.terms),
        "permission": options.permission,
        "comparison": {"on": against, "min_cosine": options.least_cosine, **agreement.to_json()},
        "versions": {"g2l": g2l_version(), **made.versions()},
        "files": dict(files),
    }


def prefixes(job: Job) -> list[int]:
    """Lengths of prefixes of the feature that were trained as features of their own."""
    nested = job.extra.get("nested")
    lengths = [int(n) for n in nested if str(n).isdecimal()] if isinstance(nested, dict) else []
    return sorted(n for n in lengths if n < job.encoder.dim)


def card(
    job: Job,
    options: ExportOptions,
    agreement: Agreement,
    against: str,
    made: Format,
    sizes: Mapping[str, int],
    objections: Sequence[str],
    with_student_card: bool,
    evidence: Mapping[str, float],
    digests: Mapping[str, str],
) -> str:
    """Markdown with YAML front matter, as model hubs expect it. Names come from elsewhere and are escaped.

    Parameters
    ----------
    evidence
        Figures of the run's summary, by their names there.
    digests
        SHA-256 of the files that are to have it in the card.
    """
    encoder = job.encoder
    name = markdown(encoder.name)
    front = front_matter(expression(encoder.terms)) | {
        "library_name": {"onnx": "onnx", "hf": "timm"}.get(options.format, "pytorch"),
        "tags": ["histopathology", "feature-extraction"],
    }
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---\n# {name}, as {_NAMES[options.format]}",
        f"An encoder of {encoder.dim}-d features of histopathology patches, written by g2l {g2l_version()} in "
        f"{job.dtype}.{' [How it was trained](STUDENT.md).' if with_student_card else ''}",
        f"## Is it the original?\n\n{markdown(agreement.line(), 1000)}.\n\nCompared on {markdown(against, 1000)}, on a "
        f"CPU; allowed was a cosine of {options.least_cosine:g} or more. The original computes in float32.",
        *([f"## Evidence\n\n{_evidence(evidence)}"] if _measured(evidence) else []),
        f"## Licence\n\n{_licence(encoder.terms, options.permission, objections)}",
        f"## Use\n\n{_input(job)}\n\n{made.usage(job).rstrip()}",
        *([f"## Shorter features\n\n{_shorter(prefixes(job))}"] if prefixes(job) else []),
        "## Files\n\n" + "\n".join(_file(file, size, digests) for file, size in sizes.items()),
        f"`{FACTS}` says all of this for programs, with the SHA-256 of each file. Not for clinical use.",
    ]
    return "\n\n".join(parts) + "\n"


_EVIDENCE = {
    "cka": "linear CKA to the teacher",
    "cka_unbiased": "linear CKA to the teacher, unbiased",
    "cosine": "cosine to the teacher's features, after the projector",
    "explained": "share of the teacher's variance that a linear map explains",
    "knn": "accuracy of nearest neighbours",
}
"""Figures of a run by the names that they have in its summary."""


def _measured(evidence: Mapping[str, float]) -> list[str]:
    return [name for name in _EVIDENCE if f"{name}_after" in evidence]


def _evidence(evidence: Mapping[str, float]) -> str:
    def cell(name: str) -> str:
        return f"{evidence[name]:.4f}" if name in evidence else "-"

    lines = [
        f"| {_EVIDENCE[name]} | {cell(f'{name}_before')} | {cell(f'{name}_after')} |"
        for name in _measured(evidence)
    ]
    table = "\n".join(["| | untrained | student |", "|---|---|---|", *lines])
    return (
        f"On held-out patients of the training, seed 0:\n\n{table}\n\nThey say how near the student is to its teacher, "
        "not how good either is at a task."
    )


def _file(name: str, size: int, digests: Mapping[str, str]) -> str:
    digest = f", SHA-256 `{digests[name]}`" if name in digests else ""
    return f"- `{name}`: {human_bytes(size)}{digest}"


def _input(job: Job) -> str:
    encoder = job.encoder
    at = "" if job.mpp is None else f" at {job.mpp:g} micrometres per pixel"
    inside = (
        "Normalize and pooling are inside: give the pixels as they are read."
        if job.takes == "uint8"
        else f"Scale to [0, 1] and normalise with mean {list(encoder.mean)} and std {list(encoder.std)}."
    )
    shrinks = f" It averages squares of {encoder.shrink} px by itself." if encoder.shrink > 1 else ""
    how = "the mean of " if encoder.pooling == "cls-average" else ""
    after = "" if how else ", one after another"
    several = (
        f" The feature is {how}{encoder.class_tokens} class tokens{after}."
        if encoder.class_tokens > 1
        else ""
    )
    return f"RGB patches of {encoder.image_px} by {encoder.image_px} px{at}. {inside}{shrinks}{several}"


def _licence(terms: Sequence[Terms], permission: str | None, objections: Sequence[str]) -> str:
    parts = [
        f"**{markdown(expression(terms), 1000)}**",
        "The terms of every encoder in this table bind who uses the model: this one, and those on whose outputs it was "
        "trained. Unknown means that this card does not know, not that anything is permitted.",
        terms_table(terms) if terms else "No terms are recorded.",
    ]
    barred = not_commercial(terms)
    if barred:
        parts.append(f"Commercial use is barred by the licence of {markdown(', '.join(barred), 1000)}.")
    if objections:
        listed = "\n".join(f"- {markdown(text, 1000)}" for text in objections)
        parts.append(
            f"These terms speak against passing it on:\n\n{listed}\n\nIt was exported on this ground, as its maker "
            f'states: "{markdown(permission, 1000)}"'
        )
    return "\n\n".join(parts)


def _shorter(lengths: Sequence[int]) -> str:
    listed = ", ".join(map(str, lengths))
    return (
        f"The first {listed} numbers were trained as features of their own (Matryoshka): `features[:, :{lengths[0]}]`. "
        "Normalise to unit length after cutting, not before. Other lengths were not trained."
    )
