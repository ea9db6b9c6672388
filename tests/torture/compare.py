"""Whether a repeated command left what an undisturbed one leaves, byte for byte but for some named rules."""

import io
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

_LOGS = re.compile(r"(.*/)?(logs/.*|log\.jsonl)")
_TIMED = re.compile(r"(.*/)?(summary\.json|metrics\.jsonl|prototypes\.json)")
_TIMES = (
    "seconds",
    "wait_seconds",
    "val_seconds",
    "validation_share",
    "first_step_seconds",
    "views_per_s",
    "data_wait",
    "peak_rss_bytes",
    "peak_device_bytes",
)
_TIMED_TEXT = re.compile(r"(.*/)?(summary\.txt|student(-ema)?/README\.md|.*report\.html|curves\.png)")
_CHECKPOINT = re.compile(r"(.*/)?checkpoints/.*\.pt")
_MODEL = re.compile(r"(.*/)?student(-ema)?/config\.json")

RULES = {
    "logs": "logs and the summaries beside them say when something happened",
    "times": f"figures of time and memory in JSON: {', '.join(_TIMES)}",
    "timed text": "the summary of a run as text, its card, curves and report repeat those figures",
    "checkpoints": "checkpoints hold those figures too, and are compared by the tensors in them",
}
"""What is not compared byte for byte, and why."""


def content(folder: Path) -> dict[str, bytes]:
    """Every file and every empty folder below `folder`, by name; after the rules."""
    found: dict[str, bytes] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if _LOGS.fullmatch(name) or (path.name == "logs" and path.is_dir()):
            if path.name.endswith(".partial"):
                found[name] = b"left over"
        elif path.is_symlink():
            found[name] = b"link"
        elif path.is_dir():
            if not any(path.iterdir()):
                found[f"{name}/"] = b""
        else:
            found[name] = _by_rule(name, path.read_bytes()).replace(str(folder).encode(), b".")
    return found


def _by_rule(name: str, data: bytes) -> bytes:
    if _TIMED_TEXT.fullmatch(name):
        return b"is there"
    if _TIMED.fullmatch(name):
        lines = data.splitlines() if name.endswith(".jsonl") else [data]
        return b"\n".join(json.dumps(_timeless(json.loads(line)), sort_keys=True).encode() for line in lines)
    if _CHECKPOINT.fullmatch(name):
        return _tensors(data)
    return data


def _timeless(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _timeless(inner) for key, inner in value.items() if key not in _TIMES}
    return value


def _tensors(data: bytes) -> bytes:
    import torch

    state = torch.load(io.BytesIO(data), weights_only=True)
    state["facts"] = _timeless(state["facts"])
    return repr(_plain(state)).encode()


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return [(key, _plain(inner)) for key, inner in value.items()]
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value.numpy().tobytes() if hasattr(value, "numpy") else value


def differences(found: Mapping[str, bytes], expected: Mapping[str, bytes]) -> list[str]:
    """What differs, a line each."""
    lines = [f"{name}: is left over" for name in sorted(found.keys() - expected.keys())]
    lines += [f"{name}: is missing" for name in sorted(expected.keys() - found.keys())]
    both: Iterable[str] = sorted(found.keys() & expected.keys())
    return lines + [f"{name}: other bytes" for name in both if found[name] != expected[name]]
