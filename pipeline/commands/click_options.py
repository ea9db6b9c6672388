"""What the commands share: errors as one line, options from dataclasses, headings, ``--config`` and ``--json``."""

import collections
import contextlib
import dataclasses
import errno
import json
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import click

from pipeline.runtime.options import MACHINE, convert, not_none, types_of
from stores.errors import G2LError, OptionError
from stores.io.files import is_full
from stores.io.location import StoreLike
from stores.io.text import visible


class _LocalPath(click.Path):
    """A path. For a URL the error names the commands that copy stores."""

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
"""A store to be read: a folder, or any URL that fsspec can read; see `opened`."""
_INTERRUPTED = 130
_OF_THE_DISK = frozenset((errno.EIO, errno.ESTALE, errno.EREMOTEIO))
_OF_THE_PATH = frozenset((errno.ENAMETOOLONG, errno.EACCES, errno.EPERM, errno.EROFS, errno.ELOOP))
"""What the system says of a path that cannot be used: nothing is wrong with the program."""


class Commands(click.Group):
    """A group that turns errors of use into one line and an exit code; no escape of a name reaches the terminal."""

    def make_context(self, *args: Any, **settings: Any) -> click.Context:
        with _clean_messages():
            return super().make_context(*args, **settings)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with _clean_messages():
                return super().invoke(ctx)
        except G2LError as error:
            click.echo(f"error: {visible(error)}", err=True)
            ctx.exit(error.exit_code)
        except OSError as error:
            if error.errno in _OF_THE_PATH and error.filename is not None:
                click.echo(f"error: {visible(error.filename)}: {error.strerror}", err=True)
                ctx.exit(2)
            if error.errno in _OF_THE_DISK:
                place = "" if error.filename is None else f"{visible(error.filename)}: "
                text = f"{place}{error.strerror}: the disk fails; all that was committed is kept: run the command again"
                click.echo(f"error: {text}", err=True)
                ctx.exit(2)
            if not is_full(error):
                raise
            click.echo(
                "error: the disk is full; all that was committed is kept: make room and run the command again",
                err=True,
            )
            ctx.exit(2)
        except KeyboardInterrupt as error:
            said = f"{visible(error)}; " if str(error) else ""
            click.echo(f"interrupted: {said}start the same command again to continue", err=True)
            ctx.exit(_INTERRUPTED)


@contextlib.contextmanager
def _clean_messages() -> Iterator[None]:
    """What click says of the command line repeats it: ``*`` puts the names of files there."""
    try:
        yield
    except click.ClickException as error:
        error.message = visible(error.message)  # type: ignore[misc]  # final for those who make it, not for us
        raise


def _load_config(ctx: click.Context, parameter: click.Parameter, path: Path | None) -> None:
    if path is not None:
        ctx.default_map = {**(ctx.default_map or {}), **read_config(ctx.command, path)}


def read_config(command: click.Command, path: Path) -> dict[str, Any]:
    """The options of a command in a YAML file, by the names that click has for them.

    Raises
    ------
    OptionError, click.BadParameter
        When it cannot be read, or has an option that the command does not have, or a list for one value.
    """
    from pipeline.runtime.yaml_file import read_yaml

    known = {_config_key(p): p for p in command.params if p.name != "config"}
    found: dict[str, Any] = {}
    for name, value in read_yaml(path, f"--config {path}").items():
        if name not in known:
            raise click.BadParameter(f"{path}: unknown option {name!r}; allowed: {', '.join(sorted(known))}")
        if getattr(known[name], "command_line_only", False):
            flag = f"--{name.replace('_', '-')}"
            raise click.BadParameter(f"{path}: {name} is set on the command line alone, with {flag}")
        if getattr(known[name], "one_or_several", False) and isinstance(value, str):
            value = [value]
        several = known[name].nargs != 1 or getattr(known[name], "multiple", False)
        if isinstance(value, list) != several and value is not None:
            expected = "a list, such as [1, 2]" if several else "one value"
            raise click.BadParameter(f"{path}: {name}: expected {expected}, found {value!r:.60}")
        if any(isinstance(item, dict | list) for item in (value if isinstance(value, list) else [value])):
            raise click.BadParameter(f"{path}: {name}: {value!r:.60} is not a value of an option")
        found[str(known[name].name)] = value
    return found


def _config_key(parameter: click.Parameter) -> str:
    """The name of an option in a config file: its flag, with underscores."""
    long = [name for name in parameter.opts if name.startswith("--")]
    return long[0].removeprefix("--").replace("-", "_") if long else str(parameter.name)


def options_of(
    *kinds: type, config: bool = True, without: Sequence[str] = ()
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Click options from the fields of option dataclasses; a name that two share is taken from the first.

    Parameters
    ----------
    config : bool
        False for a command that has a ``--config`` of its own.
    without
        Fields for which the command has an option of its own.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        seen: dict[str, click.Option] = {}
        for kind in kinds:
            for field in (each for each in dataclasses.fields(kind) if each.name not in without):
                seen.setdefault(field.name, _click_option(field, not_none(types_of(kind)[field.name])))
        for one in reversed(seen.values()):
            command = _added(one)(command)
        if not config:
            return JSON(command)
        command = _added(
            Option(
                ["--config"],
                type=PATH,
                metavar="FILE",
                is_eager=True,
                expose_value=False,
                callback=_load_config,
                help="YAML file of options. The command line overrides it.",
                heading=_OUTPUT,
            )
        )(command)
        return JSON(command)

    return decorate


def _added(parameter: click.Option) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """What ``@click.option`` does, with an option object."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        command.__dict__.setdefault("__click_params__", []).append(parameter)
        return command

    return decorate


_OUTPUT = "Other"
_METAVARS = {int: "N", float: "X", Path: "PATH", str: "TEXT"}


class Option(click.Option):
    """An option that knows the heading under which the help page shows it, and what a file may set it to."""

    def __init__(
        self,
        *args: Any,
        heading: str = "",
        command_line_only: bool = False,
        one_or_several: bool = False,
        **settings: Any,
    ) -> None:
        super().__init__(*args, **settings)
        self.one_or_several = one_or_several
        self.heading = heading
        self.command_line_only = command_line_only


class Command(click.Command):
    """A command whose help page groups the options under headings, if they have some."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        parts: dict[str, list[tuple[str, str]]] = {"": []}
        options = [parameter for parameter in self.get_params(ctx) if isinstance(parameter, click.Option)]
        for parameter in sorted(options, key=lambda p: not p.required):
            record = parameter.get_help_record(ctx)
            if record is not None:
                heading = _OUTPUT if "--help" in parameter.opts else getattr(parameter, "heading", "")
                parts.setdefault(heading, []).append(record)
        if set(parts) <= {"", _OUTPUT}:
            parts = {"": [record for records in parts.values() for record in records]}
        last = [(heading, parts.pop(heading, [])) for heading in (MACHINE, _OUTPUT)]
        for heading, records in [*parts.items(), *last]:
            if records:
                with formatter.section(heading or "Options"):
                    formatter.write_dl(records)


class SeveralCommand(Command):
    """A command that may do the work of several: it knows which options the command line repeats.

    Of an option that is repeated, click takes the last, which nobody means who repeats it for each teacher.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        order = self.make_parser(ctx).parse_args(list(args))[2]
        ctx.meta[_REPEATED] = [
            max(parameter.opts, key=len)
            for parameter, times in collections.Counter(order).items()
            if times > 1
            and not getattr(parameter, "multiple", False)
            and not getattr(parameter, "is_flag", False)
        ]
        return super().parse_args(ctx, args)


_REPEATED = "g2l.repeated"


def repeated() -> list[str]:
    """Options with one value that the command line of a `SeveralCommand` gives twice."""
    found: list[str] = click.get_current_context().meta[_REPEATED]
    return found


class Group(click.Group):
    """A group whose commands are `Command`."""

    command_class = Command


class _Value(click.ParamType):
    """A value of a type that click does not have, such as a number or ``all``."""

    name = "value"

    def __init__(self, hint: Any) -> None:
        self.hint = hint

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return convert(self.hint, value, "" if param is None else str(param.name))
        except OptionError as error:
            self.fail(str(error), param, ctx)


class _Choice(click.Choice[str]):
    """One of a few words; also takes those that earlier versions had for them."""

    def __init__(self, choices: Sequence[str], older: Mapping[str, str]) -> None:
        super().__init__(choices)
        self.older = older

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return super().convert(self.older.get(value, value), param, ctx)


def _click_option(field: dataclasses.Field[Any], kind: Any) -> click.Option:
    about = field.metadata
    default: Any = field.default
    shown = about["shown"]
    settings: dict[str, Any] = {
        "default": default,
        "metavar": about["metavar"],
        "heading": about["heading"],
        "command_line_only": about["command_line_only"],
        "help": about["help"],
    }
    if kind is bool:
        settings["is_flag"] = True
    else:
        if typing.get_origin(kind) is tuple:
            kind, settings["multiple"] = typing.get_args(kind)[0], True
            shown = shown or ", ".join(map(str, default))
        if default == "":
            settings |= {"required": True, "default": None}
        elif shown is None and default is not None:
            shown = str(default)
        if shown:
            settings["help"] += f" [default: {shown}]"
        if about["choices"]:
            settings["type"] = _Choice(about["choices"], about["older"])
        else:
            settings["type"] = PATH if kind is Path else kind if isinstance(kind, type) else _Value(kind)
            settings["metavar"] = about["metavar"] or _METAVARS[kind]
    return Option(["--" + field.name.replace("_", "-"), field.name], **settings)


JSON = click.option(
    "--json", "as_json", is_flag=True, cls=Option, heading=_OUTPUT, help="Print the result as JSON."
)


def remote_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """``--cache`` and ``--cache-gb`` of commands that read stores."""
    command = click.option(
        "--cache-gb",
        default=20.0,
        metavar="GB",
        cls=Option,
        heading=_OUTPUT,
        help="Size of the cache for remote stores. [default: 20]",
    )(command)
    return click.option(
        "--cache",
        type=PATH,
        metavar="DIR",
        cls=Option,
        heading=_OUTPUT,
        help="Cache folder for remote stores. [default: temporary]",
    )(command)


def opened(store: str, cache: Path | None = None, cache_gb: float = 20.0) -> StoreLike:
    """A store by path or URL, closed when the command ends."""
    from stores.remote.store import open_store

    found: StoreLike = click.get_current_context().with_resource(open_store(store, cache, cache_gb))
    return found


def build(kind: type, values: Mapping[str, Any]) -> Any:
    return kind(**{field.name: values[field.name] for field in dataclasses.fields(kind)})


def given(values: Mapping[str, Any]) -> dict[str, Any]:
    """The options that the command line or the config file gives; the others keep the defaults of the function."""
    ctx = click.get_current_context()
    return {
        name: value
        for name, value in values.items()
        if ctx.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT
    }


class Result(Protocol):
    """What a command prints."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""

    def lines(self) -> list[str]:
        """The same as text."""


def show(as_json: bool, result: Result) -> None:
    """Print a result."""
    print_result(as_json, result.to_json() if as_json else {}, result.lines)


def print_result(as_json: bool, summary: Mapping[str, Any], lines: Callable[[], list[str]]) -> None:
    """Print a result as JSON, whose own escapes are ASCII, or as lines without anything that is not to be seen."""
    click.echo(
        json.dumps(summary, indent=2, allow_nan=False) if as_json else "\n".join(map(visible, lines()))
    )
