"""The card of a store: ``README.md`` as data-set hubs expect it, and ``croissant.json`` for machines.

Text from the store is foreign and is escaped. The card states what is known of a licence and who recorded it; it does
not interpret the licence.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from stores.errors import OptionError, StoreError
from stores.format import arithmetic, layout, manifest, recipe
from stores.format.licences import front_matter, licence_of
from stores.format.permission import permission_of, record_permission
from stores.format.terms import Fact, Terms, expression, objections, of_store
from stores.info import store_info
from stores.io import files
from stores.io.lock import only_writer
from stores.io.text import markdown, one_line
from stores.publish import croissant

MAX_GROUPS = 50
"""Rows of a cohort table; a column with more values hardly names groups."""
_SIZES = ("1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T")


@dataclass(frozen=True, slots=True)
class CardOptions:
    """What a card says that the store does not know."""

    name: str
    """Short name, as for a folder."""
    date: str
    """Day of publication, ISO 8601."""
    title: str | None = None
    """Heading; the name unless given."""
    creator: str | None = None
    licence: str | None = None
    """Of the features; the teacher's as recorded unless given."""
    url: str | None = None
    """Where the store is published."""
    cohort_column: tuple[str, ...] = ()
    """The user's own columns that the cohort table counts. None by default: they may identify somebody."""
    permission: str | None = None
    """By what right the store is given away although terms speak against it; kept in the store."""


@dataclass(frozen=True, slots=True)
class Written:
    """The files of a card."""

    files: tuple[Path, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"written": self.lines()}

    def lines(self) -> list[str]:
        """The same to read."""
        return [str(file) for file in self.files]


def write_card(store: Path, options: CardOptions) -> Written:
    """Write README.md and croissant.json into a local store; same store and options, same bytes.

    Raises
    ------
    OptionError
        When the store is sealed, a column does not exist, or the URL is not one.
    StoreError
        When it has no features yet.
    """
    layout.require_unsealed(store)
    if options.url is not None and not re.fullmatch(r"https?://[^\s<>\"|`]{1,200}", options.url):
        raise OptionError(f"--url {options.url!r}: expected http:// or https://, at most 200 characters")
    recipe.load_complete(store)
    with only_writer(store):
        return _write_card(store, options)


def _write_card(store: Path, options: CardOptions) -> Written:
    stored = recipe.load_complete(store)
    about = store_info(store)
    if not about["views"]:
        raise StoreError(f"{store}: {recipe.NO_FEATURES}")
    rows = manifest.read_slides(store)
    if not rows:
        raise StoreError(f"{store}: has views but no {manifest.slides_path(Path())}; is it complete?")
    own = sorted({name for row in rows for name in row} - set(manifest.SLIDES_SCHEMA.names))
    unknown = sorted(set(options.cohort_column) - set(own))
    if unknown:
        raise OptionError(
            f"--cohort-column {unknown[0]}: no such column; there are {', '.join(own) or 'none'}"
        )
    recorded = of_store(store, stored.teacher.name)
    if options.permission is not None:
        record_permission(store, options.permission)
    views: Counter[str] = Counter()
    for count in manifest.count_views(store).to_pylist():
        views[count["slide_id"]] += count["views"] if count["status"] == manifest.OK else 0
    measured = arithmetic.said_of(store, stored.teacher.dtype)
    card = _Card(about, stored, rows, views, options, recorded, measured, permission_of(store))
    readme = card.readme()
    described = croissant.croissant(store, card.properties(), own)
    files.write_text(store / layout.README, readme)
    files.write_json(store / layout.CROISSANT, described)
    return Written((store / layout.README, store / layout.CROISSANT))


def size_category(n_views: int) -> str:
    """A number of rows as the Hugging Face hub writes it."""
    over = sum(n_views >= 10 ** (3 + i) for i in range(len(_SIZES)))
    if over == 0:
        return f"n<{_SIZES[0]}"
    return f"{_SIZES[over - 1]}<n<{_SIZES[over]}" if over < len(_SIZES) else f"n>{_SIZES[-1]}"


@dataclass(frozen=True, slots=True)
class _Card:
    """All that both files are written from."""

    about: Mapping[str, Any]
    stored: recipe.CompleteRecipe
    rows: Sequence[Mapping[str, Any]]
    views: Mapping[str, int]
    """Views by slide."""
    options: CardOptions
    terms: Sequence[Terms]
    """Of the teacher and of what it was trained on, as the maker of the store recorded them."""
    measured: str
    """What was measured before the arithmetic was chosen; empty when nothing was."""
    permission: str | None
    """What the store records; None where it records none."""

    @property
    def recorded(self) -> str:
        """The licences of the teacher and of what it was trained on."""
        return expression(self.terms)

    @property
    def licence(self) -> str:
        return one_line(self.options.licence or self.recorded, 1000)

    @property
    def title(self) -> str:
        return one_line(self.options.title or self.options.name)

    def properties(self) -> dict[str, Any]:
        """What Croissant wants to know of the data set as a whole."""
        teacher, spdx = self.stored.teacher, licence_of(self.licence).spdx
        found: dict[str, Any] = {
            "name": one_line(self.options.name),
            "alternateName": self.title,
            "description": f"Features of {one_line(teacher.name)} for {self.about['views']} {self._views_are()} of "
            f"{self.about['patches']} histopathology patches, to train a student encoder against.",
            "license": f"https://spdx.org/licenses/{spdx}" if spdx else self.licence,
            "version": "1.0.0",
            "datePublished": self.options.date,
            "citeAs": self._citation(),
        }
        if self.options.creator:
            found["creator"] = {"@type": "sc:Organization", "name": one_line(self.options.creator)}
        return found | ({"url": self.options.url} if self.options.url else {})

    def _views_are(self) -> str:
        return "views" if self.stored.declared else "augmented views"

    def readme(self) -> str:
        teacher, about = self.stored.teacher, self.about
        compact = compact_lines(self.stored.to_json())
        url, cite = self.options.url, markdown(self._citation(), 1000)
        cite = cite.replace(markdown(url, 1000), f"<{url}>") if url else cite
        sections = [
            f"---\n{yaml.safe_dump(self._front_matter(), sort_keys=False, allow_unicode=True)}---",
            f"# {markdown(self.title)}",
            f"Features of the pathology encoder **{markdown(teacher.name)}** ({teacher.dim} numbers a view) for "
            f"{about['views']:,} {self._views_are()} of {about['patches']:,} patches from {about['patients']:,} "
            "patients. "
            "A student encoder is trained against them without the teacher in memory.",
            f"## May I use it?\n\n{self._licence()}",
            f"## What is in it?\n\n{self._contents()}",
            f"## Who is in it?\n\n{self._cohort()}",
            *([f"## What did the compact copy lose?\n\n{compact}"] if compact else []),
            f"## What do the features look like?\n\n{_statistics(self._known_statistics())}",
            f"## How do I load it?\n\n{self._loading()}",
            f"## How do I check my copy?\n\n{_CHECKING}",
            f"## How do I cite it?\n\n{cite}\n\nCite the paper of the teacher as well.",
        ]
        return "\n\n".join(sections) + "\n"

    def _front_matter(self) -> dict[str, Any]:
        return front_matter(self.licence) | {
            "pretty_name": self.title,
            "tags": ["histopathology", "knowledge-distillation", "teacher-features", "zarr"],
            "task_categories": ["image-feature-extraction"],
            "size_categories": [size_category(self.about["views"])],
            "configs": [
                {"config_name": "slides", "data_files": layout.SLIDES},
                {"config_name": "views", "data_files": f"{layout.VIEWS}/*/*.parquet"},
            ],
        }

    def _licence(self) -> str:
        recorded, stated = licence_of(self.recorded), licence_of(self.licence)
        columns = [("of the teacher, as recorded by the maker of this store", self.recorded, recorded)]
        if stated.tag != recorded.tag:
            columns.append(("of the features, as stated for this card", self.licence, stated))
        parts = [
            "Features are outputs of the teacher: the teacher's terms bind everyone who trains on them.",
            _table(
                ("licence", *(whose for whose, _, _ in columns)),
                [
                    ("name", *(f"**{markdown(name)}**" for _, name, _ in columns)),
                    ("commercial use", *(licence.commercial_use for _, _, licence in columns)),
                    (
                        "passing on of changed material",
                        *(licence.changed_material for _, _, licence in columns),
                    ),
                    ("outputs of a model", *(licence.outputs for _, _, licence in columns)),
                    ("text", *(licence.source for _, _, licence in columns)),
                ],
            ),
            "What was recorded, one line for each encoder whose terms bind: the teacher, and every encoder on whose "
            "outputs it was trained.",
            terms_table(self.terms) if self.terms else "Nothing: the teacher has random weights.",
        ]
        if len(columns) > 1:
            parts.append("The licence of the features cannot permit what the teacher's terms do not.")
        against_it = objections(self.terms) if self.permission is not None else []
        if against_it:
            listed = "\n".join(f"- {markdown(text, 1000)}" for text in against_it)
            parts.append(
                f"These terms speak against passing on what is made of the teacher:\n\n{listed}\n\nIt is published on "
                f'this ground, as its maker states: "{markdown(self.permission, 1000)}"'
            )
        parts.append(
            "Unknown means that this card does not know it, not that anything is permitted. Read the licence itself: "
            "this card may be wrong, and it is not legal advice. The slides have terms of their own. Research data, "
            "not for clinical use."
        )
        return "\n\n".join(parts)

    def _contents(self) -> str:
        stored = self.stored
        teacher, patch, policy, reader = stored.teacher, stored.patch, stored.policy, stored.reader
        drawn = ", ".join(f"{name} {value}" for name, value in policy.items() if name != "name")
        seeds, about = self.about["seeds"], self.about
        facts = [
            ("recipe", f"`{self.stored.digest()}`"),
            ("teacher", markdown(teacher.name)),
            ("weights, SHA-256", markdown(teacher.weights_sha256)),
            *self._declared(),
            ("feature", f"{teacher.dim} numbers, pooling {markdown(teacher.pooling)}"),
            *(
                [
                    (
                        "tokens",
                        f"{kept.count} of {kept.grid}x{kept.grid} patch tokens a view, {kept.dim} numbers each",
                    )
                ]
                if (kept := self.stored.tokens) is not None
                else []
            ),
            *(
                [("attention", f"of the class token to {looks.grid}x{looks.grid} patches of a view")]
                if (looks := self.stored.attention) is not None
                else []
            ),
            (
                "arithmetic",
                f"{markdown(teacher.dtype)}, stored in {'int8' if self.stored.compact else 'float16'}"
                + (f"; {self.measured}" if self.measured else ""),
            ),
            ("teacher's Normalize", f"mean {list(teacher.mean)}, std {list(teacher.std)}"),
            ("teacher's view", f"{teacher.image_px} px"),
            ("patch", f"{patch.size_px} px at {patch.mpp:g} mpp, {markdown(patch.grid)} grid"),
            ("tissue", "not known" if stored.declared else f"at least {patch.min_tissue:g} of a patch"),
            ("policy", f"{markdown(policy.get('name', 'own'))}: {markdown(drawn, 600)}"),
            ("seeds", f"{len(seeds)}: {_listed(seeds)}" + (" (0 is the centre crop)" if 0 in seeds else "")),
            ("reader", f"OpenSlide {markdown(reader.openslide)}, OpenCV {markdown(reader.opencv)}"),
            (
                "rules",
                f"{markdown(reader.resampling)}, {markdown(reader.rendering)}, {markdown(reader.colour)}",
            ),
            ("complete", f"{about['complete']:.1%} of patches times seeds; {about['bad_reads']:,} bad reads"),
            ("pixels", "kept" if about["bytes"][layout.PIXELS] else "not kept: training needs the slides"),
            *((name, f"{size:,} bytes") for name, size in about["bytes"].items() if size),
        ]
        if self.options.url:
            facts.append(("published at", f"<{self.options.url}>"))
        return _table(("", ""), facts)

    def _known_statistics(self) -> Mapping[str, Any]:
        """Without the share of tissue where features were imported: nobody measured it."""
        found = self.about["statistics"]
        if self.stored.declared is None:
            return dict(found)
        return {name: value for name, value in found.items() if not name.startswith("tissue")}

    def _declared(self) -> list[tuple[str, str]]:
        """What is not known of features that were imported."""
        about = self.stored.declared
        if about is None:
            return []
        return [
            (
                "declared",
                f"imported from files of {markdown(about.by)}, not computed by g2l: that these are features of this "
                "teacher for these pixels is what the importer declared. Its weights, arithmetic and tissue rule are "
                "not known. `g2l store verify --slides SLIDES --teacher TEACHER` proves a sample",
            ),
            (
                "views",
                f"patches of {about.cut_px} px as {markdown(about.by)} cuts them, then {markdown(about.filter)} to the "
                f"size below (Pillow {markdown(about.pillow)})",
            ),
        ]

    def _cohort(self) -> str:
        usable = [row for row in self.rows if row["status"] == manifest.OK]
        parts = []
        for column in ("split", "vendor", "mpp", *self.options.cohort_column):
            groups: dict[str, list[Mapping[str, Any]]] = {}
            for row in usable:
                groups.setdefault(_group(row[column]), []).append(row)
            lines = [(name, *self._counts(groups[name])) for name in sorted(groups)[:MAX_GROUPS]]
            if len(groups) > MAX_GROUPS:
                rest = [row for name in sorted(groups)[MAX_GROUPS:] for row in groups[name]]
                lines.append((f"{len(groups) - MAX_GROUPS} more values", *self._counts(rest)))
            parts.append(
                _table(
                    (markdown(column), "slides", "patients", "patches", "views"),
                    [*lines, ("all", *self._counts(usable))],
                )
            )
        by_status = Counter(one_line(row["status"]) for row in self.rows if row["status"] != manifest.OK)
        if by_status:
            listed = ", ".join(f"{markdown(name)} {count:,}" for name, count in sorted(by_status.items()))
            parts.append(f"Not in these tables: slides that could not be used ({listed}).")
        return "\n\n".join(parts)

    def _counts(self, rows: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
        patients = len({row["patient_id"] for row in rows})
        patches = sum(row["n_patches"] for row in rows)
        return tuple(
            f"{n:,}" for n in (len(rows), patients, patches, sum(self.views[r["slide_id"]] for r in rows))
        )

    def _loading(self) -> str:
        slides = "" if self.about["bytes"][layout.PIXELS] else " --slides SLIDES"
        rebuild = _FROM_INT8 if self.stored.compact else '    targets = slide["features"][seed][rows]\n'
        return _LOADING.format(slides=slides, seed=self.about["seeds"][0], rebuild=rebuild)

    def _citation(self) -> str:
        parts = [
            self.options.creator or "Unknown maker",
            f"{self.title} ({self.options.date[:4]})",
            self.options.url,
        ]
        return ". ".join(one_line(part) for part in parts if part) + f". Store recipe {self.stored.digest()}."


def terms_table(terms: Iterable[Terms]) -> str:
    """Terms as a Markdown table, each fact with its source and the day it was read."""

    def cell(fact: Fact) -> str:
        origin = ", ".join(markdown(text, 300) for text in (fact.source, fact.date) if text)
        return markdown(fact.says, 500) + (f" ({origin})" if origin else "")

    lines = [(markdown(t.encoder), *map(cell, (t.licence, t.access, t.outputs))) for t in terms]
    return _table(("encoder", "licence", "access", "outputs of the model"), lines)


def compact_lines(recipe_json: Mapping[str, Any]) -> str:
    """What a compact copy says of its error, as a table; empty where the features are as extracted."""
    found = recipe_json.get("compact")
    if not isinstance(found, Mapping):
        return ""
    figures = [
        (markdown(k), markdown(v)) for k, v in sorted(found.items()) if isinstance(v, str | int | float)
    ]
    return (
        "The features are stored in fewer bytes than they were extracted in. Measured when the copy was made:\n\n"
        + (_table(("figure", "value"), figures))
    )


def _statistics(found: Mapping[str, Any]) -> str:
    named = [
        (name.replace("_", " "), f"{value:,.4g}" if isinstance(value, float) else f"{value:,}")
        for name, value in found.items()
    ]
    return (
        "Mean and standard deviation (std) of each dimension over all views; a constant dimension has a std below 1e-6."
        " Tissue: the share of a patch, 5th, 50th and 95th percentile.\n\n"
        + (_table(("figure", "value"), named))
    )


def _group(value: object) -> str:
    if value is None or value == "":
        return "not known"
    return f"{value:.3g}" if isinstance(value, float) else markdown(value)


def _table(head: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def _listed(seeds: Sequence[int]) -> str:
    whole = len(seeds) > 2 and seeds[-1] - seeds[0] == len(seeds) - 1
    return f"{seeds[0]} to {seeds[-1]}" if whole else ", ".join(map(str, seeds))


_FROM_INT8 = """    mean, std = slide["standard"][:]  # int8 of a compact copy: standardised, then scaled by row
    std[std <= 0] = 1
    targets = mean + std * slide["scales"][seed][rows, None] * slide["features"][seed][rows]
"""
_LOADING = """In this folder:

```
g2l distill --store . --student hibou-l --out run{slides}
```

or without g2l, with `zarr` and `pyarrow`:

```python
import pyarrow.compute as pc
import pyarrow.parquet as pq
import zarr

seed = {seed}
group = zarr.open_group("features.zarr", mode="r")
views = pq.read_table("manifest/views", columns=["slide_id", "row", "seed", "split", "status"])
views = views.filter((pc.field("status") == "ok") & (pc.field("seed") == seed))
for slide_id in views["slide_id"].unique().to_pylist():
    rows = views.filter(pc.field("slide_id") == slide_id)["row"].to_numpy()
    slide = group[slide_id]  # read whole seeds or chunks, never single rows
{rebuild}    print(slide_id, targets.shape)  # (patch, dimension)
```

Only views that a table in `manifest/views` lists with status `ok` exist. `croissant.json` describes the tables to
[mlcroissant](https://github.com/mlcommons/croissant)."""
_CHECKING = """```
g2l store verify .             # structure, and every checksum
sha256sum -c checksums.sha256  # without g2l, where the store is sealed
```"""
