"""By what right a store is given away although the terms of its teacher speak against it: a sentence of its maker."""

from pathlib import Path

from stores.errors import OptionError
from stores.format import layout
from stores.io import files
from stores.io.text import one_line

_COMMAND, _MOST = "card", 500


def permission_of(store: Path) -> str | None:
    """The sentence that ``store card --permission`` recorded; None where there is none."""
    found = layout.read_options(store, _COMMAND).get("permission")
    return one_line(found, _MOST) if isinstance(found, str) and found.strip() else None


def record_permission(store: Path, text: str) -> None:
    """Record it in ``options/card.json``; OptionError when it is empty."""
    if not text.strip():
        raise OptionError("--permission: is empty; say in a sentence by what right you give the store away")
    files.write_json(store / layout.options_file(_COMMAND), {"permission": one_line(text, _MOST)})
