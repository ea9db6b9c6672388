"""Encoders whose code is in a repository of the hub: ``hf-auto:OWNER/NAME@REVISION``, through transformers.

Such a name runs code of somebody else. It is a name for the command line alone, with a commit whose code one can have
read, and with an option that says so (`docs/decisions/0045-code-of-a-repository.md`). transformers is no dependency.
"""

import importlib
import re
from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.encoders.encoder import Encoder, by_sides
from pipeline.encoders.hub import brief, fetch
from pipeline.encoders.presets import Preset
from pipeline.encoders.timm_models import rgb, side
from pipeline.encoders.torchvision_cpu import make_importable
from stores.errors import EncoderError, WeightsError
from stores.format.terms import Terms
from stores.io import files
from stores.io.text import one_line

SCHEME = "hf-auto"
_REPO = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")


class _Tokens(nn.Module):
    """A model of transformers with the names by which `Encoder` takes tokens."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.cls_token = True
        self.num_prefix_tokens = 1
        self.embed_dim = 0
        self.patch_embed: Any = None

    def forward_features(self, images: Tensor) -> Tensor:
        tokens: Tensor = self.model(images).last_hidden_state
        return tokens

    def forward_head(self, tokens: Tensor) -> Tensor:
        return tokens[:, 0]


def load_remote(spec: str, trusted: bool) -> Encoder:
    """Load an encoder through ``transformers.AutoModel``, with the code of its repository.

    A model that returns ``last_hidden_state`` gives its first token; one that returns a tensor gives that.

    Parameters
    ----------
    spec
        ``hf-auto:OWNER/NAME@REVISION``.
    trusted
        Whether the user said that this code may run.

    Raises
    ------
    EncoderError
        The revision is no commit, the code is not trusted or not of this repository, transformers is not installed, or
        the model's outputs are neither tokens nor features.
    WeightsError
        The repository cannot be read, or transformers cannot load it.
    """
    repo, _, revision = spec.removeprefix(f"{SCHEME}:").partition("@")
    if not _REPO.fullmatch(repo) or not _COMMIT.fullmatch(revision):
        raise EncoderError(
            f"{one_line(spec, 200)}: code of a repository runs at one commit only: {SCHEME}:OWNER/NAME@REVISION, where "
            "REVISION is the 40 hexadecimal digits of a commit (on the repository's page under Files, History)"
        )
    if not trusted:
        raise EncoderError(
            f"{spec}: runs the code of that repository on this machine, with your rights; read it at this commit, then "
            "give --trust-remote-code (extract-teacher, plan, embed and store verify have it)"
        )
    make_importable()  # the repository's code may import torchvision or timm
    try:
        transformers: Any = importlib.import_module("transformers")
    except ModuleNotFoundError as error:
        raise EncoderError(
            f"{spec}: needs the package transformers, which g2l does not install: `pip install transformers`"
        ) from error
    at = f"{repo}@{revision}"
    config, images = (_json(at, name) for name in ("config.json", "preprocessor_config.json"))
    _require_own_code(spec, config)
    try:
        model = transformers.AutoModel.from_pretrained(
            repo, revision=revision, code_revision=revision, trust_remote_code=True
        )
    except Exception as error:  # of transformers, of the hub's client, or of the code itself
        raise WeightsError(f"{spec}: transformers cannot load it ({brief(error)})") from error
    described = Preset(
        name=spec,
        dim=0,
        mean=rgb(images.get("image_mean"), f"preprocessor_config.json of {repo}"),
        std=rgb(images.get("image_std"), f"preprocessor_config.json of {repo}"),
        image_px=_side(images, repo),
        params=sum(parameter.numel() for parameter in model.parameters()),
        terms=(Terms(spec),),
    )
    return _encoder(described, model.to("cpu", torch.float32).eval(), config)


def _json(at: str, name: str) -> Mapping[str, Any]:
    found = files.read_json(fetch(at, [name]), finite=True)
    if not isinstance(found, dict):
        raise WeightsError(f"{name} of {at} is no object")
    return found


def _require_own_code(spec: str, config: Mapping[str, Any]) -> None:
    """Raise EncoderError when the code is in a repository that the revision says nothing of."""
    named = config.get("auto_map")
    for value in (named if isinstance(named, dict) else {}).values():
        if any("--" in str(each) for each in (value if isinstance(value, list) else [value])):
            raise EncoderError(
                f"{spec}: its code is in another repository ({one_line(value, 80)}), at no fixed commit; write a "
                "module:function that loads it"
            )


def _side(images: Mapping[str, Any], repo: str) -> int:
    """Side of the square image that the model takes, from the forms that processors of transformers write."""
    size = images.get("crop_size") if images.get("do_center_crop", True) else None
    size = images.get("size") if size is None else size
    if isinstance(size, dict):
        found = {size[key] for key in ("height", "width", "shortest_edge") if size.get(key) is not None}
        size = found.pop() if len(found) == 1 else size
    if type(size) is not int:
        raise EncoderError(
            f"preprocessor_config.json of {repo}: size is {one_line(repr(size), 80)}; a square side is expected"
        )
    return side(size, repo)


@torch.inference_mode()
def _encoder(preset: Preset, model: nn.Module, config: Mapping[str, Any]) -> Encoder:
    """The encoder, described by what the model makes of one image."""
    try:
        output = model(torch.zeros(1, 3, preset.image_px, preset.image_px))
    except Exception as error:  # the repository's own code
        raise EncoderError(
            f"{preset.name}: cannot take an image of {preset.image_px} px ({brief(error)})"
        ) from error
    if isinstance(output, Tensor) and output.ndim == 2:
        return Encoder(replace(preset, dim=int(output.shape[1])), model).eval()
    tokens = getattr(output, "last_hidden_state", None)
    if not isinstance(tokens, Tensor) or tokens.ndim != 3:
        shape = by_sides(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise EncoderError(
            f"{preset.name}: gives {one_line(shape, 80)} for an image; features or last_hidden_state expected: write a "
            "module:function that takes what you want of it"
        )
    backbone = _Tokens(model)
    backbone.embed_dim = int(tokens.shape[2])
    patch = config.get("patch_size")
    grid = preset.image_px // patch if type(patch) is int and 0 < patch <= preset.image_px else 0
    if grid and tokens.shape[1] > grid**2:  # class token and registers come first
        backbone.num_prefix_tokens = int(tokens.shape[1]) - grid**2
        backbone.patch_embed = SimpleNamespace(grid_size=(grid, grid))
    return Encoder(replace(preset, pooling="cls", dim=int(tokens.shape[2])), backbone).eval()
