"""Weights of encoders: checkpoint files, how they fill an architecture, their identity, and export.

Nothing here unpickles objects: ``.safetensors``, or ``torch.load(weights_only=True)``. A file that does
not fill an architecture exactly is refused by name; nothing is left at its random start.
"""

import hashlib
import importlib.resources
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import safetensors.torch
from torch import Tensor, nn

from pipeline.encoders.hub import brief, fetch, find_cached
from pipeline.encoders.presets import PRESETS, WEIGHT_FILES, Preset
from pipeline.encoders.state_dict_layouts import resampled, to_native
from pipeline.encoders.tensor_files import load_torch, require_own_memory, require_safetensors
from stores.errors import WeightsError
from stores.io.files import require_utf8
from stores.io.ranges import ranges_of
from stores.io.text import one_line

_TORCH_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
# a training checkpoint wraps its tensors; of several, the averaged model is the one that is deployed
_WRAPPERS = ("teacher", "state_dict_ema", "model_ema", "state_dict", "model", "encoder", "backbone", "module")
_BLOCK = re.compile(r"(?:(.*?\.)(\d+)(?=\.))?(.*)", re.DOTALL)
_LISTED = 3
_LAYOUTS = {
    r"(^|\.)encoder\.layer\.\d+\.|(^|\.)embeddings\.": "those of transformers, known here for DINOv2",
    r"(^|\.)encoder_layer_\d+\.": "those of torchvision's ViT",
    r"(^|\.)resblocks\.\d+\.": "those of CLIP or open_clip",
    r"(^|\.)_blocks\.\d+\.": "those of efficientnet-pytorch",
    r"(^|\.)layer[1-4]\.\d+\.": "those of a ResNet",
    r"(^|\.)stages\.\d+\.": "those of a timm model in stages, such as ConvNeXt",
    r"(^|\.)blocks\.\d+\.(\d+\.)?attn\.": "those of a vision transformer of timm or DINO",
    r"(^|\.)blocks\.\d+\.\d+\.": "those of a timm CNN, such as EfficientNet",
    r"(^|\.)features\.\d+\.": "those of torchvision",
}
"""Whose names match a pattern, from the most particular to the least."""
_SLACK = 64_000_000
"""Numbers that a conversion may make of nothing: position embeddings of larger images."""


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint, unwrapped, under the names that the file gives them.

    Parameters
    ----------
    path
        ``.safetensors``; ``.bin``, ``.pt``, ``.pth`` or ``.ckpt`` from ``torch.save``; or a folder that
        holds ``model.safetensors`` or ``pytorch_model.bin``.

    Returns
    -------
    dict
        CPU tensors. They may be mapped from the file: copy them before the file goes away.

    Raises
    ------
    WeightsError
        There is no such file, it is damaged, it needs objects unpickled, or it holds no tensors.
    """
    file = _checkpoint_file(path)
    with file.open("rb") as stream:
        if stream.read(24).startswith(b"version https://git-lfs"):
            raise WeightsError(
                f"{file} is a git-lfs pointer, not the weights; run `git lfs pull` where it lies"
            )
    if file.suffix == ".safetensors":
        require_utf8(file)
        require_safetensors(file)
        try:
            tensors = safetensors.torch.load_file(file)
        except Exception as error:
            # SafetensorError, OSError, and torch's own for a type that it does not have
            raise WeightsError(f"{file} is damaged or no safetensors file ({brief(error)})") from error
    elif file.suffix in _TORCH_SUFFIXES:
        tensors = _tensors(load_torch(file), file)
    else:
        allowed = ", ".join((".safetensors", *_TORCH_SUFFIXES))
        raise WeightsError(f"{file} is no checkpoint that can be read; allowed: {allowed}, or a folder")
    require_own_memory(tensors, file)
    return tensors


def _checkpoint_file(path: Path) -> Path:
    if path.is_file():
        return path
    if not path.is_dir():
        raise WeightsError(f"weights {path} do not exist; give a checkpoint file or a folder that holds one")
    for name in WEIGHT_FILES:
        if (path / name).is_file():
            return path / name
    raise WeightsError(
        f"folder {path} holds neither {' nor '.join(WEIGHT_FILES)}; give the checkpoint file itself"
    )


def _tensors(loaded: object, file: Path) -> dict[str, Tensor]:
    for _ in _WRAPPERS:  # a mapping of a foreign pickle may even contain itself
        inner = loaded if isinstance(loaded, Mapping) else {}
        loaded = next((inner[key] for key in _WRAPPERS if isinstance(inner.get(key), Mapping)), loaded)
    tensors: dict[str, Tensor] = {}
    if isinstance(loaded, Mapping):
        tensors = {
            name: value
            for name, value in loaded.items()
            if isinstance(name, str) and isinstance(value, Tensor)
        }
    if not tensors:
        raise WeightsError(f"{file} holds no state dict (a mapping of names to tensors)")
    return tensors


def fit(state: Mapping[str, Tensor], backbone: nn.Module, source: str, arch: str) -> dict[str, Tensor]:
    """Rename a checkpoint's tensors so that they fill `backbone` exactly.

    A common prefix (``module.``, ``teacher.backbone.``, ...) goes, with everything outside of it (DINO heads); so does
    a classifier. What fills `backbone` then is taken as it is, whatever layout its names remind of. Otherwise names of
    DINOv2's other layouts become native ones (`pipeline.encoders.state_dict_layouts`), and the architecture's own timm
    filter converts the native layout and resamples position embeddings of another grid.

    Parameters
    ----------
    backbone
        May be on the meta device: only names and shapes are looked at.
    source, arch
        Names for the messages.

    Raises
    ------
    WeightsError
        A tensor is missing, left over, or has another shape.
    """
    expected = {name: tuple(value.shape) for name, value in backbone.state_dict().items()}
    found = _drop_classifier(_strip_prefix(state, expected.keys(), source), backbone, expected.keys())
    if {name: tuple(value.shape) for name, value in found.items()} == expected:
        return found
    found = _strip_prefix(to_native(state), expected.keys(), source)
    found = _drop_classifier(found, backbone, expected.keys())
    unlike = _unlike_size(found, backbone)
    patches = found.get("patch_embed.proj.weight")
    other_shape = []
    if patches is not None and patches.ndim == 4:  # timm would resample another patch size silently
        other_shape += _shape_problem("patch_embed.proj.weight", patches, expected)
    grid = getattr(getattr(backbone, "patch_embed", None), "grid_size", None)
    if not unlike:
        found = resampled(found, state, grid) if grid and not other_shape else found
        found = _timm_filter(found, backbone, source, arch)
    for name in sorted(found.keys() & expected.keys() - {"patch_embed.proj.weight"}):
        other_shape += _shape_problem(name, found[name], expected)
    problems = [
        _listed("missing", sorted(expected.keys() - found.keys())),
        _listed("unexpected", sorted(found.keys() - expected.keys())),
        _listed("of another shape", other_shape),
        unlike,
    ]
    if any(problems):
        foreign = 2 * len(found.keys() - expected.keys()) > len(found)
        problems += [_look_like(state)] if foreign else []
        raise WeightsError(f"{source} does not fit {arch}: {'; '.join(filter(None, problems))}")
    return found


def _unlike_size(found: Mapping[str, Tensor], backbone: nn.Module) -> str:
    """How a file and an architecture differ in size, where that is more than a conversion may cost; else empty.

    The conversion copies tensors, and resamples position embeddings to the size that a foreign config says.
    """
    held = sum(value.numel() for value in found.values())
    sizes = [value.numel() for value in backbone.state_dict().values()]
    unlike = max(sizes, default=0) > held + _SLACK or held > 8 * sum(sizes) + _SLACK
    return f"{held:,} numbers in all instead of {sum(sizes):,}" if unlike else ""


def _strip_prefix(state: Mapping[str, Tensor], expected: Iterable[str], source: str) -> dict[str, Tensor]:
    names = set(expected)
    prefixes: Counter[str] = Counter()
    for name in state:
        parts = name.split(".")
        prefixes.update(".".join([*parts[:i], ""]) for i in range(len(parts)) if ".".join(parts[i:]) in names)
    if not prefixes:
        return dict(state)
    (best, count), *others = prefixes.most_common(2)
    if others and others[0][1] == count:
        raise WeightsError(
            f"{source} holds two models, under {best!r} and {others[0][0]!r}; save the one you mean by itself"
        )
    if 2 * count < len(names):  # chance: one name of another package's layout that fits
        return dict(state)
    return {name.removeprefix(best): value for name, value in state.items() if name.startswith(best)}


def _drop_classifier(
    state: dict[str, Tensor], backbone: nn.Module, expected: Iterable[str]
) -> dict[str, Tensor]:
    heads = (getattr(backbone, "pretrained_cfg", None) or {}).get("classifier") or ()
    prefixes = tuple(f"{head}." for head in ([heads] if isinstance(heads, str) else heads))
    names = set(expected)
    return {name: value for name, value in state.items() if name in names or not name.startswith(prefixes)}


def _timm_filter(state: dict[str, Tensor], backbone: nn.Module, source: str, arch: str) -> dict[str, Tensor]:
    module = type(backbone).__module__
    convert = (
        getattr(sys.modules[module], "checkpoint_filter_fn", None) if module.startswith("timm.") else None
    )
    if convert is None:
        return state
    try:
        return dict(convert(state, backbone))
    except Exception as error:  # written for the layouts that timm knows; anything may happen on another
        raise WeightsError(f"{source} does not fit {arch}: its layout is unknown ({brief(error)})") from error


def _shape_problem(name: str, value: Tensor, expected: Mapping[str, tuple[int, ...]]) -> list[str]:
    shape = tuple(value.shape)
    if name not in expected or shape == expected[name]:
        return []
    return [f"{name} {'x'.join(map(str, shape))} instead of {'x'.join(map(str, expected[name]))}"]


def _listed(what: str, names: Sequence[str]) -> str:
    """The first names on one line; those that differ in a block's number alone as ``blocks.{0-23}.norm1.weight``."""
    numbers: dict[tuple[str, str], list[int]] = {}
    for name in names:
        match = _BLOCK.fullmatch(name)
        assert match is not None  # the last group matches any text
        before, number, after = match.groups("")
        numbers.setdefault((before, after), []).extend([int(number)] if number else [])
    forms = [f"{before}{_braced(found)}{after}" for (before, after), found in numbers.items()]
    shown = ", ".join(one_line(form, 100) for form in forms[:_LISTED])
    more = f" and {len(forms) - _LISTED} more forms" if len(forms) > _LISTED else ""
    return f"{len(names)} {what} ({shown}{more})" if names else ""


def _braced(numbers: Sequence[int]) -> str:
    if len(numbers) < 2:
        return "".join(map(str, numbers))
    runs = (f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in ranges_of(numbers))
    return f"{{{','.join(runs)}}}"


def _look_like(names: Iterable[str]) -> str:
    """Whose names these are, by a name that only they have, and what to do; empty where that is not known."""
    for pattern, layout in _LAYOUTS.items():
        found = next((name for name in names if re.search(pattern, name)), None)
        if found is not None:
            return (
                f"names such as {one_line(found, 100)} look like {layout}: give the architecture that the file is of, "
                "or a module:function that loads it"
            )
    return ""


def published(preset: Preset) -> tuple[dict[str, Tensor], str]:
    """Tensors of the weights that `preset` names, and their source in words for a message.

    Raises
    ------
    WeightsError
        The weights cannot be reached, or are not published.
    """
    if preset.asset is not None:
        resource = importlib.resources.files("pipeline.encoders") / preset.asset
        with importlib.resources.as_file(resource) as file:
            return read_checkpoint(file), f"shipped file {preset.asset}"
    if preset.hub is not None:
        file = _fetched(preset, preset.hub)
        _require_digest(file, preset)
        return read_checkpoint(file), preset.hub
    raise WeightsError(
        f"{preset.name} has no published weights on the hub; give --weights PATH or --random-weights SEED"
    )


def _fetched(preset: Preset, hub: str) -> Path:
    """The file of a preset's weights, at its revision; another revision in the cache spares the network."""
    at = f"{hub}@{preset.revision}" if preset.revision else hub
    cached = find_cached(at, preset.files) or find_cached(hub, preset.files)
    return cached or fetch(at, preset.files, gated=preset.gated)


def _require_digest(file: Path, preset: Preset) -> None:
    """Raise WeightsError unless a fetched file is the one whose digest a preset has."""
    expected = preset.sha256.get(file.name)
    if expected is not None and (found := _file_sha256(file)) != expected:
        raise WeightsError(
            f"{preset.name}: {file.name} of {preset.hub} has SHA-256 {found[:16]}..., and the preset is the file "
            f"{expected[:16]}... of revision {preset.revision[:12]}: delete {file} and try again, or take this file by "
            f"your word, with --weights {file}"
        )


def require_not_of_another(weights: Path, preset: Preset) -> None:
    """Raise WeightsError when a user's file is the published one of another preset than the one that was named.

    H-optimus-0, H-optimus-1, OpenMidnight and OpenPath have one architecture: any file fits any name.
    """
    if preset.name not in PRESETS or preset.hub is None:
        return
    found = _file_sha256(_checkpoint_file(weights))
    if found in preset.sha256.values():
        return
    owner = next((other for other in PRESETS.values() if found in other.sha256.values()), None)
    if owner is not None:
        raise WeightsError(
            f"{weights} is the published file of {owner.name} (SHA-256 {found[:16]}...), not of {preset.name}; name "
            f"{owner.name} as the encoder"
        )


def _file_sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
