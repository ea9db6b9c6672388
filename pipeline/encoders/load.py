"""Encoders: what turns views into features, and how one is found by name.

`load_encoder` takes a preset (``h-optimus-0``), a timm name (``vit_small_patch16_224``, ``timm:NAME?key=value``),
``hf-hub:OWNER/NAME``, a folder (a run's ``student``, or any timm folder) or ``module:function``. Each becomes a
`Preset` (what it computes) and weights (`pipeline.weights`), joined in an `Encoder` that takes uint8 views
and applies its own Normalize and pooling, so that teacher and student can share the very same pixels.
"""

import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.encoders.presets import PRESETS, Preset
from pipeline.encoders.timm_models import (
    KINDS,
    create,
    folder_preset,
    hub_preset,
    is_timm,
    rgb,
    side,
    timm_preset,
    unknown,
)
from pipeline.encoders.weights import fit, published, read_checkpoint
from pipeline.tokens import token_grid
from stores.errors import EncoderError, OptionError


class Encoder(nn.Module):
    """A backbone with the Normalize and the pooling that belong to it.

    ``mean``, ``std``, ``image_px``, ``mpp``, ``pooling``, ``dim`` and ``licence`` are those of `preset`. The constants
    of Normalize stay float32 when the encoder is cast, and are in no state dict.

    Parameters
    ----------
    preset
        What the backbone is.
    backbone
        Maps normalised float images (B, 3, H, W) to tokens (``forward_features``, for the poolings that begin
        with ``cls``) or to features (``forward``).

    Raises
    ------
    EncoderError
        The pooling needs a class token, and `backbone` has none.
    """

    _normalize: Tensor

    def __init__(self, preset: Preset, backbone: nn.Module) -> None:
        super().__init__()
        if min(preset.std) <= 0:
            raise EncoderError(f"std of {preset.name} is {preset.std}; positive numbers are expected")
        if preset.pooling != "forward" and getattr(backbone, "cls_token", None) is None:
            raise EncoderError(
                f"{preset.name} has no class token, which pooling {preset.pooling!r} needs; use 'forward'"
            )
        self.preset = preset
        self.name = preset.name
        self.mean, self.std = preset.mean, preset.std
        self.image_px, self.mpp = preset.image_px, preset.mpp
        self.pooling, self.dim = preset.pooling, preset.dim
        self.licence = preset.licence
        self.backbone = backbone
        self.register_buffer("_normalize", _constants(preset), persistent=False)

    def forward(self, views: Tensor) -> Tensor:
        """Features of views.

        Parameters
        ----------
        views : uint8 (B, H, W, 3), RGB
            H = W = ``image_px``, unless the backbone takes any size.

        Returns
        -------
        Tensor
            (B, dim), in the dtype that the backbone computes in.

        Raises
        ------
        EncoderError
            The views have another size, type or shape, or a user's backbone returns another shape than it declared.
        """
        self._check(views)
        images = self._normalized(views)
        if self.pooling == "forward":
            return self._checked(self.backbone(images), len(views))
        return self._pooled(self.backbone.forward_features(images))  # type: ignore[operator]

    def with_tokens(self, views: Tensor) -> tuple[Tensor, Tensor]:
        """Features of views and their patch tokens, from one pass.

        Returns
        -------
        tuple
            What `forward` returns, and (B, grid * grid, width): one token a patch of the grid, row by row; class token
            and registers left out. See `token_grid`.

        Raises
        ------
        EncoderError
            As `forward`; or the backbone has no square grid of patch tokens.
        """
        grid, _ = token_grid(self)
        self._check(views)
        tokens = self.backbone.forward_features(self._normalized(views))  # type: ignore[operator]
        patches = tokens[:, self.backbone.num_prefix_tokens :]
        if patches.ndim != 3 or patches.shape[1] != grid**2:
            raise EncoderError(
                f"{self.name} returned {_by(patches.shape)} as patch tokens; {len(views)}x{grid**2}x(length) expected"
            )
        return self._pooled(tokens), patches

    def _pooled(self, tokens: Tensor) -> Tensor:
        if self.pooling == "forward":
            return self._checked(self.backbone.forward_head(tokens), len(tokens))  # type: ignore[operator]
        features = tokens[:, 0]
        if self.pooling == "cls+mean":
            patches = tokens[:, self.backbone.num_prefix_tokens :]  # registers stay out
            features = torch.cat([features, patches.mean(1)], dim=-1)
        return self._checked(features, len(tokens))

    def _checked(self, features: Tensor, count: int) -> Tensor:
        if features.shape != (count, self.dim):
            raise EncoderError(
                f"{self.name} returned {_by(features.shape)} for {count} views; {count}x{self.dim} expected"
            )
        return features

    def _normalized(self, views: Tensor) -> Tensor:
        mean, std = self._normalize.view(2, 1, 3, 1, 1)
        # torchvision's ToTensor and Normalize, as on the model cards, to the last bit
        images = views.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
        images = images.div_(255).sub_(mean).div_(std)
        parameter = next(self.backbone.parameters(), images)
        return images.to(parameter.dtype)

    def _check(self, views: Tensor) -> None:
        if views.dtype != torch.uint8 or views.ndim != 4 or views.shape[-1] != 3:
            dtype = str(views.dtype).removeprefix("torch.")
            raise EncoderError(f"views are {dtype} {_by(views.shape)}; uint8 (B, H, W, 3) expected")
        height, width = views.shape[1:3]
        if _takes_any_size(self.backbone):
            patch = _patch_px(self.backbone)
            if height % patch or width % patch:
                raise EncoderError(
                    f"views are {width}x{height} px, {self.name} takes multiples of {patch} px; choose another crop"
                )
        elif (height, width) != (self.image_px, self.image_px):
            raise EncoderError(
                f"views are {width}x{height} px, {self.name} takes {self.image_px}x{self.image_px} px; choose a "
                f"policy that crops to {self.image_px}, or another encoder"
            )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Encoder":
        super()._apply(fn, recurse)
        # .to(bfloat16) would round the mean to three digits
        self._normalize = _constants(self.preset).to(self._normalize.device)
        return self


def load_encoder(
    spec: str,
    *,
    weights: Path | None = None,
    random_weights: int | None = None,
    pooling: str | None = None,
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
        ``cls`` or ``cls+mean``, in place of the encoder's own.

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
    found = _load(spec, weights, random_weights)
    return found if pooling is None else _repooled(found, pooling)


def _repooled(encoder: Encoder, pooling: str) -> Encoder:
    """The same backbone with another pooling."""
    _, width = token_grid(encoder)
    if pooling == "cls":
        preset = replace(encoder.preset, pooling="cls", dim=width)
    elif pooling == "cls+mean":
        preset = replace(encoder.preset, pooling="cls+mean", dim=2 * width)
    else:
        raise OptionError(f"--pooling {pooling}: allowed is cls or cls+mean")
    return Encoder(preset, encoder.backbone).eval()


def _load(spec: str, weights: Path | None, random_weights: int | None) -> Encoder:
    if spec in PRESETS:
        return _build(PRESETS[spec], weights, random_weights)
    scheme, colon, rest = spec.partition(":")
    if colon and scheme == "timm":
        return _build(timm_preset(rest), weights, random_weights)
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
        return _build(timm_preset(spec), weights, random_weights)
    raise EncoderError(unknown(spec))


def _build(preset: Preset, weights: Path | None, random_weights: int | None) -> Encoder:
    if random_weights is not None:
        return Encoder(preset, _seeded(lambda: create(preset), random_weights)).eval()
    with torch.device("meta"):  # shapes are compared before memory is taken
        backbone = create(preset)
    state, source = published(preset) if weights is None else (read_checkpoint(weights), str(weights))
    state = fit(state, backbone, source, preset.name)
    if {name for name, _ in backbone.named_buffers()} <= state.keys():
        backbone.to_empty(device="cpu")
    else:
        backbone = create(preset)  # computes buffers that no checkpoint holds, such as window indices
    backbone.load_state_dict(state)
    return Encoder(preset, backbone).eval()


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
    return encoder.to("cpu", torch.float32).eval()


def _function(spec: str) -> Callable[[], Any]:
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
    return Preset(
        name=spec,
        dim=int(told["dim"]) if "dim" in told else _measured_dim(backbone, image_px, spec),
        mean=rgb(told["mean"], spec),
        std=rgb(told["std"], spec),
        image_px=image_px,
        mpp=told.get("mpp"),
        params=sum(parameter.numel() for parameter in backbone.parameters()),
        licence=str(told.get("licence", "unknown")),
    )


@torch.inference_mode()
def _measured_dim(backbone: nn.Module, image_px: int, spec: str) -> int:
    parameter = next(backbone.parameters(), torch.empty(0))
    features = backbone.eval()(torch.zeros(1, 3, image_px, image_px).to(parameter))
    if not isinstance(features, Tensor) or features.ndim != 2:
        shape = _by(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise EncoderError(f"{spec} maps one image to {shape}; a tensor (B, dim) is expected")
    return int(features.shape[1])


def _constants(preset: Preset) -> Tensor:
    return torch.tensor([preset.mean, preset.std], dtype=torch.float32)


def _takes_any_size(backbone: nn.Module) -> bool:
    known = getattr(backbone, "pretrained_cfg", None) or {}
    return bool(getattr(backbone, "dynamic_img_size", False)) or not known.get("fixed_input_size", True)


def _patch_px(backbone: nn.Module) -> int:
    if not getattr(backbone, "dynamic_img_size", False):
        return 1
    patch = getattr(getattr(backbone, "patch_embed", None), "patch_size", (1,))
    return int(patch[0])


def _by(shape: torch.Size) -> str:
    return "x".join(map(str, shape))
