"""The recipe: everything that decides the value of a stored feature, and nothing else.

A store has one recipe. ``tile`` writes its `Patch` part, ``extract-teacher`` the rest. Batch size,
workers, devices and hosts are left out on purpose: labs with different machines make the same store.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from stores.errors import CorruptStore, RecipeMismatch, StoreError
from stores.format import layout
from stores.io import files
from stores.io.location import StoreLike

SCHEMA_VERSION = 1
AS_IS_TOLERANCE = 0.05
"""A level of a slide within this share of the target resolution is read as it is."""
DTYPES = ("float32", "bfloat16", "float16")
_SHA256 = re.compile("[0-9a-f]{64}")
MAX_DEPTH = 16
"""Greatest depth of objects and lists in a recipe: copying and comparing are recursive."""
MAX_GRID = 64
"""Side of the grid of patch tokens of a view."""
IN_TILES = "tiles"
PADS = ("none", "white", "reflect")
"""What surrounds tiles that are smaller than a patch: ``none`` refuses them."""
AS_DECLARED = "declared"
"""The grid of patches that another tool cut: anywhere, of a slide's own size at level 0, over its edge too."""
DECLARED_FACTOR = 1.7
"""How many times finer or coarser such a patch may be than the recipe says: other tools go by magnification, and 20x is
0.3 to 0.6 micrometres a pixel. Twice would be another magnification."""
UNKNOWN = "unknown"
"""The weights of a declared teacher."""
TOOLS = ("trident", "clam")
FILTERS = ("bilinear", "bicubic")
NO_FEATURES = "has no teacher features yet; run `g2l extract-teacher` first"


_NEWER = {"shrink": 1, "class_tokens": 1}
"""Fields of a teacher that are newer than the first version, and their values in recipes that leave them out."""


@dataclass(frozen=True, slots=True)
class Teacher:
    """The encoder whose features are stored."""

    name: str
    """The preset or specification that it was loaded by."""
    weights_sha256: str
    """Identity of the parameters, independent of the kind of file (`pipeline.encoders.export.weights_sha256`)."""
    pooling: str
    """``cls``, ``cls+mean``, ``cls-average`` or ``forward``."""
    mean: tuple[float, float, float]
    """Normalize: subtracted from RGB in [0, 1]."""
    std: tuple[float, float, float]
    """Normalize: divided by."""
    image_px: int
    """Side of the view that the encoder takes, in pixels."""
    dim: int
    """Length of a feature."""
    dtype: str
    """Arithmetic of the forward pass: ``float32``, ``bfloat16`` or ``float16``."""
    shrink: int = 1
    """Side of the squares of a view that are averaged to one pixel before the encoder sees it; 1 for none."""
    class_tokens: int = 1
    """Class tokens in a feature, one after another, where ``pooling`` takes class tokens."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; ``shrink`` and ``class_tokens`` of 1 are left out, as in recipes of earlier versions."""
        value = json.loads(json.dumps(asdict(self)))
        return {name: item for name, item in value.items() if name not in _NEWER or item != _NEWER[name]}


@dataclass(frozen=True, slots=True)
class Patch:
    """What a patch is."""

    mpp: float
    """Target resolution in micrometres per pixel."""
    size_px: int
    """Side of the patch in pixels at that resolution."""
    grid: str
    """Where patches lie: ``non-overlapping`` is a grid that starts at the level-0 origin, ``declared`` is anywhere,
    ``tiles`` is a grid in each tile."""
    min_tissue: float
    """Smallest share of tissue in a patch."""
    tissue: Mapping[str, Any]
    """The tissue rule and its thresholds."""


@dataclass(frozen=True, slots=True)
class Reader:
    """The software whose version can change a pixel."""

    openslide: str
    """Version of the OpenSlide C library: it decodes."""
    opencv: str
    """Version of OpenCV: it blurs."""
    resampling: str
    """Name and version of the rule that brings a patch to the target resolution."""
    rendering: str
    """Name and version of the rule that renders a view."""
    colour: str
    """``as stored``: embedded ICC profiles are not applied."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """The teacher's patch tokens that are stored beside its features."""

    count: int
    """Tokens of a view."""
    grid: int
    """Side of the view's grid of patches: there are grid * grid tokens to choose from."""
    dim: int
    """Length of a token."""
    rule: str
    """Name and version of the rule that draws their positions (`pipeline.views.draw.draw_tokens`)."""

    def __post_init__(self) -> None:
        if not (1 <= self.grid <= MAX_GRID and 1 <= self.count <= self.grid**2 and 1 <= self.dim < 1 << 16):
            raise StoreError(
                f"recipe.tokens: {self.count} tokens of length {self.dim} of a grid of side {self.grid}; "
                f"a grid has a side of 1 to {MAX_GRID}, and no view more tokens than its grid"
            )

    @property
    def whole(self) -> bool:
        """Whether all tokens of a view are kept; then they stand in the order of the grid."""
        return self.count == self.grid**2


@dataclass(frozen=True, slots=True)
class Attention:
    """The teacher's attention that is stored beside its features."""

    grid: int
    """Side of the view's grid of patches: a view has grid * grid numbers."""
    rule: str
    """Name and version of what is kept (`pipeline.encoders.attention`)."""

    def __post_init__(self) -> None:
        if not 1 <= self.grid <= MAX_GRID:
            raise StoreError(f"recipe.attention: a grid of side {self.grid}; allowed is 1 to {MAX_GRID}")


@dataclass(frozen=True, slots=True)
class Declared:
    """Features that were computed elsewhere and imported: teacher and views are what was declared, not proven."""

    by: str
    """The tool whose files were imported, and whose rule says how a patch was read: one of `TOOLS`."""
    cut_px: int
    """Side of the patch that the tool cut, in pixels at its target resolution."""
    filter: str
    """How the encoder's transform brought that to ``patch.size_px``: one of `FILTERS`."""
    pillow: str
    """Version of Pillow: it resizes."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """All of the above; `teacher`, `policy` and `reader` are None while only tiles exist."""

    patch: Patch
    teacher: Teacher | None = None
    policy: Mapping[str, Any] | None = None
    reader: Reader | None = None
    compact: Mapping[str, Any] | None = None
    """How a compact copy keeps its features, and the error that this was measured to cost; None when as extracted."""
    tokens: Tokens | None = None
    """None when features alone are stored."""
    declared: Declared | None = None
    """None when the features were computed by g2l."""
    attention: Attention | None = None
    """None when the teacher's attention is not stored."""
    schema: int = SCHEMA_VERSION

    @property
    def complete(self) -> bool:
        """Whether features can exist: only a complete recipe has a digest that names a store."""
        return None not in (self.teacher, self.policy, self.reader)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types. Fields that are newer than the first version are left out when they are None."""
        value = json.loads(json.dumps(asdict(self)))
        value["teacher"] = None if self.teacher is None else self.teacher.to_json()
        for name in ("compact", "tokens", "declared", "attention"):
            if value[name] is None:
                del value[name]
        return value

    def digest(self) -> str:
        """SHA-256 (hex) of the canonical JSON: sorted keys, no spaces, shortest round-trip floats."""
        return hashlib.sha256(_canonical(self.to_json())).hexdigest()


@dataclass(frozen=True, slots=True)
class CompleteRecipe(Recipe):
    """The recipe of a store that has, or can have, teacher features: the same fields, none of the first four None."""

    teacher: Teacher
    policy: Mapping[str, Any]
    reader: Reader


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def from_json(value: Any, source: str) -> Recipe:
    """Build a recipe from parsed JSON of unknown origin.

    Raises
    ------
    StoreError
        When the schema is newer than this code, or a field is missing, unknown or of another type.
    """
    if not isinstance(value, dict):
        raise StoreError(f"{source}: a recipe is a JSON object, this is {type(value).__name__}")
    if files.deeper_than(value, MAX_DEPTH):
        raise StoreError(f"{source}: nested more than {MAX_DEPTH} deep, which no recipe is")
    schema = value.get("schema")
    if type(schema) is not int or not 1 <= schema <= SCHEMA_VERSION:
        raise StoreError(
            f"{source}: schema {schema!r:.80}, this version reads 1 to {SCHEMA_VERSION}; update g2l"
        )
    parts: dict[str, Any] = {"schema": schema}
    for name in ("policy", "compact"):
        parts[name] = value.get(name)
        if parts[name] is not None and not isinstance(parts[name], dict):
            raise StoreError(f"{source}: {name}: expected an object, found {parts[name]!r:.200}")
    kinds = {"patch": Patch, "teacher": Teacher, "reader": Reader, "tokens": Tokens, "declared": Declared}
    kinds["attention"] = Attention
    for name, kind in kinds.items():
        parts[name] = _part(kind, value.get(name), f"{source}: {name}", optional=name != "patch")
    digest = value.get("digest")
    unknown = sorted(set(value) - set(parts) - {"digest"})
    if unknown:
        raise StoreError(f"{source}: unknown field {unknown[0]!r}; allowed: {', '.join(sorted(parts))}")
    if digest is not None:
        bare = {key: item for key, item in value.items() if key != "digest"}
        if digest != hashlib.sha256(_canonical(bare)).hexdigest():
            raise CorruptStore(f"{source}: its digest differs from what it says: damaged, or edited by hand")
    return Recipe(**parts)


_JSON_TYPES: dict[Any, tuple[type, ...]] = {str: (str,), int: (int,), float: (int, float)}


def _part(kind: type, value: Any, source: str, optional: bool) -> Any:
    if value is None and optional:
        return None
    names = [field.name for field in fields(kind)]
    if kind is Teacher and isinstance(value, dict):
        value = _NEWER | value
    if not isinstance(value, dict) or set(value) != set(names):
        raise StoreError(f"{source}: expected the fields {', '.join(names)}; found {value!r:.200}")
    return kind(**{f.name: _field(f.type, value[f.name], f"{source}.{f.name}") for f in fields(kind)})


def _field(kind: Any, item: Any, source: str) -> Any:
    if kind in _JSON_TYPES:
        if not isinstance(item, _JSON_TYPES[kind]) or isinstance(item, bool):
            raise StoreError(f"{source}: expected {kind.__name__}, found {item!r:.80}")
        return kind(item)
    if isinstance(item, list) and len(item) == 3 and all(type(x) in (int, float) for x in item):
        return tuple(float(x) for x in item)
    if isinstance(item, dict) and kind != tuple[float, float, float]:
        return item
    raise StoreError(f"{source}: expected {kind}, found {item!r:.80}")


def load(store: StoreLike) -> Recipe:
    """Read ``recipe.json`` of a store."""
    path = store / layout.RECIPE
    if not path.exists():
        raise StoreError(f"{store}: no {layout.RECIPE}, so this is not a store; make one with `g2l tile`")
    return from_json(files.read_json(path, finite=True, inside=path.parent), f"{store}/{layout.RECIPE}")


def load_complete(store: StoreLike) -> CompleteRecipe:
    """Read ``recipe.json`` of a store that must have teacher features.

    Raises
    ------
    StoreError
        When `store` is not a store, or only tiles exist.
    """
    return require_complete(load(store), store)


def require_complete(recipe: Recipe, store: StoreLike) -> CompleteRecipe:
    """Return `recipe` as one whose parts are all there; StoreError that names `store` when only tiles exist."""
    if recipe.teacher is None or recipe.policy is None or recipe.reader is None:
        raise StoreError(f"{store}: {NO_FEATURES}")
    return CompleteRecipe(
        recipe.patch,
        recipe.teacher,
        recipe.policy,
        recipe.reader,
        recipe.compact,
        recipe.tokens,
        recipe.declared,
        recipe.attention,
        recipe.schema,
    )


def save(store: Path, recipe: Recipe) -> None:
    """Write ``recipe.json`` atomically, with its own digest."""
    files.write_json(store / layout.RECIPE, recipe.to_json() | {"digest": recipe.digest()})


def differences(stored: Recipe, wanted: Recipe) -> list[tuple[str, Any, Any]]:
    """Every field in which two recipes differ: (dotted name, stored value, wanted value)."""
    return value_differences(stored.to_json(), wanted.to_json())


def value_differences(stored: Any, wanted: Any, prefix: str = "") -> list[tuple[str, Any, Any]]:
    """Every leaf in which two JSON values differ: (dotted name, stored value, wanted value)."""
    if isinstance(stored, dict) and isinstance(wanted, dict):
        found = []
        for key in sorted(set(stored) | set(wanted)):
            name = f"{prefix}.{key}" if prefix else key
            found += value_differences(stored.get(key), wanted.get(key), name)
        return found
    return [] if stored == wanted else [(prefix, stored, wanted)]


def require_same(stored: Recipe, wanted: Recipe, where: str) -> None:
    """Raise RecipeMismatch that names the first differing field and both values."""
    found = differences(stored, wanted)
    if found:
        name, old, new = found[0]
        more = f" (and {len(found) - 1} more: {', '.join(n for n, _, _ in found[1:])})" if found[1:] else ""
        raise RecipeMismatch(
            f"recipe.{name}: {where} has {old!r}, this run has {new!r}{more}; "
            "a store has one recipe: use the same options or another --store"
        )


def problems(stored: Recipe) -> Iterator[str]:
    """What no store that was made by its own commands says: values out of range, parts that contradict each other."""
    patch, teacher, policy = stored.patch, stored.teacher, stored.policy or {}
    if not (math.isfinite(patch.mpp) and patch.mpp > 0):
        yield f"patch.mpp {patch.mpp:g}; allowed is a number above 0"
    if not 1 <= patch.size_px < 1 << 15:
        yield f"patch.size_px {patch.size_px}; allowed is 1 to {(1 << 15) - 1}"
    if not 0 <= patch.min_tissue <= 1:
        yield f"patch.min_tissue {patch.min_tissue:g}; allowed is 0 to 1"
    if patch.grid == IN_TILES and patch.tissue.get("pad", "none") not in PADS:
        yield f"patch.tissue.pad {patch.tissue['pad']!r:.40}; allowed: {', '.join(PADS)}"
    if policy.get("patch_px", patch.size_px) != patch.size_px:
        yield f"policy.patch_px {policy['patch_px']!r:.40}, but patch.size_px {patch.size_px}"
    if teacher is None:
        return
    if not 1 <= teacher.dim < 1 << 16:
        yield f"teacher.dim {teacher.dim}; allowed is 1 to {(1 << 16) - 1}"
    if not 1 <= teacher.shrink <= max(teacher.image_px, 1) or teacher.image_px % teacher.shrink:
        yield f"teacher.shrink {teacher.shrink}; allowed are divisors of teacher.image_px {teacher.image_px}"
    if not 1 <= teacher.class_tokens <= max(teacher.dim, 1):
        yield f"teacher.class_tokens {teacher.class_tokens}; allowed is 1 to teacher.dim {teacher.dim}"
    if not all(map(math.isfinite, teacher.mean)) or not all(math.isfinite(x) and x > 0 for x in teacher.std):
        yield f"teacher.mean {teacher.mean}, std {teacher.std}; allowed are numbers, those of std above 0"
    yield from _declared_problems(stored)
    is_unknown = stored.declared is not None and teacher.weights_sha256 == UNKNOWN
    if not is_unknown and not _SHA256.fullmatch(teacher.weights_sha256):
        yield f"teacher.weights_sha256 {teacher.weights_sha256!r:.40}; allowed are 64 hex digits"
    if teacher.dtype not in DTYPES:
        yield f"teacher.dtype {teacher.dtype!r:.40}; allowed: {', '.join(DTYPES)}"
    if policy.get("crop_px", teacher.image_px) != teacher.image_px:
        yield f"policy.crop_px {policy['crop_px']!r:.40}, but teacher.image_px {teacher.image_px}"


def _declared_problems(stored: Recipe) -> Iterator[str]:
    about = stored.declared
    if (stored.patch.grid == AS_DECLARED) != (about is not None):
        yield f"patch.grid {stored.patch.grid!r:.40}, {'with' if about else 'without'} a part `declared`"
    if about is None:
        return
    if about.by not in TOOLS:
        yield f"declared.by {about.by!r:.40}; allowed: {', '.join(TOOLS)}"
    if about.filter not in FILTERS:
        yield f"declared.filter {about.filter!r:.40}; allowed: {', '.join(FILTERS)}"
    if not 1 <= about.cut_px < 1 << 15:
        yield f"declared.cut_px {about.cut_px}; allowed is 1 to {(1 << 15) - 1}"
    if stored.tokens is not None:
        yield "tokens, which no declared teacher has"
    if stored.attention is not None:
        yield "attention, which no declared teacher has"


def require_possible(stored: Recipe, store: StoreLike) -> None:
    """Raise CorruptStore that names the first of `problems`."""
    for problem in problems(stored):
        raise CorruptStore(f"{store}/{layout.RECIPE}: {problem}")
