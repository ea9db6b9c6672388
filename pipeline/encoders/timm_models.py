"""Encoders of timm: from a name, a folder's config or a repository to a `Preset`, and from that to a model.

A description is completed on the meta device: the model is built and run without memory or weights, which
answers how long its feature is and how many parameters it has (0.1 to 0.4 s).
"""

import difflib
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import torch
from torch import nn

from pipeline.encoders.hub import brief, fetch
from pipeline.encoders.presets import POOLINGS, PRESETS, Preset
from pipeline.encoders.torchvision_cpu import make_importable
from stores.errors import EncoderError

KINDS = "a preset, a timm name, hf-hub:OWNER/NAME, a folder or module:function (`g2l models` lists presets)"


def create(preset: Preset) -> nn.Module:
    """Build the backbone of `preset`, with timm's own random start, on torch's current default device.

    Raises
    ------
    EncoderError
        timm has no such architecture or argument.
    """
    try:
        model: nn.Module = _timm().create_model(preset.arch, num_classes=0, **preset.kwargs)
    except Exception as error:  # a constructor of timm with arguments from a user or a config file
        raise EncoderError(f"timm cannot build {preset.name} as described: {brief(error)}") from error
    return model


def is_timm(name: str) -> bool:
    """Whether timm has the architecture `name`, with or without tag and arguments."""
    return bool(_timm().is_model(name.partition("?")[0]))


def timm_preset(spec: str) -> Preset:
    """Describe ``NAME`` or ``NAME.TAG``, with arguments as ``?img_size=224&depth=2``.

    Raises
    ------
    EncoderError
        timm has no such name or tag, or cannot build it with these arguments.
    """
    name, _, query = spec.partition("?")
    if not is_timm(name):
        raise EncoderError(unknown(name))
    try:
        registered = _timm().models.get_pretrained_cfg(name)
    except RuntimeError as error:
        arch = name.partition(".")[0]
        tags = ", ".join(_timm().list_pretrained(f"{arch}.*")) or f"{arch} alone"
        raise EncoderError(f"timm has no weights {name!r}; allowed: {tags}") from error
    kwargs = {key: _scalar(value) for key, value in parse_qsl(query, keep_blank_values=True)}
    hub = registered.hf_hub_id if registered is not None else None
    return _described(spec, name, kwargs, hub)


def folder_preset(folder: Path) -> Preset:
    """Describe a folder with timm's ``config.json``, such as a run's ``student``.

    Raises
    ------
    EncoderError
        There is no config, or it describes nothing that timm can build.
    """
    file = folder / "config.json"
    if not file.is_file():
        inner = next((path.parent for path in sorted(folder.glob("*/config.json"))), None)
        hint = f"its subfolder {inner} has one" if inner else "give a run's student folder or a timm folder"
        raise EncoderError(f"folder {folder} holds no config.json; {hint}")
    return _config_preset(file.read_text(encoding="utf-8"), f"folder {folder}", folder.resolve().name)


def hub_preset(repo: str) -> Preset:
    """Describe repository ``OWNER/NAME`` or ``OWNER/NAME@REVISION``; a preset's repository is that preset.

    Raises
    ------
    WeightsError
        Its config cannot be fetched.
    EncoderError
        It is not a timm repository.
    """
    owner_name, at, revision = repo.partition("@")
    for preset in PRESETS.values():
        if preset.hub is not None and preset.hub.lower() == owner_name.lower():
            return replace(preset, hub=f"{preset.hub}{at}{revision}")
    file = fetch(
        repo, ["config.json"], otherwise="or fetch its files elsewhere and give their folder as the encoder"
    )
    return replace(_config_preset(file.read_text(encoding="utf-8"), repo, repo), hub=repo)


def rgb(values: Any, name: str) -> tuple[float, float, float]:
    """Three numbers, one for each channel, or an `EncoderError` that names whose they are."""
    try:
        red, green, blue = (float(value) for value in values)
    except (TypeError, ValueError) as error:
        raise EncoderError(f"mean or std of {name} is {values!r}; three numbers are expected") from error
    return red, green, blue


def side(size: Any, name: str) -> int:
    """Side of a square image, from a number or from (height, width)."""
    sides = {int(value) for value in (size if isinstance(size, list | tuple) else [size])}
    if len(sides) != 1:
        raise EncoderError(f"{name} takes images of {size} px; only square ones are supported")
    return sides.pop()


def unknown(spec: str) -> str:
    """The message for a name that nothing answers to, with the names that come close."""
    names = {name.lower(): name for name in (*_timm().list_models(), *PRESETS)}
    close = [names[name] for name in difflib.get_close_matches(spec.lower(), names, n=3, cutoff=0.6)]
    if re.fullmatch(r"[\w.-]+/[\w.-]+", spec):
        close = [f"hf-hub:{spec}", *close]
    meant = f"did you mean {' or '.join(close)}? " if close else ""
    what = "no such folder" if "/" in spec else "unknown encoder"
    return f"{what} {spec!r}: {meant}allowed: {KINDS}"


def _timm() -> Any:
    make_importable()
    import timm

    return timm


def _scalar(text: str) -> object:
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, int | float | bool) else text


@torch.no_grad()
def _described(name: str, arch: str, kwargs: Mapping[str, object], hub: str | None = None) -> Preset:
    draft = Preset(name=name, arch=arch, kwargs=kwargs, hub=hub, dim=0, mean=(0, 0, 0), std=(1, 1, 1))
    with torch.device("meta"):
        backbone = create(draft).eval()
        known: dict[str, Any] = backbone.pretrained_cfg  # type: ignore[assignment]
        image_px = side(kwargs.get("img_size", known["input_size"][1:]), name)
        shape = tuple(backbone(torch.empty(1, 3, image_px, image_px)).shape)
    if len(shape) != 2:
        raise EncoderError(f"{name} maps an image to {shape}, not to one vector; choose another model")
    return replace(
        draft,
        dim=shape[1],
        mean=rgb(known["mean"], name),
        std=rgb(known["std"], name),
        image_px=image_px,
        params=sum(parameter.numel() for parameter in backbone.parameters()),
        licence=known.get("license") or "unknown",
    )


def _config_preset(text: str, origin: str, name: str) -> Preset:
    """A preset from timm's ``config.json``; our own block ``g2l`` decides where there is one."""
    config = _parsed(text, origin)
    try:
        return _read_config(config, origin, name)
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # another lab may have written it
        reason = f"{type(error).__name__}: {brief(error)}"
        raise EncoderError(f"config.json of {origin} does not have timm's form ({reason})") from error


def _read_config(config: Mapping[str, Any], origin: str, name: str) -> Preset:
    known = config.get("pretrained_cfg", config)
    kwargs = {key: value for key, value in config.get("model_args", {}).items() if key != "num_classes"}
    if known.get("fixed_input_size"):
        kwargs.setdefault("img_size", known["input_size"][1:])
    ours = config.get("g2l", {})
    preset = _described(str(ours.get("name", name)), config["architecture"], kwargs)
    pooling = ours.get("pooling", "forward")
    if pooling not in POOLINGS:
        raise EncoderError(f"config.json of {origin}: pooling {pooling!r}; allowed: {', '.join(POOLINGS)}")
    return replace(
        preset,
        pooling=pooling,
        dim=int(ours.get("dim", preset.dim)),
        mean=rgb(ours.get("mean", known.get("mean", preset.mean)), origin),
        std=rgb(ours.get("std", known.get("std", preset.std)), origin),
        image_px=int(ours.get("image_px", preset.image_px)),
        mpp=None if ours.get("mpp") is None else float(ours["mpp"]),
        licence=str(ours.get("licence", known.get("license") or preset.licence)),
        note=str(ours.get("note", "")),
    )


def _parsed(text: str, origin: str) -> dict[str, Any]:
    try:
        config = json.loads(text)
    except ValueError as error:
        raise EncoderError(f"config.json of {origin} is not JSON ({brief(error)})") from error
    arch = config.get("architecture") if isinstance(config, dict) else None
    if isinstance(arch, str) and is_timm(arch):
        return dict(config)
    if isinstance(config, dict) and "g2l" in config and arch is None:
        raise EncoderError(
            f"{origin} was made by a function, which its config does not call; give module:function as the "
            "encoder and this folder as --weights"
        )
    raise EncoderError(
        f"config.json of {origin} has architecture {arch!r}, which timm does not know; give a timm name or "
        "module:function as the encoder and the file as --weights"
    )
