"""What is declared of an encoder whose features are imported: nothing of it can be seen in the features."""

import math
from dataclasses import dataclass

from pipeline.encoders.presets import PRESETS, Preset
from pipeline.importing.options import ImportOptions
from stores.errors import OptionError
from stores.format import recipe
from stores.format.terms import Terms

_BICUBIC = frozenset(
    (
        "gigapath-flash",
        "h0-mini",
        "h0-mini-cls-mean",
        "hibou-b",
        "hibou-l",
        "prov-gigapath",
        "virchow",
        "virchow2",
    )
)
"""Encoders whose transform in TRIDENT is bicubic (trident/patch_encoder_models/load.py); all others are bilinear."""
_RESIZED = {"prov-gigapath": 256, "gigapath-flash": 256}
"""Encoders whose transform in TRIDENT cuts the view out of a larger one."""
_ARITHMETIC = {"trident": "float16", "clam": "float32"}


@dataclass(frozen=True, slots=True)
class DeclaredEncoder:
    """An encoder by what its user says of it."""

    teacher: recipe.Teacher
    terms: tuple[Terms, ...]
    resize_px: int
    """Side to which its transform scales a patch; the view is the centre of that."""
    filter: str


def declared_encoder(options: ImportOptions, by: str, dim: int) -> DeclaredEncoder:
    """What the recipe says of the encoder of features of length `dim`, which the tool `by` wrote.

    Raises
    ------
    OptionError
        When too little is known of it, or its features have another length.
    """
    name, preset = options.encoder, PRESETS.get(options.encoder)
    missing = [
        f"--{key.replace('_', '-')}" for key in ("mean", "std", "image_px") if getattr(options, key) is None
    ]
    if preset is None and missing:
        raise OptionError(
            f"--encoder {name}: not one of the presets (`g2l models`), so say what it takes: give {', '.join(missing)}"
        )
    mean, std = _numbers(options.mean, "mean", preset), _numbers(options.std, "std", preset)
    image_px = options.image_px or (preset.image_px if preset else 0)
    pooling = options.pooling or (preset.pooling if preset else "forward")
    if preset is not None:
        _require_length(preset, pooling, dim)
    in_trident = by == "trident"
    resize_px = options.resize_px or (in_trident and _RESIZED.get(name)) or image_px
    if resize_px < image_px:
        raise OptionError(
            f"--resize-px {resize_px}: smaller than the view of {image_px} px that {name} takes"
        )
    return DeclaredEncoder(
        recipe.Teacher(
            name=name,
            weights_sha256=recipe.UNKNOWN,
            pooling=pooling,
            mean=mean,
            std=std,
            image_px=image_px,
            dim=dim,
            dtype=options.dtype or _ARITHMETIC[by],
        ),
        preset.terms if preset else (Terms(name),),
        resize_px,
        options.filter or ("bicubic" if in_trident and name in _BICUBIC else "bilinear"),
    )


def _numbers(given: str | None, key: str, preset: Preset | None) -> tuple[float, float, float]:
    if given is None and preset is not None:
        return preset.mean if key == "mean" else preset.std
    try:
        red, green, blue = (float(text) for text in str(given).split(","))
        if not all(math.isfinite(x) and (key == "mean" or x > 0) for x in (red, green, blue)):
            raise ValueError
    except ValueError:
        raise OptionError(
            f"--{key} {given}: expected three numbers with commas between them, such as 0.5,0.5,0.5"
        ) from None
    return red, green, blue


def _require_length(preset: Preset, pooling: str, dim: int) -> None:
    expected = preset.dim
    if pooling != preset.pooling:
        if "cls+mean" not in (pooling, preset.pooling):
            return
        expected = 2 * preset.dim if pooling == "cls+mean" else preset.dim // 2
    if dim != expected:
        raise OptionError(
            f"--encoder {preset.name}: its features with pooling {pooling} have {expected} numbers, those in the files "
            f"{dim}; name the encoder that computed them, or give --pooling"
        )
