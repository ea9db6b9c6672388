"""What ``--drop-path``, ``--freeze-layers`` and ``--layer-decay`` do to the layers of a student."""

from collections.abc import Iterator
from typing import Any

from torch import nn

from pipeline.encoders.encoder import Encoder
from pipeline.encoders.torchvision_cpu import make_importable
from stores.errors import OptionError

_BRANCHES = ("drop_path", "drop_path1", "drop_path2", "drop_path3")


def set_drop_path(student: Encoder, rate: float) -> None:
    """Leave out residual branches in training, for each view by itself.

    The share grows from 0 in the first block to `rate` in the last (Huang et al. 2016, "Deep networks with stochastic
    depth", the linear rule of section 3). timm gives every residual branch a place for it, which is empty at rate 0.

    Raises
    ------
    OptionError
        When no block has such a place.
    """
    make_importable()
    from timm.layers import DropPath

    blocks = [(module, list(_places(module))) for module in student.backbone.modules()]
    blocks = [(module, names) for module, names in blocks if names]
    if not blocks:
        raise OptionError(
            f"--drop-path {rate:g}: {student.name} has no residual branches that can be left out; leave the option out"
        )
    for number, (module, names) in enumerate(blocks):
        share = number / (len(blocks) - 1) if len(blocks) > 1 else 1.0
        for name in names:
            setattr(module, name, DropPath(rate * share))


def _places(module: nn.Module) -> Iterator[str]:
    if not getattr(module, "has_skip", True):  # a block of EfficientNet that nothing leads around
        return
    for name in _BRANCHES:
        if hasattr(module, name):
            found = getattr(module, name)
            if found is None or type(found).__name__ in ("Identity", "DropPath"):
                yield name


def numbered(student: Encoder, option: str) -> dict[str, int]:
    """The layer of each parameter of the backbone, by name: 0 is the stem (for a ViT patches, tokens and positions).

    Several class tokens begin as copies of one and have to learn what sets them apart, as the heads have. So they
    count, with the registers that they stand beside, to the last layer.

    Raises
    ------
    OptionError
        When the backbone does not say which parameters form its layers.
    """
    matcher = getattr(student.backbone, "group_matcher", None)
    if matcher is None:
        raise OptionError(
            f"{option}: {student.name} does not say which layers it has (models of timm do); leave the option out"
        )
    make_importable()
    from timm.models import group_parameters

    found = group_parameters(student.backbone, matcher(coarse=False), reverse=True)
    layer = {name: int(number) for name, number in found.items()}
    if student.class_tokens > 1:
        layer |= dict.fromkeys(("cls_token", "reg_token"), max(layer.values()))
    return layer


def freeze(student: Encoder, layers: int) -> None:
    """Take the first `layers` layers out of the training; the stem is the first.

    Raises
    ------
    OptionError
        When there are not that many.
    """
    layer = numbered(student, f"--freeze-layers {layers}")
    count = max(layer.values()) + 1
    if layers > count:
        raise OptionError(f"--freeze-layers {layers}: {student.name} has {count}, its stem included")
    for name, parameter in student.backbone.named_parameters():
        if layer.get(name, count) < layers:
            parameter.requires_grad_(False)


def frozen_parts(student: nn.Module) -> list[nn.Module]:
    """The largest modules all of whose parameters are frozen: they also keep their running statistics."""
    parameters = list(student.parameters())
    if parameters and not any(parameter.requires_grad for parameter in parameters):
        return [student]
    return [part for child in student.children() for part in frozen_parts(child)]


def parameter_groups(
    model: Any, weight_decay: float, layer_decay: float | None, apart: bool
) -> list[dict[str, Any]]:
    """Groups for the optimiser; ``decays``, ``lr_scale`` and ``of_student`` say what a step does with each.

    Weights of layers decay, and so do class token, registers and position embeddings, as in DINOv2. Biases and all
    that has one dimension (scales and shifts of norms, layer scale) do not.

    Parameters
    ----------
    model : Distiller
    layer_decay : float, optional
        The learning rate of a layer is this factor times that of the layer above it (BEiT). Heads have the full rate.
    apart : bool
        Whether the student's parameters have groups of their own.
    """
    prefix = "student.backbone."
    layer = {} if layer_decay is None else numbered(model.student, f"--layer-decay {layer_decay:g}")
    top = max(layer.values(), default=0)
    groups: dict[tuple[bool, float, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decays = weight_decay > 0 and parameter.ndim > 1 and not name.endswith(".bias")
        of_student = name.startswith(prefix)
        scale = 1.0
        if layer_decay is not None and of_student:
            scale = layer_decay ** (top - layer.get(name.removeprefix(prefix), top))
        about = {"decays": decays, "lr_scale": scale, "of_student": apart and of_student}
        empty: dict[str, Any] = {"params": [], "weight_decay": weight_decay if decays else 0.0, **about}
        groups.setdefault((apart and of_student, scale, decays), empty)["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]
