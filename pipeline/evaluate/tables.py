"""``evaluate all``: the same tasks for several encoders, as the tables of a paper.

A YAML file says which encoders (student, teacher, untrained student, any other), which data (CSVs of tiles or slides,
embedded when they are not yet) and which tasks. Embeddings are kept below ``OUT/embeddings/DATA/ENCODER``, so that
no forward pass is repeated after an interruption, or when a task is added.
"""

import csv
import dataclasses
import io
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.embed.embed import embed
from pipeline.embed.options import EmbedOptions
from pipeline.evaluate import options as opts
from pipeline.evaluate.embeddings import Embeddings, load_embeddings
from pipeline.evaluate.protocols import PROTOCOLS, run_cka
from pipeline.evaluate.result import Result, Row, text_of
from pipeline.runtime.options import from_json
from pipeline.runtime.progress import Reporter
from pipeline.runtime.yaml_file import read_yaml
from pipeline.tile.options import TileOptions
from stores.errors import SOME_SLIDES_FAILED, EvaluationError, G2LError, OptionError
from stores.io.files import write_json, write_text
from stores.io.lock import only_writer
from stores.io.text import csv_cell, markdown

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
    tile: TileOptions = from_json(TileOptions, values)
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


@dataclass(slots=True)
class Tables:
    """The results of a bench."""

    encoders: Sequence[str]
    results: list[tuple[BenchTask, str, Result]] = field(default_factory=list)
    """Task, name of the encoder, result."""
    failed: dict[str, str] = field(default_factory=dict)
    written: list[Path] = field(default_factory=list)
    incomplete: list[str] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        return SOME_SLIDES_FAILED if self.failed or self.incomplete else 0

    def rows(self) -> list[dict[str, Any]]:
        """One row for each figure of each encoder on each task."""
        return [
            {"task": task.name, "protocol": result.protocol, "data": task.data, "encoder": encoder}
            | {"samples": result.samples, "figure": row.figure, "k": row.k}
            | {"value": row.value, "low": row.low, "high": row.high}
            for task, encoder, result in self.results
            for row in result.rows
        ]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        results = [
            {"task": task.name, "name": name, **result.to_json()} for task, name, result in self.results
        ]
        return {"results": results, "failed": self.failed, "incomplete": self.incomplete}

    def csv(self) -> str:
        """`rows` as CSV; what is not defined is empty, and no text is a formula (`stores.io.text.csv_cell`)."""
        text = io.StringIO()
        rows = self.rows()
        names = ["task", "protocol", "data", "encoder", "samples", "figure", "k", "value", "low", "high"]
        writer = csv.DictWriter(text, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: csv_cell(value) for name, value in row.items()} for row in rows)
        return text.getvalue()

    def markdown(self) -> list[str]:
        """A table with one column for each encoder. The best value of a row is bold where more is better."""
        lines = [
            "| task | figure | " + " | ".join(map(markdown, self.encoders)) + " |",
            "|---|---|" + "---|" * len(self.encoders),
        ]
        cells: dict[tuple[str, str], dict[str, Row]] = {}
        controls = {
            task.name for task, _, _ in self.results if getattr(task.options, "shuffle_labels", False)
        }
        for task, encoder, result in self.results:
            for row in result.rows:
                title = row.figure if row.k is None else f"{row.figure}, k = {row.k}"
                cells.setdefault((task.name, title), {})[encoder] = row
        for (name, title), by_encoder in cells.items():
            known = [row.value for row in by_encoder.values() if row.value is not None]
            best = max(known) if len(known) > 1 and "std" not in title and name not in controls else None
            texts = []
            for encoder in self.encoders:
                found = by_encoder.get(encoder)
                text = "" if found is None else text_of(found)
                texts.append(
                    f"**{text}**" if best is not None and found is not None and found.value == best else text
                )
            lines.append(f"| {markdown(name)} | {markdown(title)} | " + " | ".join(texts) + " |")
        lines.append("")
        said: dict[tuple[str, str], list[str]] = {}
        for task, encoder, result in self.results:
            for note in result.notes:
                said.setdefault((task.name, note), []).append(encoder)
        evaluated = {name: [e for t, e, _ in self.results if t.name == name] for name, _ in said}
        for (name, note), of in said.items():
            who = "" if of == evaluated[name] else f" ({', '.join(of)})"
            lines.append(f"- {markdown(name + who)}: {markdown(note, 500)}")
        lines += [f"- failed: {markdown(name)}: {markdown(why, 500)}" for name, why in self.failed.items()]
        return lines + [f"- incomplete: {markdown(text, 500)}" for text in self.incomplete]


def run_bench(bench: Bench, out: Path, report: Reporter) -> Tables:
    """Compute missing embeddings, run every task for every encoder, and write the tables below `out`."""
    with only_writer(out):
        return _run_bench(bench, out, report)


def _run_bench(bench: Bench, out: Path, report: Reporter) -> Tables:
    tables = Tables(list(bench.encoders))
    for data_name in bench.data:
        tasks = [task for task in bench.tasks if task.data == data_name]
        loaded: dict[str, Embeddings] = {}
        for name in _wanted(bench, tasks):
            try:
                loaded[name] = _embeddings(bench, name, data_name, out, tables, report)
            except G2LError as error:
                tables.failed[f"{name} on {data_name}"] = str(error)
        for task in tasks:
            for name in task.encoders or bench.encoders:
                if name not in loaded or name == task.to:
                    continue
                report.note(f"{task.name}: {name}")
                try:
                    tables.results.append((task, name, _run(task, name, loaded)))
                except G2LError as error:
                    tables.failed[f"{task.name} of {name}"] = str(error)
    order = {task.name: i for i, task in enumerate(bench.tasks)}
    tables.results.sort(key=lambda item: order[item[0].name])
    write_text(out / "table.csv", tables.csv())
    write_text(out / "table.md", "\n".join(tables.markdown()) + "\n")
    write_json(out / "table.json", tables.to_json())
    tables.written = [out / "table.csv", out / "table.md", out / "table.json"]
    return tables


def _wanted(bench: Bench, tasks: Sequence[BenchTask]) -> list[str]:
    """The encoders that the tasks of one data set need."""
    needed = {name for task in tasks for name in (task.encoders or bench.encoders)}
    needed |= {task.to for task in tasks if task.to is not None}
    return [name for name in bench.encoders if name in needed]


def _embeddings(
    bench: Bench, name: str, data_name: str, out: Path, tables: Tables, report: Reporter
) -> Embeddings:
    encoder, data = bench.encoders[name], bench.data[data_name]
    if not isinstance(encoder, EmbedOptions):
        if data_name not in encoder:
            raise EvaluationError(f"encoder {name}: embeddings of {data_name} are not given")
        return load_embeddings(encoder[data_name])
    folder = out / "embeddings" / data_name / name
    own: dict[str, Any] = dict(data.embed)
    own["column"] = tuple(own.get("column", ()))
    options = dataclasses.replace(encoder, format="parquet", **own)
    report.note(f"embedding {data_name} with {name}")
    summary = embed(data.input, folder, options, data.tile, report)
    for kind, reasons in (("slide", summary.failed_slides), ("block", summary.failed_blocks)):
        tables.incomplete += [f"{data_name}, {name}: {kind} {item}: {why}" for item, why in reasons.items()]
    if summary.bad_reads:
        tables.incomplete.append(f"{data_name}, {name}: {len(summary.bad_reads)} patches could not be read")
    return load_embeddings(folder)


def _run(task: BenchTask, name: str, loaded: Mapping[str, Embeddings]) -> Result:
    if task.protocol == "cka":
        assert task.to is not None
        if task.to not in loaded:
            raise EvaluationError(f"there are no embeddings of {task.to} to compare with")
        return run_cka(loaded[name], loaded[task.to], task.options)
    return PROTOCOLS[task.protocol][1](loaded[name], task.options)
