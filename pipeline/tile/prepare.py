"""Whether slides can be added to a store, and its recipe's patch part and options."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.runtime.options import to_json
from pipeline.tile.grid import patch_recipe
from pipeline.tile.groups import tiles_recipe
from pipeline.tile.options import OF_QC, OF_TILES, TileOptions
from stores.errors import OptionError, RecipeMismatch, StoreError
from stores.export import pseudonyms
from stores.format import layout, manifest, recipe
from stores.format.layout import read_options
from stores.format.qc import parse_limits
from stores.io import files


def require_extendable(store: Path) -> None:
    """Refuse an export that slides or features cannot be added to.

    Raises
    ------
    RecipeMismatch
        When it keeps its features in int8, or they were imported.
    OptionError
        When it is under pseudonyms: the slides' own names would come back into it.
    """
    if not (store / layout.RECIPE).exists():
        return
    stored = recipe.load(store)
    if stored.declared is not None:
        raise RecipeMismatch(
            f"recipe.declared: {store} holds features that were imported from {stored.declared.by}; add more with "
            "`g2l store import`, or use another --store"
        )
    kind = (stored.compact or {}).get("kind")
    if kind is not None:
        raise RecipeMismatch(
            f"recipe.compact: {store} is a compact copy in {kind}, this run would write float16; "
            "use the store that it was made from, and export that again"
        )
    if any(pseudonyms.is_keyed(row["fingerprint"]) for row in manifest.read_slides(store)):
        raise OptionError(
            f"--store {store}: an export under pseudonyms, to which no slide can be matched; "
            "use the store that it was made from, and export that again"
        )


def prepare_store(store: Path, options: TileOptions, of_tiles: bool = False) -> None:
    """Write the recipe's patch part and the options, or check that they are those of the store."""
    part = tiles_recipe(options) if of_tiles else patch_recipe(options)[0]
    _require_whole(store)
    if (store / layout.RECIPE).exists():
        stored = recipe.load(store)
        recipe.require_same(stored, dataclasses.replace(stored, patch=part), str(store))
        old = read_options(store, "tile")
        for name in ("max_patches", "val"):
            if name in old and old[name] != getattr(options, name):
                flag = name.replace("_", "-")
                raise OptionError(
                    f"--{flag} {getattr(options, name)}: {store} was tiled with {old[name]}; "
                    "use that, or another --store"
                )
        _require_same_qc(store, old, options)
    else:
        said = to_json(options)
        if not options.square_pixels:  # of older stores nothing says it
            del said["square_pixels"]
        if options.qc is None:
            said = {name: value for name, value in said.items() if name not in OF_QC}
        record = {name: value for name, value in said.items() if of_tiles or name not in OF_TILES}
        files.write_json(store / layout.options_file("tile"), record)
        recipe.save(store, recipe.Recipe(part))


def _require_same_qc(store: Path, old: Mapping[str, Any], options: TileOptions) -> None:
    """Raise OptionError when the patches of a store were judged by other limits, or not at all.

    Where the tiling was taken over from another store, the record says no path.
    """
    if ("qc" in old) != (options.qc is not None):
        was, now = ("without", "with") if options.qc is not None else ("with", "without")
        raise OptionError(
            f"--qc: {store} was tiled {was} it, this run is {now} it; do the same, or use another --store"
        )
    before = parse_limits(_texts(old, "qc_max"), _texts(old, "qc_min"))
    limits = parse_limits(options.qc_max, options.qc_min)
    if before != limits:
        said, was = (" ".join(map(str, of)) or "no limit of --qc" for of in (limits, before))
        raise OptionError(f"{said}: {store} was tiled with {was}; use that, or another --store")
    if options.qc is not None and old.get("qc_frame") != options.qc_frame:
        raise OptionError(
            f"--qc-frame {options.qc_frame}: {store} was tiled with {old.get('qc_frame')}; use that, or another --store"
        )


def _texts(old: Mapping[str, Any], name: str) -> list[str]:
    found = old.get(name, [])
    return [str(text) for text in found] if isinstance(found, list) else []


def _require_whole(store: Path) -> None:
    """Raise StoreError when recipe or slides table is missing beside committed views: new ones could be others."""
    for name in (layout.RECIPE, layout.SLIDES):
        if not (store / name).exists() and next(manifest.commits(store), None) is not None:
            raise StoreError(
                f"{store / name}: is missing, and the store has committed views; restore it from a copy of the store"
            )
