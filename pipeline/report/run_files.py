"""What the files of a run say.

A run may come from another lab, so every value that the page computes with is checked.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.distill.metrics_log import read_metrics
from pipeline.runtime.resume import BEGUN
from stores.errors import OptionError
from stores.io import files
from stores.io.text import one_line

_GREATEST = 1e30
_WORDS = ("g2l_version", "stopped_early")


@dataclass(frozen=True, slots=True)
class HeldOut:
    """The held-out views that figures were measured on."""

    views: int
    sha256: str
    """Equal for the same pixels."""


@dataclass(frozen=True, slots=True)
class RunFiles:
    """Options, figures and results of a run."""

    options: Mapping[str, Any]
    """Those of ``distill``; ``student`` is text."""
    store_recipe: str
    records: Sequence[Mapping[str, Any]]
    """Of ``metrics.jsonl``, with finite numbers alone; ``teachers`` holds those of each of several teachers."""
    summary: Mapping[str, Any]
    """Empty while the run is not finished."""
    teacher: str | None
    """The teacher's name in the exported student; None before the export."""
    stores: Sequence[tuple[str, str, float]]
    """Name, recipe and weight of each of several stores; empty for one."""
    held_out: Mapping[str, HeldOut]
    """By the name of the store, of one store by an empty name; versions before 0.2 did not write it."""


def read_run(run: Path) -> RunFiles:
    """Read the files of a run.

    Raises
    ------
    OptionError
        When one of them does not have the form that ``distill`` gives it.
    """
    begun = _object(run / BEGUN, run)
    options, recipe = begun.get("options"), begun.get("store_recipe")
    if not isinstance(options, dict) or not isinstance(options.get("student"), str):
        raise OptionError(f"{run / BEGUN}: holds no options of `g2l distill`")
    if not isinstance(recipe, str):
        raise OptionError(f"{run / BEGUN}: names no recipe of a store")
    summary = _object(run / "summary.json", run) if (run / "summary.json").exists() else {}
    known = {
        name: value
        for name, value in summary.items()
        if _is_figure(value) or (name in _WORDS and isinstance(value, str | bool))
    }
    for name in ("steps", "loss_first", "loss_last") if summary else ():
        if not _is_figure(known.get(name)):
            raise OptionError(f"{run / 'summary.json'}: {name} is no number")
    stores = _stores(begun, run / BEGUN)
    if stores and summary:
        known["teachers"] = _teachers(summary, [name for name, _, _ in stores])
    records, teacher = _records(run / "metrics.jsonl"), _teacher_of(run)
    return RunFiles(options, recipe, records, known, teacher, stores, _held_out(summary, stores))


def _held_out(summary: Mapping[str, Any], stores: Sequence[tuple[str, str, float]]) -> dict[str, HeldOut]:
    teachers = summary.get("teachers")
    abouts = {name: (teachers if isinstance(teachers, dict) else {}).get(name) for name, _, _ in stores}
    found = {}
    for name, about in (abouts or {"": summary}).items():
        given = about.get("held_out") if isinstance(about, dict) else None
        views, digest = (given.get(key) if isinstance(given, dict) else None for key in ("views", "sha256"))
        if type(views) is int and isinstance(digest, str) and re.fullmatch("[0-9a-f]{64}", digest):
            found[name] = HeldOut(views, digest)
    return found


def _stores(begun: Mapping[str, Any], path: Path) -> list[tuple[str, str, float]]:
    """The stores of a run of several."""
    given, found = begun.get("stores", []), []
    for store in given if isinstance(given, list) else [None]:
        about = store if isinstance(store, dict) else {}
        name, recipe, weight = (about.get(key) for key in ("name", "recipe", "weight"))
        if not (isinstance(name, str) and isinstance(recipe, str) and isinstance(weight, int | float)):
            raise OptionError(f"{path}: a store of the run has no name, recipe and weight")
        found.append((one_line(name, 100), recipe, float(weight)))
    return found


def _teachers(summary: Mapping[str, Any], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The figures of each teacher, by the name of its store."""
    given = summary.get("teachers")
    found: dict[str, dict[str, Any]] = {}
    for name in names:
        about = given.get(name) if isinstance(given, dict) else None
        about = about if isinstance(about, dict) else {}
        figures = {key: value for key, value in about.items() if _is_figure(value)}
        found[name] = {**figures, "teacher": one_line(str(about.get("teacher", "unknown")), 100)}
    return found


def _object(path: Path, run: Path) -> dict[str, Any]:
    found = files.read_json(path, inside=run)
    if not isinstance(found, dict):
        raise OptionError(f"{path}: expected an object, found {type(found).__name__}")
    return found


def _is_figure(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < _GREATEST


def _records(path: Path) -> list[dict[str, Any]]:
    found = []
    for record in read_metrics(path):
        figures = {name: value for name, value in record.items() if _is_figure(value)}
        if type(figures.get("step")) is int and record.get("kind") in ("train", "val"):
            found.append({**figures, **_of_each(record), "kind": record["kind"]})
    return found


def _of_each(record: Mapping[str, Any]) -> dict[str, dict[str, dict[str, float]]]:
    """The figures against each of several teachers, by the name of its store."""
    given = record.get("teachers")
    if not isinstance(given, dict):
        return {}
    return {
        "teachers": {
            one_line(str(name), 100): {key: value for key, value in about.items() if _is_figure(value)}
            for name, about in given.items()
            if isinstance(about, dict)
        }
    }


def short_name(path: Path) -> str:
    """The last two names of a path: ``run`` or ``store`` alone say little."""
    return "/".join(part for part in path.parts[-2:] if part not in ("/", "..", "."))


def _teacher_of(run: Path) -> str | None:
    config = run / "student" / "config.json"
    about: Any = _object(config, run) if config.exists() else {}
    for key in ("g2l", "extra", "distilled_from"):
        about = about.get(key) if isinstance(about, dict) else None
    return None if about is None else str(about)
