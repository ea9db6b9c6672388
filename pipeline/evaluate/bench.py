"""What ``evaluate all`` is asked for: encoders, data and tasks, from a YAML file."""

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.embed.options import EmbedOptions
from pipeline.evaluate import options as opts
from pipeline.evaluate.protocols import PROTOCOLS
from pipeline.runtime.options import from_json, require_choices
from pipeline.runtime.yaml_file import read_yaml
from pipeline.tile.options import TileOptions
from stores.errors import OptionError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._+-]{0,63}")
_PARTS = ("encoders", "data", "tasks")
_KINDS = (*PROTOCOLS, "cka")


@dataclass(frozen=True, slots=True)
class Data:
    """A data set of a bench."""

    input: tuple[Path, ...]
    embed: Mapping[str, Any]
    """Options of embedding that belong to the data: column, root, fit."""
    tile: TileOptions


@dataclass(frozen=True, slots=True)
class BenchTask:
    """A protocol on a data set."""

    name: str
    protocol: str
    data: str
    options: Any
    to: str | None = None
    """For cka: the encoder to compare with."""
    encoders: tuple[str, ...] = ()
    """Names of encoders; empty for all."""


@dataclass(frozen=True, slots=True)
class Bench:
    """What a YAML file asks for."""

    encoders: Mapping[str, EmbedOptions | Mapping[str, Path]]
    """Options of embedding, or where embeddings of each data set are already."""
    data: Mapping[str, Data]
    tasks: Sequence[BenchTask]


def read_bench(path: Path) -> Bench:
    """Read and check a bench before anything runs; paths are relative to the file.

    Raises
    ------
    OptionError
        When it is not YAML, or something in it is unknown or missing; names the place.
    """
    value = read_yaml(path, str(path))
    if set(value) != set(_PARTS):
        raise OptionError(f"{path}: expected {', '.join(_PARTS)}; found {', '.join(value) or 'nothing'}")
    base = path.parent
    encoders = {
        _name(path, name): _encoder(base, f"{path}: encoders: {name}", item)
        for name, item in _mapping(path, "encoders", value["encoders"]).items()
    }
    data = {
        _name(path, name): _data(base, f"{path}: data: {name}", item)
        for name, item in _mapping(path, "data", value["data"]).items()
    }
    if not isinstance(value["tasks"], list) or not value["tasks"]:
        raise OptionError(f"{path}: tasks: a list of at least one is expected")
    tasks = [
        _task(base, f"{path}: task {i}", item, encoders, data) for i, item in enumerate(value["tasks"], 1)
    ]
    names = [task.name for task in tasks]
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise OptionError(f"{path}: two tasks are called {doubled[0]!r}; give one of them another name")
    return Bench(encoders, data, tasks)


def _mapping(path: Path, part: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        raise OptionError(f"{path}: {part}: at least one, by name, is expected")
    return value


def _name(path: Path, name: Any) -> str:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise OptionError(f"{path}: name {name!r}: letters, digits, blanks and . _ + - are allowed")
    return name


def _fields(where: str, value: Any, allowed: Sequence[str], needed: Sequence[str]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise OptionError(f"{where}: expected {', '.join(needed)}; found {value!r:.80}")
    for key in value:
        if key not in allowed:
            raise OptionError(f"{where}: {key!r} is unknown; allowed: {', '.join(allowed)}")
    for key in needed:
        if value.get(key) in (None, "", []):
            raise OptionError(f"{where}: {key} is missing")
    return value


def _names(kind: type) -> list[str]:
    return [item.name for item in dataclasses.fields(kind)]


_OF_DATA = ("column", "root", "fit")


def _encoder(base: Path, where: str, value: Any) -> EmbedOptions | Mapping[str, Path]:
    if isinstance(value, dict) and "embeddings" in value:
        given = _fields(where, value, ["embeddings"], ["embeddings"])["embeddings"]
        if not isinstance(given, dict):
            raise OptionError(f"{where}: embeddings: a folder for each data set is expected")
        return {str(name): base / str(path) for name, path in given.items()}
    allowed = [name for name in _names(EmbedOptions) if name not in (*_OF_DATA, "format")]
    values = dict(_fields(where, value, allowed, ["encoder"]))
    if "weights" in values:
        values["weights"] = base / str(values["weights"])
    folder = base / str(values["encoder"])
    if os.path.isdir(folder):  # False also for a name that no file can have
        values["encoder"] = str(folder)
    options: EmbedOptions = from_json(EmbedOptions, values)
    options.validate()
    return options


def _data(base: Path, where: str, value: Any) -> Data:
    tile_names = _names(TileOptions)
    values = dict(_fields(where, value, ["input", *_OF_DATA, *tile_names], ["input"]))
    given = values.pop("input")
    inputs = tuple(base / str(item) for item in (given if isinstance(given, list) else [given]))
    for path in inputs:
        if not os.path.exists(path):
            raise OptionError(f"{where}: {path} does not exist")
    for name in ("root", "slides_csv", "masks"):
        if values.get(name) is not None:
            values[name] = base / str(values[name])
    of_data = {name: values.pop(name) for name in _OF_DATA if name in values}
    require_choices(from_json(EmbedOptions, {"encoder": "any", **of_data}))
    tile: TileOptions = from_json(TileOptions, values)
    require_choices(tile)
    tile.validate()
    return Data(inputs, of_data, tile)


def _task(
    base: Path, where: str, value: Any, encoders: Mapping[str, Any], data: Mapping[str, Data]
) -> BenchTask:
    if not isinstance(value, dict) or value.get("protocol") not in _KINDS:
        found = value.get("protocol") if isinstance(value, dict) else value
        raise OptionError(f"{where}: protocol {found!r:.80}; allowed: {', '.join(_KINDS)}")
    protocol = value["protocol"]
    kind = opts.CkaOptions if protocol == "cka" else PROTOCOLS[protocol][0]
    own = ["name", "protocol", "data", "encoders", *(["to"] if protocol == "cka" else [])]
    needed = ["protocol", "data", *(["to"] if protocol == "cka" else [])]
    values = dict(_fields(where, value, [*own, *_names(kind)], needed))
    chosen = values.pop("encoders", ())
    if not isinstance(chosen, list | tuple):
        raise OptionError(f"{where}: encoders {chosen!r:.80}: a list of names is expected")
    task = {name: values.pop(name, None) for name in ("name", "protocol", "data", "to")}
    if str(task["data"]) not in data:
        raise OptionError(f"{where}: data {task['data']!r}; allowed: {', '.join(data)}")
    for name in [*chosen, *([task["to"]] if protocol == "cka" else [])]:
        if str(name) not in encoders:
            raise OptionError(f"{where}: encoder {name!r:.80}; allowed: {', '.join(encoders)}")
    for name in ("labels", "genes"):
        if values.get(name) is not None:
            values[name] = base / str(values[name])
    options = from_json(kind, values)
    options.validate()
    shuffled = ", shuffled labels" if getattr(options, "shuffle_labels", False) else ""
    name = str(task["name"] or f"{task['data']} {protocol}{shuffled}")
    return BenchTask(name, protocol, str(task["data"]), options, task["to"], tuple(chosen))
