"""``croissant.json`` of a store: Croissant 1.0 (https://docs.mlcommons.org/croissant/docs/croissant-spec.html).

Files are named relative to ``croissant.json``, so that a copy of the store on any disk is read without a download.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from stores.format import layout, manifest, recipe
from stores.io.text import one_line
from stores.verify.seal import sha256_of

_DATA_TYPES = {"string": "sc:Text", "bool": "sc:Boolean", "float": "sc:Float", "double": "sc:Float"}
_PARQUET, _ZARR, _JSON = "application/x-parquet", "application/vnd+zarr", "application/json"
_FEATURES_TEXT = "Zarr 3: features[seed, row, dimension] by slide, and tokens[seed, row, token, dimension]."
_ATTENTION_TEXT = " Also attention[seed, row, patch of the view]."
"""Said where there is some: descriptions that were written before stores could have it stay as they are."""
_RECIPE_TEXT = "What decides the value of a feature: teacher, patch, policy, reader."


def croissant(store: Path, about: dict[str, Any], own_columns: Sequence[str]) -> dict[str, Any]:
    """JSON-LD of a local store.

    Parameters
    ----------
    about : dict
        The data set's own properties, such as ``name`` and ``license``.
    own_columns : sequence of str
        Columns of the slides table beyond the format.
    """
    own = ((f"own-{i}", name, pa.string()) for i, name in enumerate(own_columns))
    slides = [*_columns(manifest.SLIDES_SCHEMA), *own]
    distribution = [
        _file(store, "recipe", layout.RECIPE, _JSON, _RECIPE_TEXT),
        _file(store, "slides-table", layout.SLIDES, _PARQUET, "A row per slide, usable or not."),
        _files(
            "patches-tables", f"{layout.PATCHES}/*.parquet", _PARQUET, "A file per slide, a row per patch."
        ),
        _files("views-tables", f"{layout.VIEWS}/*/*.parquet", _PARQUET, "A row per view that exists."),
        _files(
            "features",
            f"{layout.FEATURES}/*",
            _ZARR,
            _FEATURES_TEXT + (_ATTENTION_TEXT if recipe.load(store).attention is not None else ""),
        ),
    ]
    if (store / layout.PIXELS).is_dir():
        distribution.append(
            _files("pixels", f"{layout.PIXELS}/*", _ZARR, "Zarr 3: RGB patches [row, y, x, 3] by slide.")
        )
    return {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        **about,
        "distribution": distribution,
        "recordSet": [
            _record_set("slides", "fileObject", "slides-table", slides, "A row per slide."),
            _record_set(
                "views", "fileSet", "views-tables", _columns(manifest.VIEWS_SCHEMA), "A row per view."
            ),
        ],
    }


def _columns(schema: pa.Schema) -> list[tuple[str, str, pa.DataType]]:
    return [(field.name, field.name, field.type) for field in schema]


def _file(store: Path, identity: str, name: str, kind: str, text: str) -> dict[str, Any]:
    return {
        "@type": "cr:FileObject",
        "@id": identity,
        "name": identity,
        "description": text,
        "contentUrl": name,
        "encodingFormat": kind,
        "sha256": sha256_of(store, name),
    }


def _files(identity: str, pattern: str, kind: str, text: str) -> dict[str, Any]:
    return {
        "@type": "cr:FileSet",
        "@id": identity,
        "name": identity,
        "description": text,
        "encodingFormat": kind,
        "includes": pattern,
    }


def _record_set(
    identity: str, kind: str, source: str, columns: Iterable[tuple[str, str, pa.DataType]], text: str
) -> dict[str, Any]:
    fields = []
    for key, name, data_type in columns:
        plain = re.fullmatch(r"(?!own-)[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name) is not None
        fields.append(
            {
                "@type": "cr:Field",
                "@id": f"{identity}/{name if plain else key}",
                "name": one_line(name),
                "dataType": _DATA_TYPES.get(str(data_type), "sc:Integer"),
                "source": {kind: {"@id": source}, "extract": {"column": name}},
            }
        )
    return {"@type": "cr:RecordSet", "@id": identity, "name": identity, "description": text, "field": fields}


_CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileProperty": "cr:fileProperty",
    "fileObject": "cr:fileObject",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
