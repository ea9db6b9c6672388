"""``doctor``: what this machine has, and what would go wrong on it."""

import importlib.metadata
import os
import platform
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.runtime.version import g2l_version

_PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "zarr",
    "numcodecs",
    "openslide-python",
    "openslide-bin",
    "pyarrow",
    "numpy",
    "opencv-python-headless",
    "click",
)
_FREE_WARNING = 20e9


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What was found on this machine."""

    found: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return dict(self.found)

    def lines(self) -> list[str]:
        """The same as text."""
        found = self.found
        packages = ", ".join(f"{name} {version or 'MISSING'}" for name, version in found["packages"].items())
        lines = [f"g2l {found['g2l']}, Python {found['python']}", f"packages: {packages}"]
        for device in found["devices"]:
            size = f", {device['bytes'] / 1e9:.0f} GB" if device["bytes"] else ""
            lines.append(f"device {device['device']}{size}: {device['dtype']} ({device['reason']})")
        slides = found["openslide"]
        lines.append(f"OpenSlide {slides['version']}: {', '.join(slides['formats'])}")
        lines.append(f"free disk at {found['folder']}: {found['free_bytes'] / 1e9:.1f} GB")
        away = found["out_of_reach"]
        lines += [
            f"weights of {name}: {state}" for name, state in found["weights"].items() if name not in away
        ]
        lines += [f"PROBLEM: {problem}" for problem in found["problems"]]
        if away:
            lines.append(
                f"OUT OF REACH: the published weights of {len(away)} encoders ({', '.join(away)}), since "
                f"{found['hub_problem']}. Commands that need them will stop with what to do; --weights PATH takes a "
                "file fetched elsewhere"
            )
        machine = "no problems found on this machine" if away else "no problems found"
        return lines if found["problems"] else [*lines, machine]


def examine(folder: Path) -> Diagnosis:
    """Look at versions, devices, OpenSlide, free disk of `folder` and access to weights; ``problems`` are sentences."""
    problems: list[str] = []
    weights, away, problem = _weights()
    free = shutil.disk_usage(folder).free
    result: dict[str, Any] = {
        "g2l": g2l_version(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "devices": _devices(problems),
        "openslide": _openslide(problems),
        "free_bytes": free,
        "folder": str(folder),
        "weights": weights,
        "out_of_reach": away,
        "hub_problem": problem,
        "problems": problems,
    }
    problems += [
        f"package {name} is missing" for name, version in result["packages"].items() if version is None
    ]
    if free < _FREE_WARNING:
        problems.append(f"{folder}: {free / 1e9:.1f} GB free; a million views take 3.1 GB")
    return Diagnosis(result)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _devices(problems: list[str]) -> list[dict[str, Any]]:
    import torch

    from pipeline.encoders.torchvision_cpu import make_importable
    from pipeline.runtime.devices import choose_dtype, dtype_name

    try:
        make_importable()
    except Exception as error:
        problems.append(f"torchvision does not import beside torch {torch.__version__}: {error}")
    names = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    found = []
    for name in names + ["mps"] * torch.backends.mps.is_available():
        dtype, reason = choose_dtype("auto", torch.device(name))
        found.append({"device": name, "dtype": dtype_name(dtype), "reason": reason, "bytes": _memory(name)})
    return found


def _memory(device: str) -> int | None:
    import torch

    if device.startswith("cuda"):
        return int(torch.cuda.get_device_properties(device).total_memory)
    if device == "cpu" and hasattr(os, "sysconf"):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return None


def _openslide(problems: list[str]) -> dict[str, Any]:
    """Open and read a slide that is written on the spot, and name the formats of this version."""
    import openslide

    from pipeline.demo.synthetic_slides import write_slide

    with tempfile.TemporaryDirectory() as folder:
        try:
            path = Path(folder) / "slide.tiff"
            write_slide(path, seed=0, width_px=512, height_px=512)
            with openslide.OpenSlide(path) as slide:
                slide.read_region((0, 0), 0, (64, 64))
                works = slide.properties[openslide.PROPERTY_NAME_VENDOR] == "generic-tiff"
        except Exception as error:
            works = False
            problems.append(f"OpenSlide cannot read a plain tiled TIFF: {error}")
    formats = [
        "aperio",
        "dicom",
        "generic-tiff",
        "hamamatsu",
        "leica",
        "mirax",
        "philips",
        "sakura",
        "trestle",
    ]
    return {
        "version": openslide.__library_version__,
        "reads_tiff": works,
        "formats": [*formats, "ventana", "zeiss"],
    }


def _weights() -> tuple[dict[str, str], list[str], str | None]:
    """For each preset: shipped, downloaded, on the hub, or why not; the names of those out of reach, and why."""
    from pipeline.encoders.hub import find_cached
    from pipeline.encoders.presets import PRESETS
    from stores.remote.hub import hub_problem

    problem = hub_problem()
    states, away = {}, []
    for name, preset in PRESETS.items():
        if preset.asset is not None:
            states[name] = "shipped"
        elif preset.hub is not None and find_cached(preset.hub, preset.files):
            states[name] = "downloaded"
        elif preset.hub is not None:
            access = ", access has to be requested there" if preset.gated else ""
            states[name] = f"{problem or 'on the hub'} ({preset.hub}{access})"
            away += [name] * (problem is not None)
        else:
            states[name] = "no published weights: --weights PATH or --random-weights SEED"
    return states, away, problem
