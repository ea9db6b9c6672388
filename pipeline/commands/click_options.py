"""What the commands share: errors as one line, options made from dataclasses, ``--config`` and ``--json``."""

import dataclasses
import json
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import click

from pipeline.runtime.options import from_json
from pipeline.tile.options import TileOptions
from stores.errors import G2LError
from stores.io.files import is_full
from stores.io.location import StoreLike


class _LocalPath(click.Path):
    """A path; a URL gets an answer that helps."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, str) and "://" in value:
            self.fail(
                f"{value}: a URL; this works on local folders: `g2l store push` and `pull` copy stores",
                param,
                ctx,
            )
        return super().convert(value, param, ctx)


PATH = _LocalPath(path_type=Path)
STORE = click.UNPROCESSED
"""A store to be read: a folder, or a URL of any kind that fsspec knows; see `opened`."""
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_INTERRUPTED = 130


class Commands(click.Group):
    """Turns the errors that users cause into one line and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except G2LError as error:
            click.echo(f"error: {error}", err=True)
            ctx.exit(error.exit_code)
        except OSError as error:
            if not is_full(error):
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


def options_of(*kinds: type) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
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
            type=PATH,
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
        settings["type"] = PATH if kind is Path else kind
    if field.default in ((), None, ""):
        settings["show_default"] = False
    if field.default == "":
        settings |= {"required": True, "default": None}
    return click.option(flag, field.name, **settings)


def remote_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """``--cache`` and ``--cache-gb`` of commands that read stores."""
    command = click.option(
        "--cache-gb", default=20.0, show_default=True, help="Size of the cache of a store behind a URL."
    )(command)
    return click.option("--cache", type=PATH, help="Folder for that cache; a temporary one.")(command)


def opened(store: str, cache: Path | None = None, cache_gb: float = 20.0) -> StoreLike:
    """A store by path or URL, closed when the command ends."""
    from stores.remote.store import open_store

    found: StoreLike = click.get_current_context().with_resource(open_store(store, cache, cache_gb))
    return found


def build(kind: type, values: Mapping[str, Any]) -> Any:
    return kind(**{field.name: values[field.name] for field in dataclasses.fields(kind)})


def tile_options(store: Path, values: Mapping[str, Any]) -> TileOptions:
    """What was given explicitly; the rest as the store was tiled, or the defaults."""
    from stores.format.layout import read_options

    ctx = click.get_current_context()
    unset = (click.core.ParameterSource.DEFAULT,)
    given = {f.name for f in dataclasses.fields(TileOptions) if ctx.get_parameter_source(f.name) not in unset}
    stored = {name: value for name, value in read_options(store, "tile").items() if name not in given}
    return dataclasses.replace(
        build(TileOptions, values), **_fields_of(from_json(TileOptions, stored), stored)
    )


def _fields_of(options: Any, names: Iterable[str]) -> dict[str, Any]:
    return {name: getattr(options, name) for name in names}


def write_summary(path: Path, summary: Mapping[str, Any], lines: Iterable[str]) -> None:
    """Keep the summary of a run beside its log, for machines and for people."""
    from stores.io.files import write_json, write_text

    write_json(path.with_name(f"{path.name}-summary.json"), summary)
    write_text(path.with_name(f"{path.name}-summary.txt"), "\n".join(lines) + "\n")


def print_result(as_json: bool, summary: Mapping[str, Any], lines: Callable[[], list[str]]) -> None:
    click.echo(json.dumps(summary, indent=2, allow_nan=False) if as_json else "\n".join(lines()))
