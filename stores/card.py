"""The card of a store: ``README.md`` as data-set hubs expect it, and ``croissant.json`` for machines.

All that comes out of the store is text by somebody else and is escaped; nothing here decides what a licence means, it
passes on what is known and says whom it binds.
"""

import hashlib
import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml

from stores import files, layout, manifest, recipe
from stores.errors import OptionError, StoreError
from stores.info import store_info
from stores.pixels import ROOT as PIXELS

README, CROISSANT = "README.md", "croissant.json"
# what a licence of a teacher asks of its features and of students; the first key that the licence begins with counts
_CONSEQUENCES = {
    "apache-2.0": "It allows any use, commercial use too, of these features and of students trained on them; keep the "
    "notice.",
    "mit": "It allows any use, commercial use too, of these features and of students trained on them; keep the notice.",
    "cc-by-nc-nd": "**Non-commercial, no derivatives.** The features are outputs of a model under these terms, and so "
    "are students trained on them: they may not be used commercially, and the owner may regard the features or a "
    "student as a derivative that must not be shared. Ask the owner before you pass on either.",
    "cc-by-nc": "**Non-commercial.** The features and students trained on them may not be used commercially.",
}
_HUB_LICENCES = ("apache-2.0", "mit", "cc-by-nc-nd-4.0", "cc-by-nc-4.0", "cc-by-4.0")
_NO_LICENCE = (
    "Nobody may assume a permission: find out the terms of the teacher before you use or share this."
)
_SIZES = ((1e3, "n<1K"), (1e4, "1K<n<10K"), (1e5, "10K<n<100K"), (1e6, "100K<n<1M"), (1e7, "1M<n<10M"))
_CROISSANT_TYPES = {
    "string": "sc:Text",
    "bool": "sc:Boolean",
    "int8": "sc:Integer",
    "int16": "sc:Integer",
    "int32": "sc:Integer",
    "uint32": "sc:Integer",
    "float": "sc:Float",
    "double": "sc:Float",
}


@dataclass(frozen=True, slots=True)
class CardOptions:
    """What a card says that the store does not know."""

    name: str
    date: str
    """Day of publication, ISO 8601."""
    creator: str = "unknown"
    licence: str | None = None
    """Of the features; the teacher's unless given."""
    url: str | None = None
    columns: tuple[str, ...] = ()
    """The user's own columns that the cohort table counts."""


def write_card(store: Path, options: CardOptions) -> list[Path]:
    """Write README.md and croissant.json into a local store.

    Raises
    ------
    OptionError
        When the store is sealed, or has no column of a name that was given.
    StoreError
        When it has no features yet.
    """
    layout.require_unsealed(store)
    about = store_info(store)
    stored = recipe.load(store)
    if stored.teacher is None or stored.policy is None:
        raise StoreError(f"{store}: has no teacher features yet, so there is nothing to describe")
    rows = manifest.read_slides(store)
    own = sorted({name for row in rows for name in row} - set(manifest.SLIDES_SCHEMA.names))
    unknown = sorted(set(options.columns) - set(own))
    if unknown:
        raise OptionError(f"--column {unknown[0]}: no such column; there are {', '.join(own) or 'none'}")
    recorded = str(files.read_options(store, "extract-teacher").get("teacher_licence") or "")
    licence = options.licence or recorded or "unknown"
    described = _Described(about, stored, rows, options, licence)
    files.write_text(store / README, described.readme())
    files.write_json(store / CROISSANT, described.croissant(store))
    return [store / README, store / CROISSANT]


def plain(value: object, limit: int = 200) -> str:
    """Foreign text for Markdown: one line, no HTML, no table or code marks.

    >>> plain("<script>a|b`c`</script>")
    '&lt;script&gt;a&#124;b&#96;c&#96;&lt;/script&gt;'
    """
    text = html.escape(" ".join(str(value).split())[:limit], quote=False)
    for mark in "|`*[]":
        text = text.replace(mark, f"&#{ord(mark)};")
    return text


def consequences(licence: str) -> str:
    """What a licence asks of those who use the features, in a sentence or two."""
    for name, meaning in _CONSEQUENCES.items():
        if licence.lower().startswith(name):
            return meaning
    return (
        _NO_LICENCE
        if licence == "unknown"
        else "Read its terms before you use or share features or students."
    )


@dataclass(frozen=True, slots=True)
class _Described:
    """All that both files are written from."""

    about: Mapping[str, Any]
    stored: recipe.Recipe
    rows: Sequence[Mapping[str, Any]]
    options: CardOptions
    licence: str

    def readme(self) -> str:
        teacher, about = self.stored.teacher, self.about
        assert teacher is not None
        sections = [
            f"---\n{yaml.safe_dump(self._front_matter(), sort_keys=False, allow_unicode=True)}---",
            f"# {plain(self.options.name)}",
            f"Features of **{plain(teacher.name)}** ({teacher.dim}-d, float16) for {about['views']:,} augmented views "
            f"of {about['patches']:,} patches from {about['slides']:,} histopathology slides of {about['patients']:,} "
            "patients: a student encoder is trained against them without the teacher in memory.",
            f"## Licence\n\nLicence of the features, as its maker says: **{plain(self.licence)}**. "
            f"{consequences(self.licence)}\n\nFeatures are outputs of the teacher, so the teacher's terms bind whoever "
            "trains on them, and the slides have terms of their own. This is no legal advice.",
            f"## What is in it\n\n{self._contents()}",
            f"## Cohort\n\n{self._cohort()}",
            *([f"## Compact copy\n\n{self._compact()}"] if self.stored.compact else []),
            f"## Statistics\n\n{self._statistics()}",
            f"## How to load it\n\n{self._loading()}",
            "## How to check it\n\n```\ng2l store verify .            # structure and every checksum\n"
            "sha256sum -c checksums.sha256  # when the store is sealed\n```",
            "Research data, not for clinical use.",
        ]
        return "\n\n".join(sections) + "\n"

    def _front_matter(self) -> dict[str, Any]:
        known = self.licence.lower()
        front: dict[str, Any] = {"license": known if known in _HUB_LICENCES else "other"}
        if front["license"] == "other":
            front["license_name"] = " ".join(self.licence.split())[:100]
        size = next((name for limit, name in _SIZES if self.about["views"] < limit), "n>10M")
        return front | {
            "pretty_name": " ".join(self.options.name.split())[:100],
            "tags": ["histopathology", "knowledge-distillation", "teacher-features", "zarr"],
            "task_categories": ["image-feature-extraction"],
            "size_categories": [size],
            "configs": [
                {"config_name": "slides", "data_files": "manifest/slides.parquet"},
                {"config_name": "views", "data_files": "manifest/views/*/*.parquet"},
            ],
        }

    def _contents(self) -> str:
        teacher, reader, patch, policy = (
            getattr(self.stored, n) for n in ("teacher", "reader", "patch", "policy")
        )
        facts = [
            ("recipe", f"`{self.stored.digest()}`"),
            ("teacher", f"{plain(teacher.name)}, weights SHA-256 `{plain(teacher.weights_sha256)}`"),
            ("embedding", f"{plain(teacher.pooling)}, computed in {plain(teacher.dtype)}"),
            ("Normalize", f"mean {list(teacher.mean)}, std {list(teacher.std)}"),
            ("patch", f"{patch.size_px} px at {patch.mpp:g} micrometres per pixel, {plain(patch.grid)} grid"),
            (
                "views",
                f"policy {plain(policy.get('name', 'own'))}, seeds {_listed(self.about['seeds'])} (0: centre crop)",
            ),
            ("reader", f"OpenSlide {plain(reader.openslide)}, OpenCV {plain(reader.opencv)}"),
            (
                "complete",
                f"{self.about['complete']:.1%} of all patches; {self.about['bad_reads']} could not be read",
            ),
            ("pixels", "kept" if self.about["bytes"][PIXELS] else "not kept: training needs the slides"),
            ("size", f"{sum(self.about['bytes'].values()) / 1e9:.3g} GB"),
        ]
        return _table(("", ""), facts)

    def _cohort(self) -> str:
        usable = [row for row in self.rows if row["status"] == manifest.OK]
        parts = []
        for column in ("split", "vendor", "mpp", *self.options.columns):
            groups: dict[str, list[Mapping[str, Any]]] = {}
            for row in usable:
                value = row[column]
                groups.setdefault(f"{value:.3g}" if isinstance(value, float) else str(value), []).append(row)
            lines = [
                (
                    plain(name),
                    len(rows),
                    len({r["patient_id"] for r in rows}),
                    sum(r["n_patches"] for r in rows),
                )
                for name, rows in sorted(groups.items())
            ]
            parts.append(_table((plain(column), "slides", "patients", "patches"), lines))
        unusable = len(self.rows) - len(usable)
        return "\n\n".join([*parts, f"{unusable} more slides could not be used."] if unusable else parts)

    def _compact(self) -> str:
        figures = {k: v for k, v in (self.stored.compact or {}).items() if isinstance(v, str | int | float)}
        return (
            "The features are stored in fewer bytes than they were extracted in; the error against the original was "
            "measured over all rows when the copy was made.\n\n"
            + _table(("figure", "value"), [(plain(k), plain(v)) for k, v in sorted(figures.items())])
        )

    def _statistics(self) -> str:
        found = self.about["statistics"]
        if found is None:
            return "None are stored."
        return _table(("per dimension, over all views", ""), [(k, f"{v:.6g}") for k, v in found.items()])

    def _loading(self) -> str:
        more = (
            " (the features of a compact copy have to be rebuilt, see its format)"
            if self.stored.compact
            else ""
        )
        return f"""```
g2l distill --store . --student hibou-l --out run{"" if self.about["bytes"][PIXELS] else " --slides SLIDES"}
```

or without g2l, with `zarr` and `pyarrow`{more}:

```python
import pyarrow.parquet as pq
import zarr

group = zarr.open_group("features.zarr", mode="r")
views = pq.read_table("manifest/views", columns=["slide_id", "seed", "row", "split", "status"])
slide_id = views["slide_id"][0].as_py()
features = group[f"{{slide_id}}/features"]  # (seed, row, dimension)
centre_crops = features[0]  # read whole seeds or chunks, never single rows
```"""

    def croissant(self, store: Path) -> dict[str, Any]:
        """Croissant 1.0 (MLCommons): the files, the slides table, the views table."""
        digest = hashlib.sha256(manifest.slides_path(store).read_bytes()).hexdigest()
        recipe_digest = hashlib.sha256((store / recipe.FILE_NAME).read_bytes()).hexdigest()
        teacher = self.stored.teacher
        assert teacher is not None
        url = self.options.url or "."
        return {
            "@context": _CONTEXT,
            "@type": "sc:Dataset",
            "name": "".join(c if c.isalnum() or c in "-_ " else "-" for c in self.options.name)[:100]
            or "store",
            "description": f"Features of {teacher.name} for augmented views of histopathology patches.",
            "conformsTo": "http://mlcommons.org/croissant/1.0",
            "license": self.licence,
            "url": url,
            "version": "1.0.0",
            "datePublished": self.options.date,
            "creator": {"@type": "sc:Organization", "name": self.options.creator},
            "citeAs": f"{self.options.name}, store recipe {self.stored.digest()}",
            "distribution": [
                _file_object("recipe", recipe.FILE_NAME, "application/json", recipe_digest),
                _file_object("slides-file", "manifest/slides.parquet", "application/x-parquet", digest),
                {
                    "@type": "cr:FileObject",
                    "@id": "store",
                    "name": "store",
                    "description": "The folder of the store.",
                    "contentUrl": url,
                    "encodingFormat": "git+https",
                    "sha256": "https://github.com/mlcommons/croissant/issues/80",
                },
                _file_set("views-files", "manifest/views/*/*.parquet", "application/x-parquet"),
                _file_set("patches-files", "manifest/patches/*.parquet", "application/x-parquet"),
                _file_set("features", "features.zarr/**", "application/vnd+zarr"),
            ],
            "recordSet": [
                _record_set(
                    "slides", "slides-file", "fileObject", manifest.SLIDES_SCHEMA, "A row per slide."
                ),
                _record_set("views", "views-files", "fileSet", manifest.VIEWS_SCHEMA, "A row per view."),
            ],
        }


def _table(head: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def _listed(seeds: Sequence[int]) -> str:
    return f"{seeds[0]} to {seeds[-1]}" if len(seeds) > 1 else ", ".join(map(str, seeds)) or "none"


def _file_object(identity: str, name: str, kind: str, sha256: str) -> dict[str, Any]:
    return {
        "@type": "cr:FileObject",
        "@id": identity,
        "name": identity,
        "contentUrl": name,
        "encodingFormat": kind,
        "sha256": sha256,
    }


def _file_set(identity: str, pattern: str, kind: str) -> dict[str, Any]:
    return {
        "@type": "cr:FileSet",
        "@id": identity,
        "name": identity,
        "containedIn": {"@id": "store"},
        "encodingFormat": kind,
        "includes": pattern,
    }


def _record_set(identity: str, source: str, kind: str, schema: pa.Schema, text: str) -> dict[str, Any]:
    fields = [
        {
            "@type": "cr:Field",
            "@id": f"{identity}/{column.name}",
            "name": column.name,
            "dataType": _CROISSANT_TYPES[str(column.type)],
            "source": {kind: {"@id": source}, "extract": {"column": column.name}},
        }
        for column in schema
    ]
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
