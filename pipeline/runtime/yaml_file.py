"""YAML that people write: options, policies, benches."""

import functools
import re
from pathlib import Path
from typing import Any

from stores.errors import OptionError, StoreError
from stores.io.files import MAX_DEPTH, deeper_than
from stores.io.foreign import TEXT_BYTES, read_text


def read_yaml(path: Path, what: str, example: str = "name: value") -> dict[str, Any]:
    """The mapping in a YAML file; an empty file is an empty one. No object is made, and nothing is repeated.

    As in YAML 1.2, ``off``, ``no``, ``on`` and ``yes`` are words and no booleans. Aliases (``*name``) are refused: nine
    lines of them stand for gigabytes.

    Parameters
    ----------
    what
        The option or file as the message names it.
    example
        A line as it could be in the file, for the message.

    Raises
    ------
    OptionError
        When the file is absent, not a regular one, too large, not YAML, or holds anything but names with values.
    """
    import yaml  # here, since it takes a tenth of the time of `--help`

    try:
        value = yaml.load(read_text(path, TEXT_BYTES), _loader())  # a SafeLoader
    except FileNotFoundError:
        raise OptionError(f"{what}: no such file") from None
    except StoreError as error:
        raise OptionError(f"{what}: {str(error).removeprefix(f'{path}: ')}") from None
    except Exception as error:  # a date of month 13 is a ValueError, and each type has errors of its own
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise OptionError(f"{what}: not readable as YAML ({said})") from None
    if value is None:
        return {}
    if not isinstance(value, dict) or deeper_than(value, MAX_DEPTH):
        raise OptionError(f"{what}: expected lines such as {example!r}, found {value!r:.60}")
    _require_names(value, what)
    return value


def _require_names(value: Any, what: str) -> None:
    """Raise OptionError for a mapping, at any depth, whose keys are not text."""
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise OptionError(f"{what}: {key!r:.60} is not a name; put it in quotes if it is one")
            _require_names(item, what)
    elif isinstance(value, list):
        for item in value:
            _require_names(item, what)


@functools.cache
def _loader() -> Any:
    import yaml

    class WithoutAliases(yaml.SafeLoader):
        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise yaml.composer.ComposerError(
                    None,
                    None,
                    "aliases (*name) are not allowed: write the value out",
                    self.peek_event().start_mark,
                )
            return super().compose_node(parent, index)

    boolean = "tag:yaml.org,2002:bool"
    WithoutAliases.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in known if tag != boolean]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    WithoutAliases.add_implicit_resolver(
        boolean, re.compile("^(?:true|True|TRUE|false|False|FALSE)$"), "tTfF"
    )
    return WithoutAliases
