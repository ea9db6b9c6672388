"""Encoders of timm: from a name, a folder's config or a repository to a `Preset`, and from that to a model.

A description is completed on the meta device: the model is built and run without memory or weights, which
answers how long its feature is and how many parameters it has (0.1 to 0.4 s). Config files come from other labs:
names and arguments are judged (`pipeline.encoders.timm_arguments`) before timm sees them.
"""

import difflib
import json
import math
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
from pipeline.encoders.timm_arguments import MAX_IMAGE_PX, require_architecture, require_arguments
from pipeline.encoders.torchvision_cpu import make_importable
from stores.errors import EncoderError
from stores.format.terms import Fact, Terms, from_json, union
from stores.io import files
from stores.io.text import one_line

MAX_DIM = (1 << 16) - 1
"""Greatest length of a feature."""
MAX_CLASS_TOKENS = 64
_MAX_PARAMS = 8_000_000_000
"""The largest architecture of timm has 6.7 billion."""
KINDS = "a preset, a timm name, hf-hub:OWNER/NAME, a folder or module:function (`g2l models` lists presets)"


def create(preset: Preset) -> nn.Module:
    """Build the backbone of `preset`, with timm's own random start, on torch's current default device.

    Raises
    ------
    EncoderError
        timm has no such architecture or argument, or it is one that says more than what is built.
    """
    require_architecture(preset.arch, preset.name)
    require_arguments(preset.kwargs, preset.name)
    try:
        model: nn.Module = _timm().create_model(preset.arch, pretrained=False, num_classes=0, **preset.kwargs)
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
    return _config_preset(files.read_json(file, finite=True), f"folder {folder}", folder.resolve().name)


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
            if revision in ("", preset.revision):
                return preset
            return replace(preset, hub=f"{preset.hub}{at}{revision}", revision="", sha256={})
    file = fetch(
        repo, ["config.json"], otherwise="or fetch its files elsewhere and give their folder as the encoder"
    )
    config = files.read_json(file, finite=True)
    found = replace(_config_preset(config, repo, repo), hub=repo)
    ours = "g2l" in config or owner_name.lower().startswith("timm/")
    return found if ours else replace(found, warning=_of_the_architecture(found))


def _of_the_architecture(preset: Preset) -> str:
    """A warning when mean and std are those that timm fills in for an architecture; empty when they are others."""
    known = _timm().models.get_pretrained_cfg(preset.arch.partition(".")[0])
    if known is None or (preset.mean, preset.std) != (tuple(known.mean), tuple(known.std)):
        return ""
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (preset.mean, preset.std))
    return (
        f"its mean ({mean}) and std ({std}) are timm's for {preset.arch} and may not be those that the model was "
        "trained with: compare its page; a folder with its files and a corrected config.json has others"
    )


def rgb(values: Any, name: str) -> tuple[float, float, float]:
    """Three finite numbers, one for each channel, or an `EncoderError` that names whose they are."""
    try:
        red, green, blue = (float(value) for value in values)
        if not all(map(math.isfinite, (red, green, blue))):
            raise ValueError
    except (TypeError, ValueError, OverflowError) as error:
        raise EncoderError(
            f"mean or std of {name} is {one_line(repr(values))}; three numbers are expected"
        ) from error
    return red, green, blue


def side(size: Any, name: str) -> int:
    """Side of a square image, from a number or from (height, width)."""
    sides = {int(value) for value in (size if isinstance(size, list | tuple) else [size])}
    if len(sides) != 1:
        raise EncoderError(
            f"{name} takes images of {one_line(repr(size))} px; only square ones are supported"
        )
    found = sides.pop()
    if not 1 <= found <= MAX_IMAGE_PX:
        raise EncoderError(f"{name} takes images of {found} px; allowed is 1 to {MAX_IMAGE_PX}")
    return found


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
        try:
            shape = tuple(backbone(torch.empty(1, 3, image_px, image_px)).shape)
        except Exception as error:  # sizes that fit each by itself, and not together
            raise EncoderError(f"{name} cannot take images of {image_px} px ({brief(error)})") from error
    params = sum(parameter.numel() for parameter in backbone.parameters())
    if params > _MAX_PARAMS:
        raise EncoderError(f"{name} would have {params:,} parameters; allowed is up to {_MAX_PARAMS:,}")
    if len(shape) != 2:
        raise EncoderError(f"{name} maps an image to {shape}, not to one vector; choose another model")
    return replace(
        draft,
        dim=shape[1],
        mean=rgb(known["mean"], name),
        std=rgb(known["std"], name),
        image_px=image_px,
        params=params,
        terms=(Terms(one_line(name), _tag(known.get("license"), "timm")),),
    )


def _config_preset(config: Any, origin: str, name: str) -> Preset:
    """A preset from timm's ``config.json``; our own block ``g2l`` decides where there is one."""
    arch = _architecture(config, origin)
    try:
        return _read_config(config, arch, origin, name)
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:  # from another lab
        reason = f"{type(error).__name__}: {brief(error)}"
        raise EncoderError(f"config.json of {origin} does not have timm's form ({reason})") from error


def _read_config(config: Mapping[str, Any], arch: str, origin: str, name: str) -> Preset:
    known = config.get("pretrained_cfg", config)
    kwargs = {key: value for key, value in config.get("model_args", {}).items() if key != "num_classes"}
    if known.get("fixed_input_size"):
        kwargs.setdefault("img_size", known["input_size"][1:])
    ours = config.get("g2l", {})
    # judged before "img_size" is taken for a side, and under the config's name, which says where to look
    require_arguments(kwargs, f"config.json of {origin}")
    preset = _described(one_line(ours.get("name", name)) or name, arch, kwargs)
    pooling = ours.get("pooling", "forward")
    if pooling not in POOLINGS:
        raise EncoderError(
            f"config.json of {origin}: pooling {one_line(repr(pooling))}; allowed: {', '.join(POOLINGS)}"
        )
    image_px, shrink = sizes_of_config(config, origin, preset.image_px)
    return replace(
        preset,
        pooling=pooling,
        class_tokens=class_tokens_of_config(config, origin),
        dim=_within(ours.get("dim", preset.dim), MAX_DIM, "dim", origin),
        mean=rgb(ours.get("mean", known.get("mean", preset.mean)), origin),
        std=rgb(ours.get("std", known.get("std", preset.std)), origin),
        image_px=image_px,
        shrink=shrink,
        mpp=None if ours.get("mpp") is None else _mpp(ours["mpp"], origin),
        terms=terms_of_config(config, preset.name),
    )


def sizes_of_config(config: Any, origin: str, image_px: int) -> tuple[int, int]:
    """Side of the view, and of the squares that are averaged, of a ``config.json``; (`image_px`, 1) where it is silent.

    Raises
    ------
    EncoderError
        They are no whole numbers, or squares do not fill the view.
    """
    ours = _block(config, "g2l")
    view_px = _within(ours.get("image_px", image_px), MAX_IMAGE_PX, "image_px", origin)
    shrink = _within(ours.get("shrink", 1), view_px, "shrink", origin)
    if view_px % shrink:
        raise EncoderError(
            f"config.json of {origin}: shrink is {shrink}; allowed are divisors of image_px, {view_px}"
        )
    return view_px, shrink


def class_tokens_of_config(config: Any, origin: str) -> int:
    """How many class tokens a ``config.json`` says; EncoderError when that is no number of them."""
    return _within(_block(config, "g2l").get("class_tokens", 1), MAX_CLASS_TOKENS, "class_tokens", origin)


def terms_of_config(config: Any, name: str) -> tuple[Terms, ...]:
    """The terms of the weights beside a ``config.json``: what g2l recorded there, or the licence that it names.

    A student that g2l exported before it recorded terms was trained on the outputs of a teacher, whose terms count too.

    Parameters
    ----------
    name
        The encoder's name, for a licence without further facts.

    Raises
    ------
    StoreError
        When the terms do not have the form that g2l gives them.
    """
    ours, known = (_block(config, key) for key in ("g2l", "pretrained_cfg"))
    if "terms" in ours:
        return from_json(ours["terms"], f"config.json of {name}")
    licence = ours.get("licence") or known.get("license") or _block(config).get("license")
    own = Terms(one_line(name), _tag(licence, "its config.json"))
    teacher = _block(ours, "extra").get("distilled_from")
    if teacher is None:
        return (own,)
    known_teacher = PRESETS.get(teacher) if isinstance(teacher, str) else None
    return union([own], known_teacher.terms if known_teacher else [Terms(one_line(teacher))])


def _block(value: Any, *keys: str) -> Mapping[str, Any]:
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}


def _tag(licence: object, source: str) -> Fact:
    return Fact(one_line(licence), source) if licence else Fact()


def _mpp(value: Any, origin: str) -> float:
    mpp = float(value)
    if not 0 < mpp < math.inf:
        raise EncoderError(f"config.json of {origin}: mpp is {mpp}; a number above 0 is expected")
    return mpp


def _within(value: Any, most: int, name: str, origin: str) -> int:
    if type(value) is int and 1 <= value <= most:
        return value
    raise EncoderError(
        f"config.json of {origin}: {name} is {one_line(repr(value), 80)}; allowed is a whole number from 1 to {most}"
    )


def _architecture(config: Any, origin: str) -> str:
    arch = config.get("architecture") if isinstance(config, dict) else None
    if isinstance(config, dict) and "g2l" in config and arch is None:
        raise EncoderError(
            f"{origin} was made by a function, which its config does not call; give module:function as the "
            "encoder and this folder as --weights"
        )
    if isinstance(arch, str):
        require_architecture(arch, f"config.json of {origin}")
        if is_timm(arch):
            return arch
    raise EncoderError(
        f"config.json of {origin} has architecture {one_line(repr(arch))}, which timm does not know; give a timm name "
        "or module:function as the encoder and the file as --weights"
    )
