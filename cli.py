"""The command line: parse, call one function, print. Everything heavy is imported inside the commands."""

import dataclasses
import errno
import json
import os
import signal
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import click

from pipeline.options import DistillOptions, ExtractOptions, TileOptions, from_json
from stores.errors import SOME_SLIDES_FAILED, G2LError

_PATH = click.Path(path_type=Path)
_INTERRUPTED = 130


class _Commands(click.Group):
    """Turns the errors that users cause into one line and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except G2LError as error:
            click.echo(f"error: {error}", err=True)
            ctx.exit(error.exit_code)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            click.echo(
                "error: the disk is full; all that was committed is kept: make room, run it again", err=True
            )
            ctx.exit(2)
        except KeyboardInterrupt as error:
            said = f"{error}; " if str(error) else ""
            click.echo(f"interrupted: {said}start the same command again to go on", err=True)
            ctx.exit(_INTERRUPTED)


def _load_config(ctx: click.Context, parameter: click.Parameter, path: Path | None) -> None:
    if path is None:
        return
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, yaml.YAMLError) as error:
        raise click.BadParameter(f"{path}: not readable as YAML ({str(error).splitlines()[0]})") from None
    names = {_config_key(p): p.name for p in ctx.command.params if p.name != parameter.name}
    if not isinstance(values, dict) or not set(values) <= set(names):
        wrong = min(map(str, set(values) - set(names))) if isinstance(values, dict) else values
        raise click.BadParameter(f"{path}: unknown option {wrong!r}; allowed: {', '.join(sorted(names))}")
    ctx.default_map = {**(ctx.default_map or {}), **{names[key]: value for key, value in values.items()}}


def _config_key(parameter: click.Parameter) -> str:
    """The name of an option in a config file: its flag, with underscores."""
    long = [name for name in parameter.opts if name.startswith("--")]
    return long[0].removeprefix("--").replace("-", "_") if long else str(parameter.name)


def _options_of(*kinds: type) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Click options from the fields of option dataclasses; a name that two share is taken from the first."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        seen: dict[str, Any] = {}
        for kind in kinds:
            for field in dataclasses.fields(kind):
                seen.setdefault(field.name, field)
        for field in reversed(seen.values()):
            command = _click_option(field)(command)
        command = click.option(
            "--config",
            type=_PATH,
            is_eager=True,
            expose_value=False,
            callback=_load_config,
            help="YAML file of options.",
        )(command)
        return click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")(command)

    return decorate


def _click_option(field: Any) -> Callable[..., Any]:
    flag = "--" + field.name.replace("_", "-")
    kind = field.type
    if isinstance(kind, types.UnionType):
        kind = next(k for k in typing.get_args(kind) if k is not types.NoneType)
    settings: dict[str, Any] = {
        "help": field.metadata["help"],
        "default": field.default,
        "show_default": True,
    }
    if kind is bool:
        return click.option(flag, field.name, is_flag=True, **settings)
    if typing.get_origin(kind) is tuple:
        kind, settings["multiple"] = typing.get_args(kind)[0], True
    if field.metadata["choices"]:
        settings["type"] = click.Choice(field.metadata["choices"])
    else:
        settings["type"] = _PATH if kind is Path else kind
    if field.default in ((), None, ""):
        settings["show_default"] = False
    if field.default == "":
        settings |= {"required": True, "default": None}
    return click.option(flag, field.name, **settings)


def _build(kind: type, values: Mapping[str, Any]) -> Any:
    return kind(**{field.name: values[field.name] for field in dataclasses.fields(kind)})


def _tile_options(store: Path, values: Mapping[str, Any]) -> TileOptions:
    """What was given explicitly; the rest as the store was tiled, or the defaults."""
    from stores.files import read_options

    ctx = click.get_current_context()
    unset = (click.core.ParameterSource.DEFAULT,)
    given = {f.name for f in dataclasses.fields(TileOptions) if ctx.get_parameter_source(f.name) not in unset}
    stored = {name: value for name, value in read_options(store, "tile").items() if name not in given}
    return dataclasses.replace(
        _build(TileOptions, values), **_fields_of(from_json(TileOptions, stored), stored)
    )


def _fields_of(options: Any, names: Iterable[str]) -> dict[str, Any]:
    return {name: getattr(options, name) for name in names}


def _print(as_json: bool, summary: Mapping[str, Any], lines: Callable[[], list[str]]) -> None:
    click.echo(json.dumps(summary, indent=2, allow_nan=False) if as_json else "\n".join(lines()))


@click.group(
    cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.version_option(package_name="g2l")
def g2l() -> None:
    """Distil a giant pathology encoder into a small one, from a store of teacher features.

    tile -> extract-teacher -> distill. Every command can be stopped at any moment and started again.
    """


@g2l.command()
@click.argument("slides", nargs=-1, required=True, type=_PATH)
@click.option("--store", required=True, type=_PATH, help="Folder of the store.")
@_options_of(TileOptions)
def tile(slides: tuple[Path, ...], store: Path, as_json: bool, **values: Any) -> None:
    """Find tissue, lay the patch grid, split by patient; writes a picture of each slide."""
    from pipeline import summaries, tiling
    from pipeline.progress import reporter_for

    options = _tile_options(store, values)
    with reporter_for(sys.stderr) as report:
        result = tiling.tile(slides, store, options, report)
    _print(as_json, summaries.tile_json(store, result), lambda: summaries.tile_lines(store, result))
    _exit_if(bool(result.unusable))


@g2l.command("extract-teacher")
@click.argument("slides", nargs=-1, required=True, type=_PATH)
@click.option("--store", required=True, type=_PATH, help="Folder of the store.")
@_options_of(ExtractOptions, TileOptions)
def extract_teacher(slides: tuple[Path, ...], store: Path, as_json: bool, **values: Any) -> None:
    """Run the teacher once over every view of every patch; tiles first what is not tiled."""
    from pipeline import extract, summaries
    from pipeline.progress import reporter_for

    options, tile_options = _build(ExtractOptions, values), _tile_options(store, values)
    with reporter_for(sys.stderr) as report:
        result = extract.extract(slides, store, options, tile_options, report)
    _print(as_json, summaries.extract_json(store, result), lambda: summaries.extract_lines(store, result))
    _exit_if(bool(result.failed_slides or result.bad_reads))


@g2l.command()
@click.option("--store", required=True, type=_PATH, help="Folder of the store.")
@click.option("--out", "run", required=True, type=_PATH, help="Folder of the run.")
@click.option("--resume", is_flag=True, help="Insist on going on from a checkpoint; a run goes on anyway.")
@_options_of(DistillOptions)
def distill(store: Path, run: Path, resume: bool, as_json: bool, **values: Any) -> None:
    """Train a student against the store, with no teacher in memory."""
    from pipeline import summaries
    from pipeline.distill.train import distill as train
    from pipeline.progress import reporter_for

    with reporter_for(sys.stderr) as report:
        result = train(store, run, _build(DistillOptions, values), resume, report)
    _print(as_json, result, lambda: summaries.distill_lines(run, result))


@g2l.group()
def store() -> None:
    """Look at a store."""


@store.command()
@click.argument("path", type=_PATH)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def info(path: Path, as_json: bool) -> None:
    """What a store holds: recipe, slides, patches, views per seed and split, bytes, completeness."""
    from pipeline import summaries
    from stores.info import store_info

    result = store_info(path)
    _print(as_json, result, lambda: summaries.info_lines(path, result))


@g2l.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def models(as_json: bool) -> None:
    """The encoders that are known by name, with dimension, size and licence."""
    from pipeline import summaries
    from pipeline.presets import PRESETS

    rows = [dataclasses.asdict(preset) for preset in PRESETS.values()]
    _print(as_json, {"models": rows}, lambda: summaries.model_lines(rows))


@g2l.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(as_json: bool) -> None:
    """Check this machine: versions, devices, OpenSlide, free disk, whether weights can be reached."""
    from pipeline import doctor as examine

    result = examine.examine(Path.cwd())
    _print(as_json, result, lambda: examine.lines(result))


@g2l.command()
@click.option("--out", default="demo", show_default=True, type=_PATH, help="Folder to write into.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def demo(out: Path, as_json: bool) -> None:
    """Both stages on small synthetic slides that the command writes itself; a few minutes on a CPU."""
    from pipeline import demo as whole
    from pipeline.progress import reporter_for

    with reporter_for(sys.stderr) as report:
        result = whole.run_demo(out, report)
    _print(as_json, result, lambda: whole.lines(out, result))


def _exit_if(some_failed: bool) -> None:
    if some_failed:
        sys.exit(SOME_SLIDES_FAILED)


def main() -> None:
    """Entry point of ``g2l`` and ``python cli.py``."""

    def terminate(number: int, frame: types.FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    # Waiting OpenMP threads sleep instead of spinning: beside one busy process on two cores extract-teacher made 88
    # views/s instead of 55, and on an idle machine as many as before. Has to be set before torch loads.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    signal.signal(signal.SIGTERM, terminate)  # a cluster's way of Ctrl-C
    g2l(prog_name="g2l")


if __name__ == "__main__":
    main()
