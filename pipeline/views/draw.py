"""Views: what a seed draws for a patch, and the pixels that follow from it.

A view is a pure function of the patch's pixels and of `ViewParams`, and those of (policy, slide fingerprint,
coordinate, seed). Both stages call `draw` and `render`; the manifest keeps the parameters and `view_crc32`.
A draw uses nothing but integers and the raw 64-bit words of Philox, so that it can be rebuilt in any
language: docs/concepts/views.md is the specification. Pixel arithmetic lives in pipeline/rendering.py.
"""

import hashlib
import json
import math
import operator
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from itertools import permutations
from pathlib import Path

import numpy as np
import numpy.typing as npt
import yaml

from pipeline.views import operations
from pipeline.views.operations import Image
from stores.errors import OptionError

VIEWS_VERSION = 1  # of the draws and of the arithmetic together; part of every key
RENDERING = f"views-{VIEWS_VERSION}"  # its name in the recipe
TOKEN_RULE = "tokens-1"  # of `draw_tokens`, in the recipe
JITTER_ORDERS = tuple(permutations(("brightness", "contrast", "saturation", "hue")))  # lexicographic

_ADJUST = {
    "brightness": operations.adjust_brightness,
    "contrast": operations.adjust_contrast,
    "saturation": operations.adjust_saturation,
    "hue": operations.adjust_hue,
}
_WORDS = 16  # four Philox blocks; one word per drawn parameter
_LIMITS = {  # field: least, most
    "patch_px": (16, 4096),
    "crop_px": (16, 4096),
    "blur_kernel_px": (3, 31),
    "hue": (0.0, 0.5),
    "sigma_min": (0.01, 16.0),
    "sigma_max": (0.01, 16.0),
}
_RENDERABLE = {  # what no policy exceeds; parameters may come from another lab's manifest
    **dict.fromkeys(("brightness", "contrast", "saturation", "stain_h", "stain_e", "stain_d"), (0.0, 2.0)),
    "hue": (-0.5, 0.5),
    "order": (0, len(JITTER_ORDERS) - 1),
    "sigma": (0.0, 16.0),
}


@dataclass(frozen=True, slots=True)
class Policy:
    """The distribution of views. Fields that are left out do nothing; `OptionError` when one is not allowed."""

    name: str
    patch_px: int = 256
    crop_px: int = 224
    random_crop: bool = True
    """False: the centre crop for every seed."""
    hflip_p: float = 0.0
    vflip_p: float = 0.0
    jitter_p: float = 0.0
    """Probability of the four colour operations together; they run in a drawn order."""
    brightness: float = 0.0
    """Half width, as in torchvision's ColorJitter: a factor from 1 - b to 1 + b. Likewise the next two."""
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    """Half width in turns: from -hue to hue."""
    blur_p: float = 0.0
    blur_kernel_px: int = 9
    sigma_min: float = 0.1
    sigma_max: float = 2.0
    stain_p: float = 0.0
    stain: float = 0.0
    """Half width of the factor of each of the three HED stain densities."""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not re.fullmatch(r"[A-Za-z0-9._-]+", self.name):
            raise OptionError(f"policy name {self.name!r}: use letters, digits, '.', '_' and '-' only")
        for field in fields(self):
            if field.name != "name":
                object.__setattr__(self, field.name, self._checked(field.name, field.type))
        if self.crop_px > self.patch_px:
            raise OptionError(f"policy {self.name}: crop_px {self.crop_px} exceeds patch_px {self.patch_px}")
        if self.blur_kernel_px % 2 == 0 or self.blur_kernel_px > self.crop_px:
            raise OptionError(
                f"policy {self.name}: blur_kernel_px {self.blur_kernel_px}; use an odd number up to crop_px"
            )
        if self.sigma_min > self.sigma_max:
            raise OptionError(
                f"policy {self.name}: sigma_min {self.sigma_min} exceeds sigma_max {self.sigma_max}"
            )

    def _checked(self, field: str, kind: object) -> bool | int | float:
        """The field's value in its own type, so that 1 and 1.0 from a YAML file give one digest."""
        value = getattr(self, field)
        if kind is bool:
            if isinstance(value, bool):
                return value
            raise OptionError(f"policy {self.name}: {field} is {value!r}; use true or false")
        low, high = _LIMITS.get(field, (0.0, 1.0))
        number = isinstance(value, int if kind is int else (int, float)) and not isinstance(value, bool)
        if not number or not low <= value <= high:
            noun = "a whole number" if kind is int else "a number"
            raise OptionError(
                f"policy {self.name}: {field} is {value!r}; use {noun} from {low:g} to {high:g}"
            )
        return value if kind is int else float(value)

    @classmethod
    def from_json(cls, values: Mapping[str, object]) -> "Policy":
        """The policy that `to_json` described. `OptionError` names an unknown field."""
        allowed = [field.name for field in fields(cls)]
        unknown = sorted(str(key) for key in values if key not in allowed)
        if unknown:
            raise OptionError(
                f"policy {values.get('name')}: unknown field {unknown[0]!r}; allowed are {', '.join(allowed)}; "
                "correct or remove it"
            )
        if "name" not in values:
            raise OptionError("policy without a name; add the field 'name'")
        return cls(**values)  # type: ignore[arg-type]  # __post_init__ checks every type

    def to_json(self) -> dict[str, str | bool | int | float]:
        """All fields, for the recipe."""
        return asdict(self)

    def digest(self) -> str:
        """SHA-256 (hex) of the canonical JSON without `name`: two names of one distribution are one policy."""
        return _digest(self)


@lru_cache(maxsize=64)  # 12 us, and every draw needs it
def _digest(policy: Policy) -> str:
    values = {key: value for key, value in policy.to_json().items() if key != "name"}
    return hashlib.sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


POLICIES = {
    policy.name: policy
    for policy in (
        # arXiv 2510.11176. The paper gives no sigma: 0.1 to 2.0 is torchvision's default for GaussianBlur.
        Policy(
            "g2l",
            hflip_p=0.5,
            vflip_p=0.5,
            jitter_p=0.5,
            brightness=0.15,
            contrast=0.15,
            saturation=0.1,
            hue=0.05,
            blur_p=0.1,
            blur_kernel_px=9,
            sigma_min=0.1,
            sigma_max=2.0,
        ),
        Policy("none", random_crop=False),
        # Our choice. HED-light of Tellez et al. (arXiv 1902.06543) is 0.05 on densities of the image plus 2;
        # on true densities 0.15 is comparable (docstring of HEDColorAugmentation in NKI-AI/ahcore).
        Policy("hed", hflip_p=0.5, vflip_p=0.5, stain_p=1.0, stain=0.15),
    )
}


def load_policy(name_or_path: str) -> Policy:
    """A policy of `POLICIES` by name, or a YAML file with fields of `Policy` (its stem is the default name)."""
    if name_or_path in POLICIES:
        return POLICIES[name_or_path]
    path = Path(name_or_path)
    if not path.is_file():
        raise OptionError(
            f"policy {name_or_path!r} is neither one of {', '.join(POLICIES)} nor a YAML file; "
            "write the fields of a policy into a file and give its path"
        )
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise OptionError(f"policy file {path}: not readable YAML ({' '.join(str(error).split())})") from None
    if not isinstance(values, dict):
        raise OptionError(f"policy file {path}: expected fields such as 'hflip_p: 0.5', one a line")
    return Policy.from_json({"name": path.stem, **values})


@dataclass(frozen=True, slots=True)
class ViewParams:
    """What a seed drew for a patch, in the order of the draws; also columns of the manifest.

    The floats are multiples of 2**-16, hence exact in float32. They are kept when their flag is off.
    """

    crop_x_px: int
    crop_y_px: int
    hflip: bool
    vflip: bool
    jitter: bool
    brightness: float
    contrast: float
    saturation: float
    hue: float
    order: int
    """Index into `JITTER_ORDERS`."""
    blur: bool
    sigma: float
    stain: bool
    stain_h: float
    stain_e: float
    stain_d: float


def draw(policy: Policy, fingerprint: str, x_px0: int, y_px0: int, seed: int) -> ViewParams:
    """Parameters of the view of the patch at (`x_px0`, `y_px0`) of the slide with `fingerprint`.

    Seed 0 is the centre crop and nothing else. Any other seed takes one word of Philox for each parameter,
    also for those that a flag or the policy switches off: changing one probability moves no other draw.
    """
    seed = operator.index(seed)
    if seed < 0:
        raise OptionError(f"seed {seed} is negative; use 0 for the centre crop, 1 and up for drawn views")
    centre = (policy.patch_px - policy.crop_px) // 2
    if seed == 0:
        neutral = (False, 1.0, 1.0, 1.0, 0.0, 0, False, 0.0, False, 1.0, 1.0, 1.0)
        return ViewParams(centre, centre, False, False, *neutral)
    words = _words(policy, fingerprint, operator.index(x_px0), operator.index(y_px0), seed)
    offsets = policy.patch_px - policy.crop_px + 1
    crop_x, crop_y = _index(words, offsets), _index(words, offsets)
    return ViewParams(  # arguments are evaluated from top to bottom: the order of the draws
        crop_x_px=crop_x if policy.random_crop else centre,
        crop_y_px=crop_y if policy.random_crop else centre,
        hflip=_chance(words, policy.hflip_p),
        vflip=_chance(words, policy.vflip_p),
        jitter=_chance(words, policy.jitter_p),
        brightness=_uniform(words, 1 - policy.brightness, 1 + policy.brightness),
        contrast=_uniform(words, 1 - policy.contrast, 1 + policy.contrast),
        saturation=_uniform(words, 1 - policy.saturation, 1 + policy.saturation),
        hue=_uniform(words, -policy.hue, policy.hue),
        order=_index(words, len(JITTER_ORDERS)),
        blur=_chance(words, policy.blur_p),
        sigma=_uniform(words, policy.sigma_min, policy.sigma_max),
        stain=_chance(words, policy.stain_p),
        stain_h=_uniform(words, 1 - policy.stain, 1 + policy.stain),
        stain_e=_uniform(words, 1 - policy.stain, 1 + policy.stain),
        stain_d=_uniform(words, 1 - policy.stain, 1 + policy.stain),
    )


def draw_tokens(
    policy: Policy, fingerprint: str, x_px0: int, y_px0: int, seed: int, count: int, total: int
) -> npt.NDArray[np.int32]:
    """Positions of `count` of the `total` patch tokens of a view, int32 (count,), ascending; all when they are equal.

    The words of the view's key that follow those of its parameters, one for each token: the `count` smallest are kept.
    """
    raw = _philox(policy, fingerprint, operator.index(x_px0), operator.index(y_px0), operator.index(seed))
    words = raw.random_raw(_WORDS + total)[_WORDS:]
    return np.sort(np.argsort(words, kind="stable")[:count]).astype(np.int32)


def _words(policy: Policy, fingerprint: str, x_px0: int, y_px0: int, seed: int) -> Iterator[int]:
    """The upper 53 bits of each word."""
    philox = _philox(policy, fingerprint, x_px0, y_px0, seed)
    return (word >> 11 for word in philox.random_raw(_WORDS).tolist())


def _philox(policy: Policy, fingerprint: str, x_px0: int, y_px0: int, seed: int) -> np.random.Philox:
    """The view's generator. The text is unambiguous: its last four lines are numbers and hex."""
    text = f"g2l view {VIEWS_VERSION}\n{fingerprint}\n{x_px0}\n{y_px0}\n{seed}\n{policy.digest()}"
    key = hashlib.blake2b(text.encode("utf-8"), digest_size=16).digest()
    return np.random.Philox(key=np.frombuffer(key, dtype="<u8").astype(np.uint64))


def _index(words: Iterator[int], count: int) -> int:
    return next(words) * count >> 53


def _chance(words: Iterator[int], probability: float) -> bool:
    return next(words) < math.ldexp(probability, 53)


def _uniform(words: Iterator[int], low: float, high: float) -> float:
    """Uniform over the multiples of 2**-16 from `low` to `high`, each rounded to such a multiple first."""
    first, last = operations.to_fixed(low), operations.to_fixed(high)
    return (first + (next(words) * (last - first + 1) >> 53)) / operations.ONE


def render(patch: Image, params: ViewParams, policy: Policy) -> Image:
    """The view of `patch` under `params`: crop, flips, stain jitter, colour jitter, blur.

    Stain comes first: it varies on the glass, the other two in the scanner.

    Parameters
    ----------
    patch : uint8, (patch_px, patch_px, 3), RGB
    params : drawn by `draw`, or read back from a manifest (float32 and any integer type will do)
    policy : gives `patch_px`, `crop_px` and `blur_kernel_px`

    Returns
    -------
    uint8, (crop_px, crop_px, 3), C-contiguous, never a view of `patch`. The same bits on every machine,
    under any number of threads.
    """
    _check(patch, params, policy)
    x, y = int(params.crop_x_px), int(params.crop_y_px)
    view: Image = np.array(patch[y : y + policy.crop_px, x : x + policy.crop_px], order="C")
    if params.hflip or params.vflip:
        view = operations.mirror(view, bool(params.hflip), bool(params.vflip))
    if params.stain:
        view = operations.jitter_stains(view, (params.stain_h, params.stain_e, params.stain_d))
    if params.jitter:
        for operation in JITTER_ORDERS[params.order]:
            view = _ADJUST[operation](view, getattr(params, operation))
    if params.blur:
        view = operations.blur(view, policy.blur_kernel_px, params.sigma)
    return view


def _check(patch: Image, params: ViewParams, policy: Policy) -> None:
    shape = (policy.patch_px, policy.patch_px, 3)
    if patch.shape != shape or patch.dtype != np.uint8:
        raise OptionError(
            f"patch is {patch.dtype} {patch.shape}; policy {policy.name} needs uint8 {shape}: "
            "tile with its patch_px, or choose another policy"
        )
    room = policy.patch_px - policy.crop_px
    bounds = _RENDERABLE | {"crop_x_px": (0, room), "crop_y_px": (0, room)}
    if params.blur:  # OpenCV takes a sigma of 0 for "choose one yourself"
        bounds |= {"sigma": (1 / operations.ONE, 16.0)}
    for field, (least, most) in bounds.items():
        if not least <= getattr(params, field) <= most:
            raise OptionError(
                f"{field} {getattr(params, field)} does not fit policy {policy.name}, which has {least:g} to "
                f"{most:g}: use the policy that drew it"
            )


def view_crc32(view: Image) -> int:
    """CRC-32 (zlib) of the pixels in C order."""
    return zlib.crc32(np.ascontiguousarray(view).data)
