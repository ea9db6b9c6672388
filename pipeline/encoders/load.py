"""Encoders: what turns views into features, and how one is found by name.

`load_encoder` takes a preset (``h-optimus-0``), a timm name (``vit_small_patch16_224``, ``timm:NAME?key=value``),
``hf-hub:OWNER/NAME``, a folder (a run's ``student``, or any timm folder) or ``module:function``. Each becomes a
`Preset` (what it computes) and weights (`pipeline.encoders.weights`), joined in an `Encoder` that takes uint8 views
and applies its own Normalize and pooling, so that teacher and student can share the very same pixels.
"""

import importlib
import importlib.util
import inspect
import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.encoders.encoder import Encoder, by_sides, token_grid
from pipeline.encoders.presets import PRESETS, WEIGHT_FILES, Preset
from pipeline.encoders.remote_code import SCHEME, load_remote
from pipeline.encoders.timm_models import (
    KINDS,
    class_tokens_of_config,
    create,
    folder_preset,
    hub_preset,
    is_timm,
    rgb,
    side,
    sizes_of_config,
    terms_of_config,
    timm_preset,
    unknown,
)
from pipeline.encoders.torchvision_cpu import make_importable
from pipeline.encoders.weights import fit, published, read_checkpoint, require_not_of_another
from stores.errors import EncoderError, OptionError, StoreError
from stores.format.terms import Fact, Terms, union
from stores.io import files
from stores.io.text import counted, one_line


def load_encoder(
    spec: str,
    *,
    weights: Path | None = None,
    random_weights: int | None = None,
    pooling: str | None = None,
    trust_remote_code: bool = False,
) -> Encoder:
    """Load an encoder by name, on the CPU, in eval mode and float32.

    Parameters
    ----------
    spec
        A preset, a timm name, ``hf-hub:OWNER/NAME``, a folder, or ``module:function``; see
        ``docs/reference/encoders.md``.
    weights
        Checkpoint file or folder to fill the architecture with, in place of the published weights.
    random_weights
        Seed of an untrained encoder. Equal seeds give equal bytes on one machine; torch's own random state
        is left as it was.
    pooling
        ``cls``, ``cls+mean`` or, of several class tokens, ``cls-average``, in place of the encoder's own.
    trust_remote_code
        Whether ``hf-auto:OWNER/NAME@REVISION`` may run the code of that repository.

    Raises
    ------
    EncoderError
        `spec` names nothing that can be built, or it has not the tokens that `pooling` needs.
    WeightsError
        The weights are missing, out of reach, damaged, or of another architecture.
    OptionError
        Both `weights` and `random_weights` are given.
    """
    if weights is not None and random_weights is not None:
        raise OptionError("--weights and --random-weights exclude each other; give one of them")
    if spec.startswith(f"{SCHEME}:"):
        if weights is not None or random_weights is not None:
            raise OptionError(f"{spec}: brings its own weights; leave out --weights and --random-weights")
        found = load_remote(spec, trust_remote_code)
    else:
        found = _load(spec, weights, random_weights)
    return found if pooling is None else _repooled(found, pooling)


def _repooled(encoder: Encoder, pooling: str) -> Encoder:
    """The same backbone with another pooling."""
    _, width = token_grid(encoder)
    if pooling == "cls":
        preset = replace(encoder.preset, pooling="cls", dim=encoder.class_tokens * width)
    elif pooling == "cls+mean":
        preset = replace(encoder.preset, pooling="cls+mean", dim=(encoder.class_tokens + 1) * width)
    elif pooling == "cls-average":
        if encoder.class_tokens == 1:
            raise OptionError(f"--pooling cls-average: {encoder.name} has one class token; take cls")
        preset = replace(encoder.preset, pooling="cls-average", dim=width)
    else:
        raise OptionError(f"--pooling {pooling}: allowed is cls, cls+mean or cls-average")
    return Encoder(preset, encoder.backbone).eval()


def without_memory(spec: str) -> Encoder | None:
    """The layers of an encoder on PyTorch's meta device; None unless its name, a preset's or timm's, tells them."""
    name = spec.removeprefix("timm:")
    if spec not in PRESETS and not is_timm(name):
        return None
    preset = PRESETS[spec] if spec in PRESETS else timm_preset(name)
    with torch.device("meta"):
        return Encoder(preset, create(preset))


def _load(spec: str, weights: Path | None, random_weights: int | None) -> Encoder:
    if spec in PRESETS:
        return _build(PRESETS[spec], weights, random_weights)
    scheme, colon, rest = spec.partition(":")
    if colon and scheme == "timm":
        return _build_timm(rest, weights, random_weights)
    if colon and scheme in ("hf-hub", "hf_hub"):
        return _build(hub_preset(rest), weights, random_weights)
    path = Path(spec).expanduser()
    if spec.strip() and path.is_dir():
        return _build(folder_preset(path), weights or path, random_weights)
    if path.is_file() and path.suffix == ".py":
        raise EncoderError(
            f"{spec} is a Python file; name the function in it that makes the encoder: {spec}:FUNCTION"
        )
    if path.is_file():
        raise EncoderError(
            f"{spec} is a file of weights; name its architecture as the encoder (a preset or timm name) and give "
            f"the file as --weights {spec}"
        )
    if colon:
        return _from_function(spec, weights, random_weights)
    if is_timm(spec):
        return _build_timm(spec, weights, random_weights)
    raise EncoderError(unknown(spec))


def _build_timm(spec: str, weights: Path | None, random_weights: int | None) -> Encoder:
    preset = timm_preset(spec)
    if weights is not None:  # timm names the licence of its own weights
        preset = replace(preset, terms=())
    return _build(preset, weights, random_weights)


def _build(preset: Preset, weights: Path | None, random_weights: int | None) -> Encoder:
    if random_weights is not None:
        preset = replace(preset, terms=())  # nobody's weights
        return Encoder(preset, _seeded(lambda: create(preset), random_weights)).eval()
    if weights is not None:
        known = union(preset.terms, _terms_beside(weights))
        preset = _sized_beside(replace(preset, terms=known or (Terms(preset.name),)), weights)
    with torch.device("meta"):  # shapes are compared before memory is taken
        backbone = create(preset)
    if weights is None:
        state, source = published(preset)
    else:
        require_not_of_another(weights, preset)
        state, source = read_checkpoint(weights), str(weights)
    state = fit(state, backbone, source, preset.name)
    if {name for name, _ in backbone.named_buffers()} <= state.keys():
        backbone.to_empty(device="cpu")
    else:
        backbone = create(preset)  # computes buffers that no checkpoint holds, such as window indices
    backbone.load_state_dict(state)
    return Encoder(preset, backbone).eval()


def _terms_beside(weights: Path) -> tuple[Terms, ...]:
    """The terms in the ``config.json`` beside a file of weights; none where there is no such file.

    So the terms of a student's teachers stay with its weights under whatever name these are loaded.
    """
    name = _folder_of(weights).resolve().name
    try:
        config = _config_beside(weights)
        return () if config is None else terms_of_config(config, name)
    except StoreError:
        return (Terms(name),)  # it says something that cannot be read: unknown


def _sized_beside(preset: Preset, weights: Path) -> Preset:
    """`preset` with the averaging of views that the weights were trained with, under whatever name they are loaded.

    Raises
    ------
    EncoderError
        They have other class tokens than `preset`: what the others learned would be left out. Or what the file beside
        them says cannot be read.
    """
    try:
        config = _config_beside(weights)
    except StoreError as error:
        raise EncoderError(
            f"{error}: it may say how these weights take views; mend it, or move it away"
        ) from None
    count = class_tokens_of_config(config, str(_folder_of(weights)))
    if config is not None and count != preset.class_tokens:
        raise EncoderError(
            f"{weights} has {counted(count, 'class token')}, {preset.name} {preset.class_tokens}; give the folder "
            f"{_folder_of(weights)} itself as the encoder"
        )
    image_px, shrink = sizes_of_config(config, str(_folder_of(weights)), preset.image_px)
    return preset if shrink == 1 else replace(preset, image_px=image_px, shrink=shrink)


def _folder_of(weights: Path) -> Path:
    return weights if weights.is_dir() else weights.parent


def _config_beside(weights: Path) -> Any:
    """What the ``config.json`` beside a file of weights says; None where there is none that belongs to it."""
    config = _folder_of(weights) / "config.json"
    if not config.is_file() or (weights.is_file() and weights.name not in WEIGHT_FILES):
        return None
    return files.read_json(config)


def _seeded(make: Callable[[], Any], seed: int) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed the GPUs as well
        return make()


def _from_function(spec: str, weights: Path | None, random_weights: int | None) -> Encoder:
    function = _function(spec)
    made = function() if random_weights is None else _seeded(function, random_weights)
    described: Mapping[str, Any] = {}
    if isinstance(made, tuple) and len(made) == 2:
        made, described = made
    if isinstance(made, Encoder):
        encoder = made
    elif isinstance(made, nn.Module) and isinstance(described, Mapping):
        encoder = Encoder(_function_preset(spec, made, described), made)
    else:
        kind = type(made).__name__
        raise EncoderError(
            f"{spec} returned {kind}; an nn.Module, (nn.Module, dict) or an Encoder is expected"
        )
    if weights is not None:
        state = fit(read_checkpoint(weights), encoder.backbone, str(weights), spec)
        encoder.backbone.load_state_dict(state)
        terms = union(encoder.terms, _terms_beside(weights))
        encoder = Encoder(_sized_beside(replace(encoder.preset, terms=terms), weights), encoder.backbone)
    return encoder.to("cpu", torch.float32).eval()


def _function(spec: str) -> Callable[[], Any]:
    make_importable()  # a user's code may import timm or torchvision, at its top or in the function
    target, _, name = spec.rpartition(":")
    path = Path(target).expanduser()
    if target.endswith(".py"):
        found = importlib.util.spec_from_file_location(path.stem, path) if path.is_file() else None
        if found is None or found.loader is None:
            raise EncoderError(f"{spec}: there is no file {target}; give MODULE:FUNCTION or FILE.py:FUNCTION")
        module = importlib.util.module_from_spec(found)
        found.loader.exec_module(module)
    else:
        module = _imported(target, spec)
    function = getattr(module, name, None)
    if not callable(function):
        raise EncoderError(f"{spec}: {target} has no function {name!r}")
    required = [p for p in inspect.signature(function).parameters.values() if p.default is p.empty]
    if any(p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in required):
        raise EncoderError(
            f"{spec} needs arguments; it is called without any: bind them with functools.partial"
        )
    return function


def _imported(target: str, spec: str) -> Any:
    if not all(part.isidentifier() for part in target.split(".")):
        raise EncoderError(f"{spec}: {target!r} is no module's name; allowed: {KINDS}")
    here = os.getcwd()  # the installed command does not search the current folder by itself
    sys.path.insert(0, here)
    try:
        return importlib.import_module(target)
    except ModuleNotFoundError as error:
        if not f"{target}.".startswith(f"{error.name}."):
            raise  # the module is there, and imports something that is not
        raise EncoderError(f"{spec}: no module {target!r}; allowed: {KINDS}") from error
    finally:
        sys.path.remove(here)


def _function_preset(spec: str, backbone: nn.Module, described: Mapping[str, Any]) -> Preset:
    """A preset from a dict or from attributes of the module; timm's own metadata fill what both leave out."""
    keys = ("mean", "std", "image_px", "mpp", "dim", "licence")
    other = sorted(described.keys() - set(keys))
    if other:
        raise EncoderError(f"{spec} described {', '.join(other)}; allowed: {', '.join(keys)}")
    known = getattr(backbone, "pretrained_cfg", None) or {}
    told = {key: known[key] for key in ("mean", "std") if key in known}
    if "input_size" in known:
        told["image_px"] = side(known["input_size"][1:], spec)
    told |= {key: getattr(backbone, key) for key in keys if getattr(backbone, key, None) is not None}
    told |= {key: value for key, value in described.items() if value is not None}
    if "mean" not in told or "std" not in told:
        raise EncoderError(
            f"{spec} does not say its Normalize; give mean and std as attributes or in the dict"
        )
    image_px = int(told.get("image_px", 224))
    _require_rgb(backbone, image_px, spec)
    return Preset(
        name=spec,
        dim=int(told["dim"]) if "dim" in told else _measured_dim(backbone, image_px, spec),
        mean=rgb(told["mean"], spec),
        std=rgb(told["std"], spec),
        image_px=image_px,
        mpp=told.get("mpp"),
        params=sum(parameter.numel() for parameter in backbone.parameters()),
        terms=(Terms(re.split(r"[\\/]", spec)[-1], _declared(told.get("licence"))),),
    )


def _declared(licence: object) -> Fact:
    return Fact(one_line(licence), "declared by the function") if licence else Fact()


@torch.inference_mode()
def _require_rgb(backbone: nn.Module, image_px: int, spec: str) -> None:
    """Raise EncoderError when the first layer takes other channels than red, green, blue, and nothing makes them."""
    first = next((module for module in backbone.modules() if isinstance(module, nn.Conv2d)), None)
    if first is None or first.in_channels == 3:
        return
    try:
        backbone.eval()(torch.zeros(1, 3, image_px, image_px).to(first.weight))
    except RuntimeError as error:
        raise EncoderError(
            f"{spec} takes images of {first.in_channels} channels, and views have 3 (RGB); let its forward make the "
            "channels that it needs, or give another model"
        ) from error


@torch.inference_mode()
def _measured_dim(backbone: nn.Module, image_px: int, spec: str) -> int:
    parameter = next(backbone.parameters(), torch.empty(0))
    features = backbone.eval()(torch.zeros(1, 3, image_px, image_px).to(parameter))
    if not isinstance(features, Tensor) or features.ndim != 2:
        shape = by_sides(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise EncoderError(f"{spec} maps one image to {shape}; a tensor (B, dim) is expected")
    return int(features.shape[1])
