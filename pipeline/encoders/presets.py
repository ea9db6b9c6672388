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
from stores.format.terms import GATED, OPEN, Fact, Terms, expression, union

Pooling = Literal["cls", "cls+mean", "cls-average", "forward"]
POOLINGS: tuple[Pooling, ...] = ("cls", "cls+mean", "cls-average", "forward")

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
"""Names under which most labs publish weights, in the order in which they are looked for."""
_SWIGLU_ARCH = "vit_giant_patch14_reg4_dinov2"
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
_BIOPTIMUS_MEAN = (0.707223, 0.578729, 0.703617)
_BIOPTIMUS_STD = (0.211883, 0.230117, 0.177517)
_HIBOU_MEAN = (0.7068, 0.5755, 0.722)
_HIBOU_STD = (0.195, 0.2316, 0.1816)
_HALF = (0.5, 0.5, 0.5)

_NC_ND = "CC-BY-NC-ND-4.0"
_KAIKO_NC = "LicenseRef-kaiko-non-commercial"
_OWKIN_NC = "LicenseRef-owkin-non-commercial"
_OWN_TERMS = "has to be requested from the owner, and terms of its own accepted"
_READ = "2026-11"
"""When the pages of the encoders were read."""


def _published(
    name: str, hub: str, licence: str, access: str = GATED, outputs: str = ""
) -> tuple[Terms, ...]:
    """Terms of weights on the hub, from their page; by default of outputs what the licence's own text says."""
    page = f"https://huggingface.co/{hub}"
    text = licence_of(licence)
    if outputs or text.outputs == UNKNOWN:
        said = Fact(outputs or UNKNOWN, page, _READ)
    else:
        said = Fact(text.outputs, text.source, _READ)
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
    shrink: int = 1
    """Side of the squares of the view whose mean is one pixel of what the backbone sees; 1 for the view itself."""
    mpp: float | None = None
    """Resolution it was trained at, in micrometres per pixel; None where that is unknown."""
    pooling: Pooling = "forward"
    """``cls``: the class token after the final norm. ``cls+mean``: that, then the mean of the patch tokens
    (class token and registers left out). ``cls-average``: the mean of several class tokens. ``forward``: what the
    model itself returns without a classifier."""
    class_tokens: int = 1
    """Class tokens of the backbone, see `pipeline.encoders.class_tokens`: ``cls`` is all of them, one after another."""
    arch: str = ""
    """timm architecture, with the pretrained tag where there is one; empty for a user's own function."""
    kwargs: Mapping[str, object] = field(default_factory=dict, hash=False)
    """Arguments of ``timm.create_model`` beyond the defaults of `arch`; JSON values only."""
    hub: str | None = None
    """``OWNER/NAME`` of the weights on the Hugging Face hub, with ``@REVISION`` where one is meant."""
    files: tuple[str, ...] = WEIGHT_FILES
    """Names of the file of weights in that repository; the first one that is there counts."""
    revision: str = ""
    """Commit of the repository at which `sha256` was read; empty where none is known."""
    sha256: Mapping[str, str] = field(default_factory=dict, hash=False)
    """SHA-256 of files by their names: one that is fetched and has another is refused. Empty where none is known."""
    asset: str | None = None
    """File in ``pipeline/encoders`` with weights that this package ships."""
    params: int = 0
    terms: tuple[Terms, ...] = ()
    """Terms of its weights, and of everything that these were trained on; empty for random weights."""
    gated: bool = False
    """Whether the owner has to grant access to `hub` first."""
    note: str = ""
    """What else one should know."""
    warning: str = ""
    """What may be wrong with this description; said whenever it is used."""

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

_VIRCHOW2 = Preset(
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
)


def _kaiko(name: str, arch: str, dim: int, params: int, **kwargs: object) -> Preset:
    repo = f"1aurent/{arch.replace('reg4_dinov2', 'reg4_224')}.kaiko_ai_towards_large_pathology_fms"
    return Preset(
        name=name,
        dim=dim,
        mean=_HALF,
        std=_HALF,
        mpp=0.5,
        pooling="cls",
        arch=arch,
        kwargs={"dynamic_img_size": True, **kwargs},
        hub=repo,
        params=params,
        terms=_published(name, repo, _KAIKO_NC, OPEN),
    )


_KAIKO = {
    preset.name: preset
    for preset in (
        _kaiko("kaiko-s16", "vit_small_patch16_224", 384, 21_665_664),
        _kaiko("kaiko-s8", "vit_small_patch8_224", 384, 21_670_272),
        _kaiko("kaiko-b16", "vit_base_patch16_224", 768, 85_798_656),
        _kaiko("kaiko-b8", "vit_base_patch8_224", 768, 85_807_872),
        # its config.json has timm's mean and std of the architecture and 518 px: not those of the model
        _kaiko("kaiko-l14", "vit_large_patch14_reg4_dinov2", 1024, 303_230_976, img_size=224),
    )
}


def _distillpath(start: str, teacher: str, kaiko: Preset | None, terms: tuple[Terms, ...]) -> Preset:
    """ViT-S/16 that began as Kaiko's (``ks16``) or timm's of ImageNet-21k (``is16``) and learned from `teacher`."""
    name, repo = f"distillpath-{start}-{teacher.lower()}", f"RamonK/DistillPath-{start.upper()}-{teacher}"
    return Preset(
        name=name,
        dim=384,
        mean=_HALF if kaiko else _IMAGENET_MEAN,
        std=_HALF if kaiko else _IMAGENET_STD,
        mpp=0.5,
        pooling="cls",
        arch="vit_small_patch16_224",
        hub=repo,
        params=21_665_664,
        terms=union(
            _published(name, repo, "LicenseRef-distillpath", OPEN), kaiko.terms if kaiko else (), terms
        ),
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
    _VIRCHOW2,
    replace(
        _VIRCHOW2,
        name="virchow",
        kwargs={**_VIRCHOW2.kwargs, "reg_tokens": 0},
        hub="paige-ai/Virchow",
        params=631_229_184,
        terms=_published("virchow", "paige-ai/Virchow", "Apache-2.0"),
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
        name="gigapath-flash",
        dim=384,
        mean=_IMAGENET_MEAN,
        std=_IMAGENET_STD,
        mpp=0.5,
        pooling="cls",
        arch=_SWIGLU_ARCH,  # its config.json names an architecture that timm does not have
        kwargs={
            "img_size": 224,
            "patch_size": 16,
            "embed_dim": 384,
            "depth": 12,
            "num_heads": 6,
            "mlp_ratio": 5.33334,
            "reg_tokens": 0,
            "no_embed_class": False,
        },
        hub="prov-gigapath/prov-gigapath-flash",
        params=21_681_024,
        # the tag says Apache-2.0, the form through which access is given non-commercial: both bind
        terms=_published(
            "gigapath-flash",
            "prov-gigapath/prov-gigapath-flash",
            "Apache-2.0",
            "has to be requested from the owner, with a form that says non-commercial use",
            UNKNOWN,
        ),
        gated=True,
    ),
    Preset(
        name="midnight-12k",
        dim=3072,
        mean=_HALF,
        std=_HALF,
        mpp=0.5,
        pooling="cls+mean",
        arch="vit_giant_patch14_dinov2",
        kwargs={"img_size": 224},
        hub="kaiko-ai/midnight",
        params=1_134_769_664,
        terms=_published("midnight-12k", "kaiko-ai/midnight", "MIT", OPEN),
        note="trained at 0.25, 0.5, 1 and 2 mpp",
    ),
    replace(
        _H_OPTIMUS_0,
        name="openmidnight",
        mean=_IMAGENET_MEAN,
        std=_IMAGENET_STD,
        hub="SophontAI/OpenMidnight",
        files=("teacher_checkpoint_load.pt",),
        terms=_published("openmidnight", "SophontAI/OpenMidnight", "Apache-2.0"),
    ),
    replace(
        _H_OPTIMUS_0,
        name="openpath",
        mean=_IMAGENET_MEAN,
        std=_IMAGENET_STD,
        hub="taejoon89/openpath",
        files=("teacher_checkpoint.pth",),
        terms=_published("openpath", "taejoon89/openpath", "Apache-2.0", OPEN),
        gated=False,
    ),
    replace(
        _H0_MINI,
        name="hibou-b",
        mean=_HIBOU_MEAN,
        std=_HIBOU_STD,
        hub="histai/hibou-b",
        terms=_published("hibou-b", "histai/hibou-b", "Apache-2.0"),
    ),
    Preset(
        name="uni",
        dim=1024,
        mean=_IMAGENET_MEAN,
        std=_IMAGENET_STD,
        mpp=0.5,
        pooling="cls",
        arch="vit_large_patch16_224",
        kwargs={"init_values": 1e-5, "dynamic_img_size": True},
        hub="MahmoodLab/UNI",
        params=303_350_784,
        terms=_published("uni", "MahmoodLab/UNI", _NC_ND),
        gated=True,
    ),
    Preset(
        name="phikon-v2",
        dim=1024,
        mean=_IMAGENET_MEAN,
        std=_IMAGENET_STD,
        mpp=0.5,
        pooling="cls",
        arch="vit_large_patch14_dinov2",  # by name only: its patches are 16 px wide
        kwargs={"img_size": 224, "patch_size": 16},
        hub="owkin/phikon-v2",
        params=303_350_784,
        terms=_published("phikon-v2", "owkin/phikon-v2", _OWKIN_NC, OPEN),
    ),
    *_KAIKO.values(),
    _distillpath("ks16", "HOpt0", _KAIKO["kaiko-s16"], _H_OPTIMUS_0.terms),
    _distillpath("ks16", "Virchow2", _KAIKO["kaiko-s16"], _VIRCHOW2.terms),
    _distillpath("is16", "Virchow2", None, _VIRCHOW2.terms),
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

_BIN, _SAFE = "pytorch_model.bin", "model.safetensors"
_READ_AT = {
    "1aurent/vit_large_patch14_reg4_224.kaiko_ai_towards_large_pathology_fms": (
        "fb802e347d2c59f05207b70ad75f7df30019c188",
        {_SAFE: "149c8b21c60a7115a17572073b09ef142411c91b5194c84a99ebba8b83f20e69"},
    ),
    "MahmoodLab/UNI": (
        "b55a5ec6cade1a39edfe6534189a9b8ca7a022f0",
        {_BIN: "56ef09b44a25dc5c7eedc55551b3d47bcd17659a7a33837cf9abc9ec4e2ffb40"},
    ),
    "MahmoodLab/UNI2-h": (
        "d517a8dd47902dd7c308b3c36f63bce47e7b9a43",
        {_BIN: "6e077eda234bebc595868d918d3458d9dd32a050199b0ff04443b2f46a0a3b1e"},
    ),
    "SophontAI/OpenMidnight": (
        "87189e6674d397a14a5cd342c97b1a1615a185aa",
        {"teacher_checkpoint_load.pt": "b57121fc10e2b04c9e85514fa5e4c23b75329301e05bfc756c3bca57312505be"},
    ),
    "bioptimus/H-optimus-0": (
        "b145cc1e6c6b30d3251aa8b1f844e6974188a743",
        {_BIN: "bf47b8467403079798661601b6ab06533be789da48d3f8b510aaefe2fbc55cd3"},
    ),
    "bioptimus/H-optimus-1": (
        "3592cb220dec7a150c5d7813fb56e68bd57473b9",
        {_SAFE: "c4f1e5b457ddf00679626053b0bf2899be6a19c3a04ad191c87ad1cdfd1abfe1"},
    ),
    "bioptimus/H0-mini": (
        "5b5cc0505d19ae558270045eb0df8c34df4d9609",
        {_SAFE: "5e4de45a6527a8160f7c21fe3105c987757efe30ce581e1f2cf5809476069ade"},
    ),
    "histai/hibou-L": (
        "31a3b9fee16554c8552cb643d311733bce8faf7c",
        {_SAFE: "a63d1699448143ceccf2b7e1c4bf35b995c51f86ef8a6efb471af2eee210b79c"},
    ),
    "histai/hibou-b": (
        "7fdc8cce365ebfd9e7e60ee6ee9a8d4d59388f3c",
        {_SAFE: "2121db3cac83bc9abf13a458a37b0740e2ce725609ff8d4b8e6b6c56c30c3ab6"},
    ),
    "kaiko-ai/midnight": (
        "adc6b15679c981cce6f9b018bbad09d16eeeda9f",
        {_SAFE: "52c14f20386ca17c2af8a7bf32c31c352668a8fbf6aefc88d86be6eaa0c72ca1"},
    ),
    "owkin/phikon-v2": (
        "2ae989a9c40cffaa27f0a6cb29cc94d1d6f9a5fd",
        {_SAFE: "261ae680fa699b3b951597fd57aa19c02ef735805acb104b93af69b36d928569"},
    ),
    "paige-ai/Virchow": (
        "19eebc84ae33e79f1b2d866e6ff90ae50e522f9a",
        {_SAFE: "3416891b37a2349a2d9ce7ecf00b64a6277011b41351436c1ceb0abb80805408"},
    ),
    "paige-ai/Virchow2": (
        "3158645804b69e3f3bc4439d4116edddf0840a72",
        {_SAFE: "8d6cea947eb2418c3b0dff48cfb9b238e47744ab0dfca21b2b0637b140769b4b"},
    ),
    "prov-gigapath/prov-gigapath": (
        "eba85dd46097c3eedfcc2a3a9a930baecb6bcc19",
        {_BIN: "877947214318afa9e011754b74bbc3894a1f480a253afc7bc8045b8321dedd63"},
    ),
    "prov-gigapath/prov-gigapath-flash": (
        "f5c3a709ad81d3a5605bb2eb38cd5c2e53da0375",
        {_BIN: "ea5e36c2b3593b073868f91b9016559a620f0d6752e3861cb2bb0b5312238473"},
    ),
    "taejoon89/openpath": (
        "22b339237195931eb56ea6c86653362edd2dd155",
        {"teacher_checkpoint.pth": "1b389360b4867b5159ce7534ff231f51e87d3cf140daa4b37483d0a178af3da3"},
    ),
}
"""Commit and digests of files by repository, as the registry of CraigMyles/raw2features pinned them in July 2026
(``src/raw2features/embedders/registry.yaml``). Other public sources have those of UNI, Phikon-v2 and Midnight too."""


def _pinned(preset: Preset) -> Preset:
    revision, digests = _READ_AT.get(preset.hub or "", ("", {}))
    return replace(preset, revision=revision, sha256=digests)


PRESETS: Mapping[str, Preset] = {preset.name: _pinned(preset) for preset in _PRESETS}
"""Every preset by its name, in the order in which ``g2l models`` lists them."""
