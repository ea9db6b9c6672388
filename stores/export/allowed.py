"""What an export under pseudonyms may hold: known keys with known values, at every level.

`deidentify` writes by these lists and `leak_check` reads by them again. What is not in them stays behind; where a
digest covers it, as in the recipe, it stops the export. So a name needs no entry in the slides table to be kept back.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from stores.errors import CorruptStore, StoreError
from stores.format import array_kinds, layout, manifest, recipe, terms
from stores.format.committed import MPP_SOURCES
from stores.format.int8 import KINDS
from stores.format.metadata import GROUP, parse_metadata
from stores.io import files
from stores.io.text import one_line

UNKNOWN_VENDOR = "unknown"
VENDORS = frozenset({
    "aperio", "dicom", "generic-tiff", "hamamatsu", "huron", "leica", "mirax", "ome-tiff", "ome-zarr", "philips",
    "picture", "sakura", "synthetic", "tiff", "tiles", "trestle", "ventana", "zeiss", UNKNOWN_VENDOR,
})  # fmt: skip
"""Makers of scanners and formats, as OpenSlide and the other readers name them."""
COLUMN_VALUES: Mapping[str, frozenset[str]] = {
    "vendor": VENDORS,
    "mpp_source": frozenset(MPP_SOURCES),
    "split": frozenset(manifest.SPLITS),
    "status": frozenset((manifest.OK, manifest.BAD_READ)),
    "reason": frozenset(("",)),
}
"""Columns of text that are no ids, with all that they may hold; all of them may be empty."""
_TISSUE = frozenset({
    "name", "kind", "version", "pad", "smooth_um", "colour_min", "colour_max", "cold_ratio", "cold_density",
    "warm_ratio", "warm_density", "warm_thin_density", "red_ratio", "light_ratio", "light_density",
    "fade_cold_ratio", "fade_warm_ratio", "fade_light_ratio", "fade_um", "halo_um", "stroke_radius_um",
    "light_radius_um", "close_um", "hole_um2", "open_um", "object_um2",
})  # fmt: skip
_POLICY = frozenset({
    "name", "patch_px", "crop_px", "random_crop", "hflip_p", "vflip_p", "jitter_p", "brightness", "contrast",
    "saturation", "hue", "blur_p", "blur_kernel_px", "sigma_min", "sigma_max", "stain_p", "stain",
})  # fmt: skip
_COMPACT = frozenset(("kind", "rows", "relative_error", "max_relative_error", "nn10_overlap", "nn10_rows"))
_NAMES = frozenset(("name", "kind", "pad"))
"""Keys of the recipe's open parts whose value is text."""


def array_metadata(raw: bytes, name: str, where: str) -> dict[str, Any]:
    """The metadata of the group or array in the file `name` (below the store), with what the format has and no more.

    Raises
    ------
    CorruptStore
        When they are not those of such an array.
    """
    parts = name.split("/")
    if len(parts) == 2 or (len(parts) == 3 and parts[0] == layout.FEATURES):
        return dict(GROUP)
    leaf = parts[2] if len(parts) == 4 else "pixels"
    spec = parse_metadata(raw, where)
    found = files.parse_json(raw.decode())
    kind = array_kinds.KINDS.get((leaf, str(spec.dtype)))
    if kind is None or found["codecs"] not in kind.codecs or found["fill_value"] != kind.fill:
        raise CorruptStore(
            f"{where}: data type, codecs or fill value are not those of {leaf}; nothing else leaves under "
            "pseudonyms: see `g2l store verify`"
        )
    return {
        "attributes": {},
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(spec.chunks)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "codecs": found["codecs"],
        "data_type": str(spec.dtype),
        "fill_value": kind.fill,
        "node_type": "array",
        "shape": list(spec.shape),
        "storage_transformers": [],
        "zarr_format": 3,
    }


def check_recipe(stored: recipe.Recipe, where: object) -> None:
    """Raise StoreError when an open part of a recipe has a key or a text that recipes do not have."""
    parts = (
        ("patch.tissue", stored.patch.tissue, _TISSUE),
        ("policy", stored.policy or {}, _POLICY),
        ("compact", stored.compact or {}, _COMPACT),
    )
    for part, values, known in parts:
        for key, value in values.items():
            right = isinstance(value, str) if key in _NAMES else type(value) in (bool, int, float)
            if key not in known or not right:
                raise StoreError(
                    f"{where}: recipe.{part}: {key!r:.80} is {value!r:.80}, which this version does not know; a recipe "
                    "leaves as it is, and this may name somebody; nothing was exported"
                )


def free_texts(stored: recipe.Recipe, extracted: Mapping[str, Any]) -> list[str]:
    """Texts that leave as they are because no list can hold them: teacher, policy, rules, versions, licences.

    Parameters
    ----------
    extracted
        The options of ``extract-teacher`` that leave.
    """
    texts = {text for text in strings(stored.to_json()) if not re.fullmatch("[0-9a-f]{64}", text)}
    licences = [extracted.get(name) for name in ("teacher_licence", "teacher_terms")]
    return sorted(one_line(text) for text in texts | set(filter(None, strings(licences))))


def strings(value: Any) -> list[str]:
    """Every string of a JSON value but the keys."""
    if isinstance(value, str):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for part in inner for text in strings(part)]


def _number(value: Any) -> bool:
    return type(value) in (int, float)


def _number_or_none(value: Any) -> bool:
    return value is None or _number(value)


def _truth(value: Any) -> bool:
    return isinstance(value, bool)


def _text(value: Any) -> bool:
    return isinstance(value, str) and value == one_line(value)


_OPTIONS: Mapping[str, Mapping[str, Callable[[Any], bool]]] = {
    "tile": {
        "mpp": _number,
        "patch": _number,
        "min_tissue": _number,
        "max_patches": _number_or_none,
        "val": _number,
    },
    "extract-teacher": {
        "seeds": _number,
        "random_weights": _number_or_none,
        "dtype": lambda value: value in ("auto", *recipe.DTYPES),
        "pixels": _truth,
        "tokens": _number_or_none,
        "attention": _truth,
        "teacher_licence": _text,
    },
    "export": {
        "pseudonymised": _truth,
        "key_id": lambda value: isinstance(value, str) and re.fullmatch("[b-t]{16}", value) is not None,
        "compact": lambda value: value in (None, *KINDS),
        "pixels": _truth,
        "keep_columns": lambda value: (
            isinstance(value, list) and all(isinstance(name, str) for name in value)
        ),
    },
}
"""Options whose values hold no path, id or name of a machine, and what values they have."""


def public_options(command: str, options: Mapping[str, Any]) -> dict[str, Any] | None:
    """The options of a command that may leave; None when none of them may.

    Raises
    ------
    StoreError
        When the terms of the teacher do not have their form.
    """
    known = _OPTIONS.get(command)
    if known is None:
        return None
    kept = {key: options[key] for key, is_known in known.items() if key in options and is_known(options[key])}
    if command == "extract-teacher" and "teacher_terms" in options:  # a copy must not lose them
        recorded = terms.from_json(options["teacher_terms"], layout.options_file(command))
        kept["teacher_terms"] = terms.to_json(terms.without_folders(recorded))
    return kept
