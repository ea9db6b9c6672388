"""Which device and arithmetic a stage uses, and why; how much memory it took."""

import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from stores.errors import OptionError

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_device(name: str) -> torch.device:
    """The device of ``--device``; ``auto`` takes CUDA, then Apple's MPS, then the CPU.

    Raises
    ------
    OptionError
        When the name is unknown or there is no such device.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise OptionError(f"--device {name}: allowed are auto, cpu, cuda, cuda:N, mps") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise OptionError(
            f"--device {name}: this machine has {torch.cuda.device_count()} CUDA devices; see `g2l doctor`"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise OptionError(f"--device {name}: MPS is not available here; see `g2l doctor`")
    return device


def choose_dtype(name: str, device: torch.device) -> tuple[torch.dtype, str]:
    """The arithmetic of ``--dtype`` and the reason for it.

    ``auto`` is bfloat16 on CUDA devices that have it, float16 on older ones, float32 elsewhere.
    """
    if name != "auto":
        return _DTYPES[name], "asked for"
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        title = f"{torch.cuda.get_device_name(device)}, compute capability {major}.{minor}"
        if major >= 8:
            return torch.bfloat16, f"{title}: tensor cores for bfloat16, and no overflow"
        return torch.float16, f"{title}: no bfloat16 before 8.0"
    if device.type == "mps":
        return torch.float32, "MPS: half precision is not tested here"
    return torch.float32, "CPU: not every CPU computes in half precision"


def half_precisions(device: torch.device) -> tuple[torch.dtype, ...]:
    """The half precisions that a device has in hardware: none on a CPU or on MPS."""
    if device.type != "cuda":
        return ()
    major, _ = torch.cuda.get_device_capability(device)
    return (torch.float16, torch.bfloat16) if major >= 8 else (torch.float16,)


def remedy(dtype: torch.dtype) -> str:
    """What to do when an encoder that computes in `dtype` returns numbers that cannot be kept."""
    if dtype == torch.float32:
        return "check its weights and its Normalize; it computed in float32 already"
    wider = "bfloat16 or float32" if dtype == torch.float16 else "float32"
    return f"try --dtype {wider}, or check the weights"


def dtype_name(dtype: torch.dtype) -> str:
    """``float32``, ``bfloat16`` or ``float16``."""
    return str(dtype).removeprefix("torch.")


def free_memory() -> int:
    """Bytes that this machine still has for this process: less inside a container or a job that has a limit."""
    import psutil

    return min([psutil.virtual_memory().available, *_left_to_groups()])


def _left_to_groups(
    proc: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")
) -> Iterator[int]:
    """What is left of the limit of each control group that this process is in; pages of files do not count as used."""
    try:
        lines = [line.split(":", 2) for line in proc.read_text().splitlines()]
    except OSError:
        return  # not Linux
    for _, kinds, path in lines:
        if "memory" in kinds.split(",") or not kinds:
            base = root / "memory" if kinds else root
            limit, used = _GROUP_FILES[bool(kinds)]
            place = base / path.lstrip("/")
            for folder in [place, *place.parents]:
                if not folder.is_relative_to(base):
                    break
                try:
                    left = int((folder / limit).read_text()) - int((folder / used).read_text())
                    stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                except (OSError, ValueError):
                    # without a limit, or of a container that shows its own group alone
                    continue
                yield max(left + int(stat.get("inactive_file", 0)), 0)


_GROUP_FILES = {
    False: ("memory.max", "memory.current"),
    True: ("memory.limit_in_bytes", "memory.usage_in_bytes"),
}
"""Limit and use, in the files of the second version of control groups and of the first."""


def peak_memory(device: torch.device) -> dict[str, int]:
    """Peak resident memory of this process and, on CUDA, peak memory of the device, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    peak = {"peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    if device.type == "cuda":
        peak["peak_device_bytes"] = torch.cuda.max_memory_allocated(device)
    return peak
