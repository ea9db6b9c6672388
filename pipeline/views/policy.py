"""Policies: the distributions of the augmentation, as data. Built in are ``g2l``, ``none`` and ``hed``."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache
from pathlib import Path

from pipeline.runtime.yaml_file import read_yaml
from stores.errors import OptionError
from stores.io.foreign import is_regular

_LIMITS = {  # field: least, most
    "patch_px": (16, 4096),
    "crop_px": (16, 4096),
    "blur_kernel_px": (3, 31),
    "hue": (0.0, 0.5),
    "sigma_min": (0.01, 16.0),
    "sigma_max": (0.01, 16.0),
}
VIEW_PX = 224
"""Side of the views that a built-in policy asks the teacher for, where patches are as large."""


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


def sized(policy: Policy, patch_px: int, view_px: int) -> Policy:
    """A built-in policy for other patches and views; another policy as it is, since its file names its sizes."""
    if replace(policy, patch_px=256, crop_px=224) != POLICIES.get(policy.name):
        return policy
    return replace(policy, patch_px=patch_px, crop_px=min(patch_px, view_px))


def load_policy(name_or_path: str) -> Policy:
    """A policy of `POLICIES` by name, or a YAML file with fields of `Policy` (its stem is the default name)."""
    if name_or_path in POLICIES:
        return POLICIES[name_or_path]
    path = Path(name_or_path)
    if not is_regular(path):
        raise OptionError(
            f"policy {name_or_path!r} is neither one of {', '.join(POLICIES)} nor a YAML file; "
            "write the fields of a policy into a file and give its path"
        )
    values = read_yaml(path, f"policy file {path}", "hflip_p: 0.5")
    if not values:
        raise OptionError(f"policy file {path}: has no field; write some, such as 'hflip_p: 0.5', one a line")
    return Policy.from_json({"name": path.stem, **values})
