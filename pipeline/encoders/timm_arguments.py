"""Which arguments of timm a name or a ``config.json`` may set: sizes and switches of an architecture, nothing else.

``timm.create_model`` also takes arguments that download files, read paths and choose where caches lie (``pretrained``,
``pretrained_cfg``, ``checkpoint_path``, ``cache_dir``), and config files come from other labs. So names are listed here
one by one, and their values are numbers, switches and a few known words. Sizes are limited before a model is
described: even on the meta device each block of an architecture is a Python object.
"""

import difflib
import math
import re
from collections.abc import Mapping
from typing import Any

from stores.errors import EncoderError
from stores.io.text import one_line

_ARCH = re.compile(r"\w{1,100}(\.[\w-]{1,100})?", re.ASCII)
_MAX_NUMBER = 1 << 16
MAX_IMAGE_PX = 4096
_MAX_BLOCKS = 256
_MAX_LIST = 64

_BLOCK_COUNTS = frozenset(["depth", "depths", "layers"])
_IMAGE_SIDES = frozenset(["img_size", "patch_size", "window_size"])
_NUMBERS = frozenset([
    "attn_drop_rate", "base_width", "cardinality", "channels", "dims", "drop_block_rate", "drop_path_rate",
    "drop_rate", "embed_dim", "head_init_scale", "init_values", "kernel_sizes", "ls_init_value", "mlp_ratio",
    "num_heads", "num_reg_tokens", "output_stride", "patch_drop_rate", "pos_drop_rate", "proj_drop_rate",
    "reg_tokens", "ref_feat_shape", "stem_size", "stem_width", "swiglu_align_to",
])  # fmt: skip
_SWITCHES = frozenset([
    "always_partition", "ape", "avg_down", "block_reduce_first", "class_token", "conv_bias", "conv_mlp",
    "dynamic_img_pad", "dynamic_img_size", "fc_norm", "final_norm", "fix_init", "head_norm_first",
    "no_embed_class", "patch_norm", "pool_include_prefix", "pre_norm", "proj_bias", "qk_norm", "qkv_bias",
    "qkv_fused", "replace_stem_pool", "scale_attn_inner", "scale_attn_norm", "scale_mlp", "scale_mlp_norm",
    "strict_img_size", "swiglu_mlp", "use_abs_pos_emb", "use_grn", "use_post_norm", "use_reg_token",
    "use_rot_pos_emb", "zero_init_last",
])  # fmt: skip
_WORDS = {
    "act_layer": frozenset(
        ["gelu", "gelu_tanh", "hard_swish", "quick_gelu", "relu", "relu6", "silu", "swish"]
    ),
    "global_pool": frozenset(["", "avg", "avgmax", "catavgmax", "map", "max", "prr", "token"]),
    "norm_layer": frozenset(["batchnorm2d", "groupnorm", "layernorm", "layernorm2d", "rmsnorm"]),
    "pos_embed": frozenset(["", "learn", "none"]),
    "stem_type": frozenset(["", "deep", "deep_tiered", "overlap", "overlap_tiered", "patch"]),
    "weight_init": frozenset(["", "jax", "jax_nlhb", "moco", "reset", "skip"]),
}
ARGUMENTS = _BLOCK_COUNTS | _IMAGE_SIDES | _NUMBERS | _SWITCHES | frozenset(_WORDS) | {"in_chans"}
"""Every argument that may be set."""


def require_architecture(name: object, origin: str) -> str:
    """Return `name` when it has the form of a timm architecture, with or without tag; else raise EncoderError."""
    if isinstance(name, str) and _ARCH.fullmatch(name):
        return name
    raise EncoderError(
        f"{origin}: architecture {one_line(repr(name))} is no timm name; letters, digits and '_' are allowed, with a "
        "tag after a dot"
    )


def require_arguments(kwargs: Mapping[str, Any], origin: str) -> None:
    """Raise EncoderError unless every argument is listed here and has a value of its kind.

    Parameters
    ----------
    origin
        Who names the arguments, for the message.
    """
    for name, value in kwargs.items():
        if name not in ARGUMENTS:
            close = difflib.get_close_matches(str(name), sorted(ARGUMENTS), n=3)
            meant = f", did you mean {' or '.join(close)}?" if close else ""
            raise EncoderError(
                f"{origin}: argument {one_line(repr(name))} cannot be set{meant}; allowed are sizes and switches "
                "of an architecture (docs/reference/encoders.md), and module:function for anything else"
            )
        allowed = _problem(name, value)
        if allowed is not None:
            raise EncoderError(
                f"{origin}: argument {name} is {one_line(repr(value), 80)}; allowed is {allowed}"
            )


def _problem(name: str, value: Any) -> str | None:
    """What the argument `name` may be, when it may not be `value`."""
    if value is None:
        return None  # timm leaves such arguments out
    if name in _SWITCHES:
        return None if isinstance(value, bool) else "true or false"
    if name == "in_chans":
        return None if type(value) is int and value == 3 else "3: views are RGB"
    if name in _WORDS:
        return None if isinstance(value, str) and value in _WORDS[name] else _listed(_WORDS[name])
    if name in _BLOCK_COUNTS:
        numbers = value if isinstance(value, list | tuple) else [value]
        fits = len(numbers) <= _MAX_LIST and all(type(x) is int and 1 <= x <= _MAX_BLOCKS for x in numbers)
        return None if fits and sum(numbers) <= _MAX_BLOCKS else f"1 to {_MAX_BLOCKS} blocks in all"
    if name in _IMAGE_SIDES:
        sides = value if isinstance(value, list | tuple) else [value]
        fits = len(sides) in (1, 2) and all(type(x) is int and 1 <= x <= MAX_IMAGE_PX for x in sides)
        return None if fits else f"a whole number from 1 to {MAX_IMAGE_PX}, or two"
    return None if _is_number(value, 2) else f"a number from 0 to {_MAX_NUMBER}, or a list of such"


def _is_number(value: Any, depth: int) -> bool:
    if isinstance(value, list | tuple):
        return depth > 0 and len(value) <= _MAX_LIST and all(_is_number(item, depth - 1) for item in value)
    return type(value) in (int, float) and math.isfinite(value) and 0 <= value <= _MAX_NUMBER


def _listed(words: frozenset[str]) -> str:
    return ", ".join(word or "''" for word in sorted(words))
