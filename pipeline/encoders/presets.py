"""The registry of encoders: what each is, where its weights are, what is known of its licence.

Importing this module loads neither torch nor timm, so that ``g2l models`` answers at once. Adding an
encoder means adding one `Preset` here; `pipeline.encoders.load` builds it.

Every preset with SwiGLU blocks is written as `_SWIGLU_ARCH` with other sizes. It is the one timm
architecture whose *defaults* are SwiGLU, registers and layer scale, so that the arguments below are
plain JSON: an exported folder then opens with stock ``timm.create_model("local-dir:...")``, which cannot
express ``mlp_layer=SwiGLUPacked`` in a config file.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from stores.format.licences import UNKNOWN, licence_of
from stores.format.terms import GATED, OPEN, Fact, Terms, expression

Pooling = Literal["cls", "cls+mean", "forward"]
POOLINGS: tuple[Pooling, ...] = ("cls", "cls+mean", "forward")

_SWIGLU_ARCH = "vit_giant_patch14_reg4_dinov2"
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
_BIOPTIMUS_MEAN = (0.707223, 0.578729, 0.703617)
_BIOPTIMUS_STD = (0.211883, 0.230117, 0.177517)
_HIBOU_MEAN = (0.7068, 0.5755, 0.722)
_HIBOU_STD = (0.195, 0.2316, 0.1816)

_NC_ND = "CC-BY-NC-ND-4.0"
_OWN_TERMS = "has to be requested from the owner, and terms of its own accepted"
_READ = "2026-11"
"""When the pages of the encoders were read."""


def _published(
    name: str, hub: str, licence: str, access: str = GATED, outputs: str = ""
) -> tuple[Terms, ...]:
    """Terms of weights on the hub, from their page; by default of outputs what the licence's own text says."""
    page = f"https://huggingface.co/{hub}"
    text = licence_of(licence)
    said = Fact(outputs, page, _READ) if outputs else Fact(text.outputs, text.source, _READ)
    return (Terms(name, Fact(licence, page, _READ), Fact(access, page, _READ), said),)


def _ours(name: str) -> tuple[Terms, ...]:
    """Terms of what this package ships."""
    text = licence_of("Apache-2.0")
    licence = Fact("Apache-2.0", "the LICENSE file of g2l", _READ)
    return (Terms(name, licence, Fact(OPEN, "part of g2l", _READ), Fact(text.outputs, text.source, _READ)),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """All that decides what an encoder computes, except for the values of its weights."""

    name: str
    dim: int
    """Length of a feature, after pooling."""
    mean: tuple[float, float, float]
    """Normalize of this encoder, for RGB in 0..1."""
    std: tuple[float, float, float]
    image_px: int = 224
    """Side of the square view that it takes."""
    mpp: float | None = None
    """Resolution it was trained at, in micrometres per pixel; None where that is unknown."""
    pooling: Pooling = "forward"
    """``cls``: the class token after the final norm. ``cls+mean``: that, then the mean of the patch tokens
    (class token and registers left out). ``forward``: what the model itself returns without a classifier."""
    arch: str = ""
    """timm architecture, with the pretrained tag where there is one; empty for a user's own function."""
    kwargs: Mapping[str, object] = field(default_factory=dict, hash=False)
    """Arguments of ``timm.create_model`` beyond the defaults of `arch`; JSON values only."""
    hub: str | None = None
    """``OWNER/NAME`` of the weights on the Hugging Face hub, with ``@REVISION`` where one is meant."""
    asset: str | None = None
    """File in ``pipeline/encoders`` with weights that this package ships."""
    params: int = 0
    terms: tuple[Terms, ...] = ()
    """Terms of its weights, and of everything that these were trained on; empty for random weights."""
    gated: bool = False
    """Whether the owner has to grant access to `hub` first."""
    note: str = ""
    """What else one should know."""

    @property
    def licence(self) -> str:
        """Every licence that binds who uses it, in one line; ``unknown`` where that is not known."""
        return expression(self.terms)

    @property
    def source(self) -> str:
        """Where the weights come from, in one word for a table."""
        if self.asset is not None:
            return "shipped"
        if self.hub is not None:
            return f"hf-hub:{self.hub}"
        return "--weights or --random-weights"


_H_OPTIMUS_0 = Preset(
    name="h-optimus-0",
    dim=1536,
    mean=_BIOPTIMUS_MEAN,
    std=_BIOPTIMUS_STD,
    mpp=0.5,
    pooling="cls",
    arch=_SWIGLU_ARCH,
    kwargs={"img_size": 224, "init_values": 1e-5, "dynamic_img_size": False},
    hub="bioptimus/H-optimus-0",
    params=1_134_774_272,
    terms=_published("h-optimus-0", "bioptimus/H-optimus-0", "Apache-2.0"),
    gated=True,
)

_H0_MINI = Preset(
    name="h0-mini",
    dim=768,
    mean=_BIOPTIMUS_MEAN,
    std=_BIOPTIMUS_STD,
    mpp=0.5,
    pooling="cls",
    arch=_SWIGLU_ARCH,
    kwargs={"img_size": 224, "embed_dim": 768, "depth": 12, "num_heads": 12, "mlp_ratio": 5.33334},
    hub="bioptimus/H0-mini",
    params=85_739_520,
    terms=_published("h0-mini", "bioptimus/H0-mini", _NC_ND),
    gated=True,
)

_PRESETS = (
    _H_OPTIMUS_0,
    replace(
        _H_OPTIMUS_0,
        name="h-optimus-1",
        hub="bioptimus/H-optimus-1",
        terms=_published("h-optimus-1", "bioptimus/H-optimus-1", _NC_ND),
    ),
    _H0_MINI,
    replace(_H0_MINI, name="h0-mini-cls-mean", dim=1536, pooling="cls+mean"),
    Preset(
        name="hibou-l",
        dim=1024,
        mean=_HIBOU_MEAN,
        std=_HIBOU_STD,
        mpp=0.5,
        pooling="cls",
        arch=_SWIGLU_ARCH,
        # 5.34375 * 1024 = 5472 = 2 * 2736, the packed SwiGLU width of the published weights
        kwargs={"img_size": 224, "embed_dim": 1024, "depth": 24, "num_heads": 16, "mlp_ratio": 5.34375},
        hub="histai/hibou-L",
        params=303_657_216,
        terms=_published("hibou-l", "histai/hibou-L", "Apache-2.0"),
        gated=True,
    ),
    Preset(
        name="uni2-h",
        dim=1536,
        mean=_IMAGENET_MEAN,
        std=_IMAGENET_STD,
        mpp=0.5,
        pooling="cls",
        arch=_SWIGLU_ARCH,
        kwargs={"img_size": 224, "depth": 24, "reg_tokens": 8, "dynamic_img_size": True},
        hub="MahmoodLab/UNI2-h",
        params=681_394_176,
        terms=_published(
            "uni2-h",
            "MahmoodLab/UNI2-h",
            _NC_ND,
            _OWN_TERMS,
            "its terms bar commercial use of models trained on its outputs",
        ),
        gated=True,
    ),
    Preset(
        name="virchow2",
        dim=2560,
        mean=_IMAGENET_MEAN,
        std=_IMAGENET_STD,
        mpp=0.5,
        pooling="cls+mean",
        arch=_SWIGLU_ARCH,
        # unlike the others, its position embedding covers the class token and the registers too
        kwargs={
            "img_size": 224,
            "embed_dim": 1280,
            "depth": 32,
            "num_heads": 16,
            "mlp_ratio": 5.3375,
            "no_embed_class": False,
            "dynamic_img_size": True,
        },
        hub="paige-ai/Virchow2",
        params=631_239_424,
        terms=_published("virchow2", "paige-ai/Virchow2", _NC_ND),
        gated=True,
    ),
    Preset(
        name="prov-gigapath",
        dim=1536,
        mean=_IMAGENET_MEAN,
        std=_IMAGENET_STD,
        mpp=0.5,
        pooling="cls",
        arch="vit_giant_patch14_dinov2",  # by name only: its patches are 16 px wide
        kwargs={"img_size": 224, "patch_size": 16},
        hub="prov-gigapath/prov-gigapath",
        params=1_134_953_984,
        # a tag and terms of access: both bind
        terms=_published("prov-gigapath", "prov-gigapath/prov-gigapath", "Apache-2.0", _OWN_TERMS, UNKNOWN),
        gated=True,
    ),
    Preset(
        name="demo-teacher",
        dim=1536,
        mean=_BIOPTIMUS_MEAN,
        std=_BIOPTIMUS_STD,
        mpp=0.5,
        arch="resnet14t",
        kwargs={"stem_width": 16, "channels": [16, 32, 96, 384], "cardinality": 2, "base_width": 32},
        asset="demo-teacher.safetensors",
        params=2_171_452,
        terms=_ours("demo-teacher"),
        note="for trials: knows the tissue types of synthetic slides only (pipeline/demo/train_teacher.py trained it)",
    ),
    Preset(
        name="demo-student",
        dim=128,
        mean=_BIOPTIMUS_MEAN,
        std=_BIOPTIMUS_STD,
        mpp=0.5,
        pooling="cls",
        arch="vit_tiny_patch16_224",
        # timm's default start leaves a ViT this shallow with CKA 0.78 after the demo, jax's with 0.91
        kwargs={"embed_dim": 128, "depth": 3, "num_heads": 4, "weight_init": "jax"},
        params=718_848,
        terms=_ours("demo-student"),
        note="for trials: small enough to train on a CPU in minutes",
    ),
)

PRESETS: Mapping[str, Preset] = {preset.name: preset for preset in _PRESETS}
"""Every preset by its name, in the order in which ``g2l models`` lists them."""
