"""Broken and hostile stores, one for each kind of fault, with the finding that a reader must give.

::

    python -m tests.conformance.hostile OUT

writes ``OUT/<kind>/store`` and ``OUT/expected.json``: for each kind the findings (file, kind of finding, a pattern of
the text), and whether a reader of rows must refuse the store. They are test data for `stores.verify`, and for the
readers of others. A store is damaged in one respect only: its checksums are right unless they are the fault.
"""

import argparse
import dataclasses
import json
import os
import shutil
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import google_crc32c
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from stores.export.export import ExportOptions, export
from stores.format import arrays, attention, features, layout, manifest, recipe, tokens
from stores.format.chunks import write_chunk
from stores.io import files
from stores.verify.seal import seal
from tests.conformance import whole
from tests.conformance.whole import SLIDES, Slide

Table: TypeAlias = Any
Finding = tuple[str, str, str]
"""File, kind of finding, pattern of its text."""
BASES = ("whole", "attention", "int8", "lossless", "packed")


@dataclass(frozen=True, slots=True)
class Kind:
    """A way to be wrong."""

    name: str
    base: str
    """The store that is damaged: one of `BASES`, or ``none``: the function writes its own."""
    damage: Callable[[Path], None]
    findings: tuple[Finding, ...]
    rows: bool
    """Whether who reads all rows must refuse it."""
    posix: bool
    """Whether the file system must have links and pipes."""


KINDS: dict[str, Kind] = {}


def kind(
    name: str,
    *findings: Finding,
    rows: bool = False,
    base: str = "whole",
    posix: bool = False,
) -> Callable[[Callable[[Path], None]], Callable[[Path], None]]:
    """Enter a function that damages a store."""

    def enter(damage: Callable[[Path], None]) -> Callable[[Path], None]:
        assert name not in KINDS, name
        KINDS[name] = Kind(name, base, damage, findings, rows, posix)
        return damage

    return enter


RECIPE, SLIDES_FILE = "recipe.json", "manifest/slides.parquet"
PATCHES_A, RECORD_A = "manifest/patches/a.parquet", "manifest/views/a/00000-s0000-0001.parquet"
A = "features.zarr/a"
CHUNK_A, STATS_A = f"{A}/features/c/1/0/0", f"{A}/stats/c/1/0/0/0"
PIXELS_A = "pixels.zarr/a/c/0/0/0/0"
ATTENTION_A = f"{A}/attention/c/1/0/0"


# recipe


def recipe_text(change: Callable[[str], str]) -> Callable[[Path], None]:
    def damage(store: Path) -> None:
        path = store / RECIPE
        path.write_text(change(path.read_text()))

    return damage


def recipe_value(part: str, **changes: Any) -> Callable[[Path], None]:
    """Other values, under a right digest."""

    def damage(store: Path) -> None:
        stored = recipe.load(store)
        inner = dataclasses.replace(getattr(stored, part), **changes)
        recipe.save(store, dataclasses.replace(stored, **{part: inner}))

    return damage


def without_digest(text: str) -> str:
    return text.replace(text[text.index('  "digest"') : text.index('  "patch"')], "")


for _name, _change, _text in (
    ("recipe-empty", lambda text: "", "not readable JSON"),
    ("recipe-half", lambda text: text[: len(text) // 2], "not readable JSON"),
    ("recipe-null", lambda text: "null", "a recipe is a JSON object"),
    ("recipe-nan", lambda text: without_digest(text).replace("0.25", "NaN"), "not finite"),
    ("recipe-infinite", lambda text: without_digest(text).replace("0.25", "1e400"), "not finite"),
    ("recipe-deep", lambda text: '{"schema": ' + "[" * 100_000, "not readable JSON"),
    ("recipe-nested", lambda text: '{"schema": ' + "[" * 400 + "]" * 400 + "}", "nested more than (16|64) deep"),
    ("recipe-newer-schema", lambda text: text.replace('"schema": 1', '"schema": 2'), "schema 2"),
    ("recipe-unknown-field", lambda text: text.replace('"schema"', '"a": 1, "schema"'), "unknown field 'a'"),
    ("recipe-lacks-a-field", lambda text: without_digest(text).replace('"grid"', '"g"'), "expected the fields"),
    ("recipe-other-digest", lambda text: text.replace("0.25", "0.26"), "its digest differs"),
    ("recipe-without-digest", without_digest, "carries no digest"),
    ("recipe-rewritten", lambda text: text.replace("  ", " "), "not written as a recipe is"),
):  # fmt: skip
    kind(_name, (RECIPE, "file", _text), rows=_name not in ("recipe-without-digest", "recipe-rewritten"))(
        recipe_text(_change)
    )

_PARTS: tuple[tuple[str, str, dict[str, Any], str], ...] = (
    ("recipe-mpp-below-0", "patch", {"mpp": -0.5}, "patch.mpp -0.5; allowed is a number above 0"),
    ("recipe-min-tissue", "patch", {"min_tissue": -1.0}, "patch.min_tissue -1; allowed is 0 to 1"),
    ("recipe-std-0", "teacher", {"std": (0.0, 1.0, 1.0)}, "teacher.mean .* those of std above 0"),
    ("recipe-weights", "teacher", {"weights_sha256": "x"}, "weights_sha256 'x'; allowed are 64 hex"),
    ("recipe-shrink", "teacher", {"shrink": 3}, "teacher.shrink 3; allowed are divisors of teacher.image_px 16"),
    ("recipe-shrink-0", "teacher", {"shrink": 0}, "teacher.shrink 0; allowed are divisors of teacher.image_px 16"),
    ("recipe-dtype", "teacher", {"dtype": "int4"}, "teacher.dtype 'int4'; allowed: float32"),
    ("recipe-views-of-other-size", "teacher", {"image_px": 18}, "policy.crop_px 16, but teacher.image_px 18"),
)  # fmt: skip
for _name, _part, _parts, _text in _PARTS:
    _more = () if _name != "recipe-mpp-below-0" else tuple(
        (SLIDES_FILE, "file", "patches at 0.5 mpp, the recipe says -0.5") for _ in "abcd"
    )  # fmt: skip
    kind(_name, (RECIPE, "file", _text), *_more, rows=True)(recipe_value(_part, **_parts))


@kind("recipe-policy", (RECIPE, "file", "policy small: hflip_p is 7"), rows=True)
def _(store: Path) -> None:
    stored = recipe.load(store)
    recipe.save(store, dataclasses.replace(stored, policy={**(stored.policy or {}), "hflip_p": 7}))


@kind("recipe-other-policy", *((f"manifest/views/{s}/", "view", f"seed {seed} .* not those that the seed draws")
                               for s in "abc" for seed in "01"))  # fmt: skip
def _(store: Path) -> None:
    stored = recipe.load(store)
    recipe.save(store, dataclasses.replace(stored, policy={**(stored.policy or {}), "jitter_p": 0.51}))


@kind("recipe-missing", (RECIPE, "file", "is missing"), rows=True)
def _(store: Path) -> None:
    (store / RECIPE).unlink()


@kind(
    "recipe-huge",
    (RECIPE, "file", "larger than"),
    (RECIPE, "file", "no file of this kind has more"),
    rows=True,
)
def _(store: Path) -> None:
    os.truncate(store / RECIPE, 1 << 30)


@kind("recipe-without-tokens", *((f"features.zarr/{s}/", "stray", "tokens, which the recipe does not have") for s in
                                 "aaaaaabbbbbbcccccc"))  # fmt: skip
def _(store: Path) -> None:
    recipe.save(store, dataclasses.replace(recipe.load(store), tokens=None))


@kind("recipe-without-attention", *((f"features.zarr/{s}/attention/", "stray", "attention, which the recipe does not")
                                    for s in "aaabbbccc"), base="attention")  # fmt: skip
def _(store: Path) -> None:
    recipe.save(store, dataclasses.replace(recipe.load(store), attention=None))


@kind("recipe-with-attention", *((f"features.zarr/{s}/attention/zarr.json", "metadata", "no such array")
                                 for s in "abc"), rows=True)  # fmt: skip
def _(store: Path) -> None:
    recipe.save(store, dataclasses.replace(recipe.load(store), attention=whole.ATTENTION))


for _name, _about, _text in (
    ("grid-0", {"grid": 0, "rule": "attention-1"}, "a grid of side 0; allowed is 1 to"),
    ("beyond-memory", {"grid": 10**6, "rule": "attention-1"}, "a grid of side 1000000; allowed is 1 to"),
    ("without-rule", {"grid": 4}, "attention: expected the fields grid, rule"),
    ("a-number", 7, "attention: expected the fields grid, rule"),
):
    kind(f"recipe-attention-{_name}", (RECIPE, "file", _text), rows=True)(
        recipe_text(lambda text, about=_about: without_digest(text).replace(  # type: ignore[misc]
            "{", f'{{"attention": {json.dumps(about)},', 1))
    )  # fmt: skip


# slides table


def slides(change: Callable[[dict[str, dict[str, Any]]], None]) -> Callable[[Path], None]:
    """Change rows of the slides table, by slide id."""

    def damage(store: Path) -> None:
        rows = {row["slide_id"]: row for row in manifest.read_slides(store)}
        change(rows)
        manifest.write_slides(store, list(rows.values()))

    return damage


def row_value(slide: str, /, **values: Any) -> Callable[[Path], None]:
    return slides(lambda rows: rows[slide].update(values))


def write_table(path: Path, table: Table) -> None:
    """Any table, with a right checksum."""
    manifest.write_table(path, table)


def read_table(path: Path) -> Table:
    return pa.parquet.ParquetFile(path).read()


_ROWS: tuple[tuple[str, str, dict[str, Any], str], ...] = (
    ("patient-in-two-splits", "c", {"patient_id": "p-a"}, "patient p-a is in split val here and in train as slide a"),
    ("slide-in-two-splits", "c", {"fingerprint": f"sha256:{'a' * 64}"}, "slide file .* is in split val here"),
    ("split-unknown", "d", {"split": "all"}, "split 'all'; allowed: train, val, test"),
    ("status-unknown", "d", {"status": "fine"}, "status 'fine'; allowed: ok, failed, no_tissue"),
    ("no-tissue-with-patches", "d", {"n_patches": 5}, "status no_tissue with 5 patches"),
    ("mpp-nan", "d", {"mpp": float("nan")}, "mpp nan; allowed is a number above 0"),
    ("mpp-below-0", "d", {"mpp": -0.25}, "mpp -0.25; allowed is a number above 0"),
    ("mpp-infinite", "d", {"mpp": float("inf")}, "mpp inf; allowed is a number above 0"),
    ("width-0", "d", {"width_px0": 0}, "width_px0 0; allowed is a number above 0"),
    ("mpp-source-unknown", "d", {"mpp_source": "guess"}, "mpp_source 'guess'; allowed: slide, option, csv"),
    ("patch-mpp-of-another-size", "a", {"patch_mpp": 0.49}, "patch_mpp 0.49, but 40 level-0 pixels at 0.25 mpp"),
    ("patch-mpp-of-another-recipe", "a", {"mpp": 0.5, "patch_mpp": 1.0}, "patches at 1 mpp, the recipe says 0.5"),
    ("negative-patches", "a", {"n_patches": -1}, "with -1 patches"),
    ("patches-beyond-memory", "a", {"n_patches": 2**31 - 1}, "with 2147483647 patches"),
    ("slide-id-is-a-path", "d", {"slide_id": "../../evil"}, "slide id '../../evil'"),
    ("slide-id-is-empty", "d", {"slide_id": ""}, "slide id ''"),
    ("listed-twice", "d", {"slide_id": "a"}, "slide a is listed twice"),
)  # fmt: skip
for _name, _slide, _row, _text in _ROWS:
    _others = tuple(
        ("manifest/views/c/", "view", f"seed {seed} .* not those that the seed draws")
        for seed in "01" if _name == "slide-in-two-splits"
    )  # fmt: skip
    kind(_name, (SLIDES_FILE, "file", _text), *_others, rows=True)(row_value(_slide, **_row))

kind(
    "same-picture-twice",
    (SLIDES_FILE, "file", "slide b: is the same picture as slide a .*, both in split train; leave one out"),
    *(("manifest/views/b/", "view", f"seed {seed} .* not those that the seed draws") for seed in "01"),
)(row_value("b", fingerprint=f"sha256:{'a' * 64}"))

kind(
    "slide-failed-beside-its-files",
    (SLIDES_FILE, "stray", "does not list this slide as usable"),
    rows=True,
)(row_value("b", status="failed", n_patches=0))


@kind("slides-missing", (SLIDES_FILE, "file", "is missing"), rows=True)
def _(store: Path) -> None:
    (store / SLIDES_FILE).unlink()


@kind(
    "slides-emptied",
    *((SLIDES_FILE, "stray", "does not list this slide as usable") for _ in "abc"),
    rows=True,
)
def _(store: Path) -> None:
    manifest.write_slides(store, [])


@kind("slide-row-removed", (SLIDES_FILE, "stray", "slide b: does not list"), rows=True)
def _(store: Path) -> None:
    rows = [row for row in manifest.read_slides(store) if row["slide_id"] != "b"]
    manifest.write_slides(store, rows)


def whole_slides(change: Callable[[Table], Table]) -> Callable[[Path], None]:
    def damage(store: Path) -> None:
        write_table(store / SLIDES_FILE, change(read_table(store / SLIDES_FILE)))

    return damage


def replaced(name: str, values: Any) -> Callable[[Table], Table]:
    def change(table: Table) -> Table:
        return table.set_column(table.column_names.index(name), name, values)

    return change


for _name, _alter, _text in (
    ("slides-not-sorted", lambda t: t.take([3, 2, 1, 0]), "is not sorted by slide_id"),
    ("own-column-of-numbers", replaced("site", pa.array([1, 2, 3, 4])), "column 'site' holds 1; own columns are text"),
    ("slides-lack-a-column", lambda t: t.drop_columns(["mpp"]), "column mpp .double. is missing"),
    ("slides-column-of-another-type", replaced("n_patches", pa.array([40.0, 33.0, 5.0, 0.0])), "of another type"),
    ("slides-column-twice", lambda t: t.append_column("mpp", t["mpp"]), "column mpp .double. is missing or of another"),
    ("split-is-null", replaced("split", pa.array(["train", "train", None, "train"])), "column split has 1 empty"),
):  # fmt: skip
    kind(_name, (SLIDES_FILE, "file", _text), *(
        (SLIDES_FILE, "file", f"holds {i}; own columns") for i in (2, 3, 4) if _name == "own-column-of-numbers"
    ), rows=True)(whole_slides(_alter))  # fmt: skip


def at_byte(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def damage(store: Path) -> None:
        (store / name).write_bytes(change((store / name).read_bytes()))

    return damage


def flip(raw: bytes) -> bytes:
    return raw[:40] + bytes([raw[40] ^ 1]) + raw[41:]


def half(raw: bytes) -> bytes:
    return raw[: len(raw) // 2]


for _file, _short, _kind in (
    (SLIDES_FILE, "slides", "file"),
    (PATCHES_A, "patches", "patches"),
    (RECORD_A, "record", "commit"),
):
    for _fault, _bytes, _text in (
        ("flipped", flip, "its checksum differs"),
        ("half", half, "not a readable Parquet file|its checksum differs"),
        ("emptied", lambda raw: b"", "not a readable Parquet file"),
        ("text", lambda raw: b"PAR1" * 100, "not a readable Parquet file"),
    ):
        _also = ((_file, "file", "carries no checksum"),) if _fault in ("half", "text") else ()
        kind(f"{_short}-file-{_fault}", (_file, _kind, _text), *_also, rows=True)(at_byte(_file, _bytes))


# patches and coordinates


def made(*changed: Slide) -> Callable[[Path], None]:
    """Slides that are other ones, in all tables and arrays alike."""

    def damage(store: Path) -> None:
        of_id = {slide.slide_id: slide for slide in SLIDES} | {slide.slide_id: slide for slide in changed}
        whole.make(store, tuple(of_id.values()))

    return damage


for _name, _changed, _text in (
    ("patch-outside", Slide("c", 5, "val", moved={4: (400, 40)}), "x_px0 from 0 to 400: a patch of 40 pixels lies out"),
    ("patch-before-0", Slide("c", 5, "val", moved={4: (0, -40)}), "y_px0 from -40 to .* lies outside of the slide"),
    ("patch-off-the-grid", Slide("c", 5, "val", moved={4: (41, 80)}), "x_px0 41 is not on the grid of 40 pixels"),
    ("patch-twice", Slide("c", 5, "val", moved={4: (0, 0)}), "lists a patch twice"),
    ("tissue-nan", Slide("c", 5, "val", tissue={2: float("nan")}), "tissue nan of 1 patches; allowed is 0.25 to 1"),
    ("tissue-above-1", Slide("c", 5, "val", tissue={2: 1.5}), "tissue 1.5 of 1 patches"),
    ("tissue-too-small", Slide("c", 5, "val", tissue={2: 0.125}), "tissue 0.125 of 1 patches; allowed is 0.25 to 1"),
):  # fmt: skip
    _also = ()
    if _name == "tissue-nan":  # NaN is not equal to itself
        _also = (("manifest/views/c/", "commit", "tissue differs"),)
    kind(_name, ("manifest/patches/c.parquet", "patches", _text), *_also, rows=True, base="none")(
        made(_changed)
    )


@kind("patches-missing", (PATCHES_A, "patches", "no such file"), rows=True)
def _(store: Path) -> None:
    (store / PATCHES_A).unlink()


@kind("patches-of-another-number", ("manifest/patches/c.parquet", "patches", "5 patches, slides.parquet says 6"),
      rows=True)  # fmt: skip
def _(store: Path) -> None:
    row_value("c", n_patches=6)(store)


@kind(
    "slide-smaller-than-its-patches",
    (PATCHES_A, "patches", "lies outside of the slide of 100 pixels"),
    rows=True,
)
def _(store: Path) -> None:
    row_value("a", width_px0=100)(store)


@kind("coords-differ", (f"{A}/coords/c/0/0", "coords", "differs from the patches"), rows=True)
def _(store: Path) -> None:
    coords = features.read_coords(store, "a").copy()
    coords[7, 0] += 40
    rewrite(store, f"{A}/coords", (0, 0), coords, 0)


@kind("coords-missing", (f"{A}/coords/c/0/0", "coords", "is missing"), rows=True)
def _(store: Path) -> None:
    (store / A / "coords/c/0/0").unlink()


# commit records


def record(change: Callable[[Table], Table], slide_id: str = "a") -> Callable[[Path], None]:
    def damage(store: Path) -> None:
        commit = next(manifest.commits(store, slide_id))
        write_table(commit.path, change(commit.read()))

    return damage


def column(name: str, change: Callable[[list[Any]], list[Any]]) -> Callable[[Table], Table]:
    def alter(table: Table) -> Table:
        values = pa.array(change(table[name].to_pylist()), table[name].type)
        return table.set_column(table.column_names.index(name), name, values)

    return alter


def first(value: Any) -> Callable[[list[Any]], list[Any]]:
    return lambda values: [value, *values[1:]]


def at(place: int, value: Any) -> Callable[[list[Any]], list[Any]]:
    return lambda values: [*values[:place], value, *values[place + 1 :]]


for _name, _alter, _text in (
    ("record-x", column("x_px0", first(7)), "x_px0 differs from that of the patches"),
    ("record-tissue", column("tissue", first(0.5)), "tissue differs from that of the patches"),
    ("record-of-another-slide", column("slide_id", first("b")), "slide_id 'b', expected 'a'"),
    ("record-id-is-a-path", column("slide_id", lambda v: ["../../evil"] * len(v)), "slide_id '../../evil'"),
    ("record-of-another-split", column("split", first("val")), "split 'val', expected 'train'"),
    ("record-crc-is-null", column("view_crc32", first(None)), "view_crc32 is empty where status is ok"),
    ("record-crc-of-a-bad-read", column("view_crc32", at(3, 5)), "view_crc32 is empty where status is ok, or the oth"),
    ("record-not-in-order", lambda t: t.take(list(range(t.num_rows))[::-1]), "rows are not in order of seed"),
    ("record-row-twice", column("row", at(1, 0)), "rows are not in order of seed, then row, each once"),
    ("record-row-beyond", column("row", at(39, 40)), "lists rows 0-40, the block has 0-39"),
    ("record-row-below-0", column("row", first(-1)), "lists rows -1-39, the block has 0-39"),
    ("record-of-one-seed", column("seed", lambda v: [0] * len(v)), r"lists seeds \[0\], its name says \[0, 1\]"),
    ("record-of-seeds-apart", lambda t: t.slice(0, t.num_rows - 1), "its seeds list different rows"),
    ("record-without-rows", lambda t: t.slice(0, 0), "is of a block that the slide does not have, or empty"),
    ("record-null", column("hue", first(None)), "column hue has 1 empty values"),
    ("record-lacks-a-column", lambda t: t.drop_columns(["sigma"]), "column sigma .float. is missing"),
    ("record-type", replaced("row", pa.array([0.0] * 80)), "column row .int32. is missing or of another type"),
):  # fmt: skip
    kind(_name, (RECORD_A, "commit", _text), rows=True)(record(_alter))


@kind("record-status", (RECORD_A, "commit", "status 'fine'"), (RECORD_A, "commit", "view_crc32 is empty where status"),
      (RECORD_A, "commit", "its seeds list different rows as ok"),
      (f"{A}/features/c/0/0/0", "features", "status is bad_read"),
      (f"{A}/stats/c/0/0/0/0", "stats", "are not the mean and variance"),
      (f"{A}/tokens/c/0/0/0/0", "features", "status is bad_read"), rows=True)  # fmt: skip
def _(store: Path) -> None:
    record(column("status", first("fine")))(store)


@kind("record-ok-under-one-seed", (RECORD_A, "commit", "its seeds list different rows as ok"),
      (f"{A}/features/c/1/0/0", "features", "status is bad_read"),
      (f"{A}/stats/c/1/0/0/0", "stats", "are not the mean and variance"),
      (f"{A}/tokens/c/1/0/0/0", "features", "status is bad_read"), rows=True)  # fmt: skip
def _(store: Path) -> None:
    record(column("status", at(45, "bad_read")))(store)
    record(column("view_crc32", at(45, None)))(store)


for _name, _field, _place, _value, _text in (
    ("crop-outside", "crop_x_px", 60, 5, "crop_x_px is not within what the policy draws"),
    ("crop-below-0", "crop_y_px", 60, -3, "crop_y_px is not within"),
    ("brightness-9", "brightness", 60, 9.0, "brightness is not within"),
    ("sigma-nan", "sigma", 60, float("nan"), "sigma is not within"),
    ("hue-infinite", "hue", 60, float("inf"), "hue is not within"),
    ("hue-between-steps", "hue", 60, 1e-6, "hue is not within"),
    ("order-77", "order", 60, 77, "order is not within"),
    ("stain-never", "stain", 60, True, "stain is not within"),
    ("centre-crop-flipped", "hflip", 5, True, "hflip is not within"),
):  # fmt: skip
    kind(f"drawn-{_name}", (RECORD_A, "view", f"1 views: {_text}"), rows=True)(
        record(column(_field, at(_place, _value)))
    )


@kind("drawn-by-another-key", (RECORD_A, "view", "39 views: the parameters are not those that the seed draws|views: "
      "the parameters are not those"))  # fmt: skip
def _(store: Path) -> None:
    record(column("vflip", lambda v: [*v[:40], *(not flag for flag in v[40:])]))(store)


@kind("fingerprint-of-another-slide", (RECORD_A, "view", "seed 1 .* the parameters are not those that the seed draws"),
      (RECORD_A, "view", "seed 0 .* the places of its tokens are not those that the seed draws"))  # fmt: skip
def _(store: Path) -> None:
    row_value("a", fingerprint=f"sha256:{'e' * 64}")(store)


@kind("record-missing", *(("manifest/views/a", "missing", "40 views have no commit record") for _ in "01"),
      *((f"{A}/{leaf}/c/{seed}/0/0", "features", "holds features that no commit record lists")
        for seed in "01" for leaf in ("features",)),
      *((f"{A}/tokens/c/{seed}/0/0/0", "features", "rows with tokens, although") for seed in "01"))  # fmt: skip
def _(store: Path) -> None:
    (store / RECORD_A).unlink()


@kind("record-of-another-block", ("manifest/views/a/00001-s0000-0001.parquet", "commit", "is of a block that the"),
      *(("manifest/views/a", "missing", "40 views have no commit record") for _ in "01"),
      *((f"{A}/features/c/{seed}/0/0", "features", "holds features that no commit record lists") for seed in "01"),
      *((f"{A}/tokens/c/{seed}/0/0/0", "features", "rows with tokens, although") for seed in "01"),
      rows=True)  # fmt: skip
def _(store: Path) -> None:
    os.rename(store / RECORD_A, store / "manifest/views/a/00001-s0000-0001.parquet")


@kind("record-twice", ("manifest/views/a/00000-s0001-0002.parquet", "commit", "lists views that another record lists"),
      *(("manifest/views/", "missing", "views have no commit record") for _ in "bc"),
      *((f"{A}/{leaf}/zarr.json", "metadata", "3 or more seeds")
        for leaf in ("features", "stats", "tokens", "positions")), rows=True)  # fmt: skip
def _(store: Path) -> None:
    table = read_table(store / RECORD_A)
    later = column("seed", lambda v: [seed + 1 for seed in v])(table)
    write_table(store / "manifest/views/a/00000-s0001-0002.parquet", later)


@kind("record-replaced", ("manifest/views/a/00000-s0001-0001.parquet", "stray", "is not relied on"))
def _(store: Path) -> None:
    table = read_table(store / RECORD_A)
    write_table(store / "manifest/views/a/00000-s0001-0001.parquet", table.slice(40))


@kind("record-without-a-checksum", (RECORD_A, "file", "carries no checksum"))
def _(store: Path) -> None:
    pa.parquet.write_table(read_table(store / RECORD_A).replace_schema_metadata(None), store / RECORD_A)


# arrays


def rewrite(store: Path, name: str, index: tuple[int, ...], values: npt.NDArray[Any], fill: float) -> None:
    """Write a chunk with a right checksum."""
    write_chunk(store, name, arrays.read_metadata(store, name), index, values, fill)


def metadata(name: str, **changes: Any) -> Callable[[Path], None]:
    def damage(store: Path) -> None:
        path = store / name / "zarr.json"
        found = json.loads(path.read_text())
        for key, value in changes.items():
            found.pop(key, None)
            if value is not ...:
                found[key] = value
        path.write_text(json.dumps(found))

    return damage


def grid(*chunk: Any) -> dict[str, Any]:
    return {"name": "regular", "configuration": {"chunk_shape": list(chunk)}}


META_A = f"{A}/features/zarr.json"
CRC, LITTLE = {"name": "crc32c"}, {"name": "bytes", "configuration": {"endian": "little"}}
_METADATA: tuple[tuple[str, str, dict[str, Any], str], ...] = (
    ("shape-of-other-rows", f"{A}/features", {"shape": [2, 39, 8]}, r"shape \(2, 39, 8\), expected"),
    ("shape-beyond-memory", f"{A}/features", {"shape": [2, 10**12, 8]}, "shape"),
    ("shape-null", f"{A}/features", {"shape": None}, "zarr.json"),
    ("shape-a-number", f"{A}/features", {"shape": 7}, "zarr.json"),
    ("shape-below-0", f"{A}/features", {"shape": [2, -1, 8]}, "shape"),
    ("too-few-seeds", f"{A}/features", {"shape": [1, 40, 8]}, r"shape \(1, 40, 8\), expected \(2 or more seeds"),
    ("chunks-beyond-memory", f"{A}/features", {"chunk_grid": grid(1, 2**30, 8)}, "exceed 256 MiB"),
    ("chunks-other", f"{A}/features", {"chunk_grid": grid(1, 8, 8)}, r"chunks \(1, 8, 8\), expected"),
    ("chunks-of-0", f"{A}/features", {"chunk_grid": grid(1, 0, 8)}, "shape"),
    ("dtype-other", f"{A}/features", {"data_type": "float32"}, "data type float32, expected float16"),
    ("dtype-object", f"{A}/features", {"data_type": "object"}, "data type 'object'"),
    ("codec-pickle", f"{A}/features", {"codecs": [{"name": "numcodecs.pickle"}, CRC]}, "codec 'numcodecs.pickle'"),
    ("codec-sharding", f"{A}/features", {"codecs": [{"name": "sharding_indexed"}, CRC]}, "sharding_indexed of a form"),
    ("codec-without-crc", f"{A}/features", {"codecs": [LITTLE]}, "crc32c last"),
    ("codec-big-endian", f"{A}/features",
     {"codecs": [{"name": "bytes", "configuration": {"endian": "big"}}, CRC]}, "expected little endian"),
    ("fill-value-0", f"{A}/features", {"fill_value": 0.0}, "codecs, fill value or attributes are not those of feat"),
    ("attributes", f"{A}/features", {"attributes": {"name": "x"}}, "codecs, fill value or attributes"),
    ("key-encoding", f"{A}/features", {"chunk_key_encoding": {"name": "v2"}}, "of a form that no store has"),
    ("a-group", f"{A}/features", {"node_type": "group"}, "of a form that no store has"),
    ("without-format", f"{A}/features", {"zarr_format": ...}, "zarr.json|metadata"),
    ("storage-transformer", f"{A}/features", {"storage_transformers": [{"name": "x"}]}, "of a form that no store has"),
    ("stats-shape", f"{A}/stats", {"shape": [2, 1, 3, 8]}, r"shape \(2, 1, 3, 8\), expected"),
    ("stats-dtype", f"{A}/stats", {"data_type": "float32"}, "data type float32, expected float64"),
    ("coords-shape", f"{A}/coords", {"shape": [39, 2]}, r"shape \(39, 2\), expected \(40, 2\)"),
    ("tokens-count", f"{A}/tokens", {"shape": [2, 40, 4, 6]}, r"shape \(2, 40, 4, 6\), expected"),
    ("positions-chunks", f"{A}/positions", {"chunk_grid": grid(1, 32, 3)}, r"chunks \(1, 32, 3\), expected"),
    ("pixels-shape", "pixels.zarr/a", {"shape": [40, 20, 20, 4]}, r"shape \(40, 20, 20, 4\), expected"),
    ("pixels-beyond-memory", "pixels.zarr/a", {"shape": [40, 10**5, 10**5, 3],
                                               "chunk_grid": grid(32, 10**5, 10**5, 3)}, "exceed 256 MiB"),
)  # fmt: skip
for _name, _array, _values, _text in _METADATA:
    _read = "pixels" not in _name and _name not in ("fill-value-0", "attributes")
    kind(f"metadata-{_name}", (f"{_array}/zarr.json", "metadata", _text), rows=_read)(
        metadata(_array, **_values)
    )


for _name, _file, _bytes in (
    ("metadata-not-json", META_A, lambda raw: b"{"),
    ("metadata-a-list", META_A, lambda raw: b"[]"),
    ("metadata-deep", META_A, lambda raw: b"[" * 60_000),
    ("metadata-not-utf8", META_A, lambda raw: b"\xff" + raw),
):
    kind(_name, (META_A, "metadata", "unreadable array metadata"), rows=True)(at_byte(_file, _bytes))


@kind("metadata-missing", (META_A, "metadata", "no such array"), rows=True)
def _(store: Path) -> None:
    (store / META_A).unlink()


for _name, _group, _id in (
    ("group-missing", "features.zarr/zarr.json", None),
    ("group-of-a-slide-missing", f"{A}/zarr.json", "a"),
):
    kind(_name, (_group, "metadata", "is missing"))(
        lambda store, group=_group: (store / group).unlink()  # type: ignore[misc]
    )


@kind("group-with-attributes", ("features.zarr/zarr.json", "metadata", "is not that of a group"))
def _(store: Path) -> None:
    metadata("features.zarr", attributes={"patient": "x"})(store)


# chunks


def with_crc(body: bytes) -> bytes:
    return body + struct.pack("<I", google_crc32c.value(body))


for _short, _file, _kind in (
    ("features", CHUNK_A, "features"),
    ("attention", ATTENTION_A, "features"),
    ("stats", STATS_A, "stats"),
    ("coords", f"{A}/coords/c/0/0", "coords"),
    ("tokens", f"{A}/tokens/c/1/0/0/0", "features"),
    ("positions", f"{A}/positions/c/1/0/0", "features"),
    ("pixels", PIXELS_A, "pixels"),
):
    _base = "attention" if _short == "attention" else "whole"
    for _fault, _bytes in (("flipped", flip), ("half", half), ("emptied", lambda raw: b"")):
        kind(f"chunk-of-{_short}-{_fault}", (_file, _kind, "crc32c differs|damaged chunk"),
             rows=_short != "pixels", base=_base)(at_byte(_file, _bytes))  # fmt: skip
    if _short != "coords":
        kind(f"chunk-of-{_short}-missing", (_file, _kind, "is missing"), rows=_short != "pixels", base=_base)(
            lambda store, file=_file: (store / file).unlink()  # type: ignore[misc]
        )
    kind(
        f"chunk-of-{_short}-huge",
        (_file, _kind, "larger than|has [0-9]+ bytes"),
        (_file, "file", "has [0-9]+ bytes; no file"),
        rows=_short != "pixels",
        base=_base,
    )(
        lambda store, file=_file: os.truncate(store / file, 1 << 32)  # type: ignore[misc]
    )

kind("chunk-of-another-size", (CHUNK_A, "features", "68 bytes, expected|bytes, expected"), rows=True)(
    at_byte(CHUNK_A, lambda raw: with_crc(b"\0" * 64))
)


# shards of a packed store


SHARD_A, STATS_SHARD_A = f"{A}/features/c/0/0/0", f"{A}/stats/c/0/0/0/0"


def entries(change: Callable[[npt.NDArray[np.uint64], bytearray], None]) -> Callable[[bytes], bytes]:
    """Another index, or other bytes behind it, under a right checksum."""

    def changed(raw: bytes) -> bytes:
        index, rest = np.frombuffer(raw[:32], "<u8").reshape(2, 2).copy(), bytearray(raw[36:])
        change(index, rest)
        return with_crc(index.tobytes()) + bytes(rest)

    return changed


def gap(index: npt.NDArray[np.uint64], rest: bytearray) -> None:
    rest[0:0] = b"hidden"
    index[:, 0] += np.uint64(6)


def exchange(index: npt.NDArray[np.uint64], rest: bytearray) -> None:
    index[:] = index[::-1].copy()


def lose(index: npt.NDArray[np.uint64], rest: bytearray) -> None:
    del rest[int(index[1, 0]) - 36 :]
    index[1] = np.iinfo(np.uint64).max


def enlarge(index: npt.NDArray[np.uint64], rest: bytearray) -> None:
    index[1, 1] = 1 << 40


_LOST = "crc32c differs"
_OTHER = ("stats", "are not the mean and variance")
_LONGER = ("index", "says that features and pixels have .* bytes, and they have")
_FILES = {"features": SHARD_A, "stats": STATS_SHARD_A, "stray": SHARD_A, "index": layout.INDEX}
for _name, _found, _bytes, _rows in (
    ("index-flipped", [("features", "the index of the shard is damaged")] * 2, lambda raw: b"!" + raw[1:], True),
    ("half", [("features", _LOST), ("features", _LOST), ("stray", "1046 bytes, its index says 2092")], half, True),
    ("chunk-flipped", [("features", "slide a seed 1 .*crc32c differs")],
     lambda raw: raw[:-9] + bytes([raw[-9] ^ 1]) + raw[-8:], True),
    ("chunk-missing", [("features", "slide a seed 1 .*is missing: committed features are lost")], entries(lose), True),
    ("chunk-huge", [("features", "which no shard has"), ("stray", "its index says")], entries(enlarge), True),
    ("gap", [("stray", "chunks follow each other in order"), _LONGER], entries(gap), False),
    ("bytes-behind", [("stray", "has [0-9]+ bytes, its index says"), _LONGER], lambda raw: raw + b"hidden", False),
    ("chunks-exchanged", [("stray", "chunks follow each other in order"), _OTHER, _OTHER], entries(exchange), True),
):  # fmt: skip
    kind(f"shard-{_name}", *((_FILES[_of], _of, _text) for _of, _text in _found),
         rows=_rows, base="packed")(at_byte(SHARD_A, _bytes))  # fmt: skip
_MISSING = (SHARD_A, "features", "is missing: committed features")
kind("shard-missing", _MISSING, _MISSING, rows=True, base="packed")(lambda store: (store / SHARD_A).unlink())
for _name, _pair, _text in (
    ("index-at-end", ('"start"', '"end"'), "codec sharding_indexed of a form that no store has"),
    ("not-a-multiple", ("2,\n        64,", "2,\n        63,"), "expected multiples"),
    ("beyond-memory", ("2,\n        64,", "2000000,\n        64,"), "allowed are at most 65536 chunks and 256 MiB"),
):  # fmt: skip
    kind(f"shard-{_name}", (META_A, "metadata", _text), rows=True, base="packed")(
        at_byte(META_A, lambda raw, pair=_pair: raw.replace(*(text.encode() for text in pair)))  # type: ignore[misc]
    )


def block(change: Callable[[npt.NDArray[np.float16]], None]) -> Callable[[Path], None]:
    """Other features of slide a under seed 1, with the statistics of these."""

    def damage(store: Path) -> None:
        values = features.open_features(store, "a").read_block(1, 0).copy()
        change(values)
        features.write_block(store, "a", 1, 0, values)

    return damage


def put(row: int, value: float) -> Callable[[npt.NDArray[np.float16]], None]:
    def change(values: npt.NDArray[np.float16]) -> None:
        values[row] = value

    return change


kind("feature-nan", (CHUNK_A, "features", "slide a seed 1 rows 7: 1 committed rows without finite features"),
     rows=True)(block(put(7, np.nan)))  # fmt: skip


@kind("feature-infinite", (CHUNK_A, "features", "1 committed rows without finite features"), rows=True)
def _(store: Path) -> None:
    values = features.open_features(store, "a").read_block(1, 0).copy()
    values[7] = np.inf
    rewrite(store, f"{A}/features", (1, 0, 0), values[None], np.nan)


kind("feature-of-a-bad-read", (CHUNK_A, "features", "1 rows with features, although their status is bad_read"),
     (STATS_A, "stats", "are not the mean and variance"))(block(put(3, 1.0)))  # fmt: skip


@kind(
    "chunk-outside-of-the-grid",
    (f"{A}/features/c/7/0/0", "stray", r"is a chunk outside of the array's \[2, 1, 1\]"),
)
def _(store: Path) -> None:
    (store / A / "features/c/7/0").mkdir(parents=True)
    shutil.copy(store / CHUNK_A, store / A / "features/c/7/0/0")


def stats(change: Callable[[npt.NDArray[np.float64]], None]) -> Callable[[Path], None]:
    def damage(store: Path) -> None:
        values = features.read_stats(store, "a")[1, 0].copy()
        change(values)
        rewrite(store, f"{A}/stats", (1, 0, 0, 0), values[None, None], np.nan)

    return damage


def variance_below_0(values: npt.NDArray[np.float64]) -> None:
    values[1] *= -1


def mean_nan(values: npt.NDArray[np.float64]) -> None:
    values[0, 2] = np.nan


def mean_shifted(values: npt.NDArray[np.float64]) -> None:
    values[0] += 0.01


def variance_infinite(values: npt.NDArray[np.float64]) -> None:
    values[1, 0] = np.inf


for _change in (variance_below_0, mean_nan, mean_shifted, variance_infinite):
    _name = f"statistics-{_change.__name__.replace('_', '-')}"
    kind(_name, (STATS_A, "stats", "are not the mean and variance of the features"), rows=True)(
        stats(_change)
    )


@kind("statistics-swapped", *((f"{A}/stats/c/{seed}/0/0/0", "stats", "are not the mean and variance of the features")
                              for seed in "01"), rows=True)  # fmt: skip
def _(store: Path) -> None:
    one, other = (store / A / f"stats/c/{seed}/0/0/0" for seed in "01")
    swapped = one.read_bytes(), other.read_bytes()
    other.write_bytes(swapped[0])
    one.write_bytes(swapped[1])


@kind("statistics-of-a-slide-swapped", *((f"features.zarr/{s}/stats/c/{seed}/0/0/0", "stats", "not the mean and vari")
                                         for s in "ab" for seed in "01"), rows=True)  # fmt: skip
def _(store: Path) -> None:
    a, b = store / "features.zarr/a/stats", store / "features.zarr/b/stats"
    os.rename(a, a.with_name("other"))
    os.rename(b, a)
    os.rename(a.with_name("other"), b)


# tokens


def positions(change: Callable[[npt.NDArray[np.int32]], None]) -> Callable[[Path], None]:
    def damage(store: Path) -> None:
        found = tokens.open_tokens(store, "a", whole.TOKENS).read_positions(1, 0).copy()
        change(found)
        tokens.write_positions(store, "a", 1, 0, found)

    return damage


for _name, _places, _text in (
    ("positions-beyond-the-grid", [0, 1, 16], "not ascending places in the grid"),
    ("positions-below-0", [-1, 1, 2], "not ascending places in the grid"),
    ("positions-descending", [2, 1, 0], "not ascending places in the grid"),
):  # fmt: skip
    kind(_name, (f"{A}/positions/c/1/0/0", "features", _text), rows=True)(
        positions(lambda found, places=_places: found.__setitem__(9, places))  # type: ignore[misc]
    )


@kind(
    "positions-of-another-key",
    (RECORD_A, "view", "the places of its tokens are not those that the seed draws"),
)
def _(store: Path) -> None:
    drawn = tokens.open_tokens(store, "a", whole.TOKENS).read_positions(1, 0)
    positions(lambda found: found.__setitem__(slice(4, None), np.roll(drawn[4:], 5, axis=0)))(store)


@kind("token-nan", (f"{A}/tokens/c/1/0/0/0", "features", "1 committed rows without finite tokens"), rows=True)
def _(store: Path) -> None:
    values = tokens.open_tokens(store, "a", whole.TOKENS).read_chunk(1, 0).copy()
    values[7, 0, 0] = np.nan
    tokens.write_chunk(store, "a", 1, 0, values)


# attention


for _name, _fields, _text in (
    ("shape", {"shape": [2, 40, 15]}, r"shape \(2, 40, 15\), expected"),
    ("chunks", {"chunk_grid": grid(1, 32, 16)}, r"chunks \(1, 32, 16\), expected"),
    ("dtype", {"data_type": "float32"}, "data type float32, expected float16"),
):
    kind(f"attention-{_name}", (f"{A}/attention/zarr.json", "metadata", _text), rows=True, base="attention")(
        metadata(f"{A}/attention", **_fields)
    )


def one_look(row: int, value: float) -> Callable[[Path], None]:
    """Another value in a row."""

    def damage(store: Path) -> None:
        values = attention.open_attention(store, "a", whole.ATTENTION).read_block(1, 0).copy()
        values[row] = np.where(np.isnan(values[row]), 0, values[row])
        values[row, 5] = value
        attention.write_block(store, "a", 1, 0, values)

    return damage


for _name, _row_of_it, _value, _text in (
    ("nan", 7, np.nan, "1 committed rows without finite attention"),
    ("infinite", 7, np.inf, "1 committed rows without finite attention"),
    ("below-0", 7, -0.01, "attention that is no probability"),
    ("above-1", 7, 1.5, "attention that is no probability"),
    ("of-a-bad-read", 3, 0.5, "1 rows with attention, although their status is bad_read"),
):
    kind(f"attention-{_name}", (ATTENTION_A, "features", _text), rows=_row_of_it == 7, base="attention")(
        one_look(_row_of_it, _value)
    )


# compact copies


@kind(
    "int8-scale-nan",
    (CHUNK_A, "features", "1 committed rows without finite features"),
    rows=True,
    base="int8",
)
def _(store: Path) -> None:
    spec = arrays.read_metadata(store, f"{A}/scales")
    scales = np.asarray(arrays.open_checked(store, f"{A}/scales", 2, "float32")[1]).copy()
    scales[7] = np.nan
    write_chunk(store, f"{A}/scales", spec, (1, 0), scales[None], np.nan)


@kind("int8-scales-grown", (STATS_A, "stats", "are not the mean and variance"), rows=True, base="int8")
def _(store: Path) -> None:
    spec = arrays.read_metadata(store, f"{A}/scales")
    scales = np.asarray(arrays.open_checked(store, f"{A}/scales", 2, "float32")[1]) * np.float32(1.5)
    write_chunk(store, f"{A}/scales", spec, (1, 0), scales[None], np.nan)


@kind(
    "int8-absent-row",
    (CHUNK_A, "features", "1 committed rows without finite features"),
    rows=True,
    base="int8",
)
def _(store: Path) -> None:
    spec = arrays.read_metadata(store, f"{A}/features")
    raw = np.asarray(arrays.open_checked(store, f"{A}/features", 3, "int8")[1]).copy()
    raw[7, 0] = -128
    write_chunk(store, f"{A}/features", spec, (1, 0, 0), raw[None], -128)


@kind("int8-standard-missing", (f"{A}/standard/zarr.json", "metadata", "no such array"),
      (f"{A}/features", "metadata", "no such array"), rows=True, base="int8")  # fmt: skip
def _(store: Path) -> None:
    shutil.rmtree(store / A / "standard")


# hostile bytes


def zstd_bomb(size: int) -> bytes:
    """A frame that says it decodes to `size` bytes, and does not."""
    head = b"\x28\xb5\x2f\xfd" + bytes([0b11100000]) + struct.pack("<Q", size)
    return with_crc(head + struct.pack("<I", 1 | 1 << 1 | 1 << 17 << 3)[:3] + b"\0")


kind("zstd-bomb", (PIXELS_A, "pixels", "decodes to 1000000000000 bytes"))(
    at_byte(PIXELS_A, lambda raw: zstd_bomb(10**12))
)
kind("zstd-garbage", (PIXELS_A, "pixels", "decode|Zstandard frame"))(
    at_byte(PIXELS_A, lambda raw: with_crc(raw[:40]))
)
BLOSC_A = CHUNK_A


def blosc(change: Callable[[bytearray], bytes]) -> Callable[[Path], None]:
    return at_byte(BLOSC_A, lambda raw: with_crc(bytes(change(bytearray(raw[:-4])))))


def blosc_field(start: int, value: int) -> Callable[[bytearray], bytes]:
    def change(raw: bytearray) -> bytes:
        raw[start : start + 4] = struct.pack("<I", value)
        return bytes(raw)

    return change


for _name, _header in (
    ("blosc-header-alone", lambda raw: raw[:16]),
    ("blosc-compressed-size", blosc_field(12, (1 << 31) - 1)),
    ("blosc-decoded-size", blosc_field(4, 1 << 30)),
    ("blosc-block-size", blosc_field(8, 0)),
    ("blosc-half", lambda raw: raw[: len(raw) // 2]),
):
    kind(_name, (BLOSC_A, "features", "decode|blosc|Blosc|says that it has"), rows=True, base="lossless")(
        blosc(_header)
    )


# files that no store has


def extra(name: str, text: str = "x") -> Callable[[Path], None]:
    def damage(store: Path) -> None:
        (store / name).parent.mkdir(parents=True, exist_ok=True)
        (store / name).write_text(text)

    return damage


for _name, _file in (
    ("stray-file", "features.zarr/a/notes.txt"),
    ("stray-script", "setup.py"),
    ("stray-record", "manifest/views/a/0-s0-1.parquet"),
    ("stray-hidden", ".hidden"),
    ("stray-name-with-escapes", "a\x1b[2Jb"),
    ("stray-name-with-a-line-break", "a\nb"),
    ("stray-name-of-markup", "a[/b][link=x]"),
):
    _shown = {"stray-name-with-escapes": "", "stray-name-with-a-line-break": ""}.get(_name, _file)
    kind(_name, (_shown, "stray", "is a stray file|is not relied on"))(extra(_file))


@kind("folders-1500-deep", ("", "stray", ""))
def _(store: Path) -> None:
    handle = os.open(store, os.O_RDONLY)
    for _ in range(1500):  # one name after another: the whole path is longer than a system call takes
        os.mkdir("x", dir_fd=handle)
        inner = os.open("x", os.O_RDONLY, dir_fd=handle)
        os.close(handle)
        handle = inner
    os.close(os.open("f", os.O_WRONLY | os.O_CREAT, dir_fd=handle))
    os.close(handle)


@kind("slide-that-is-not-listed", (SLIDES_FILE, "stray", "slide zz: does not list this slide as usable"))
def _(store: Path) -> None:
    shutil.copytree(store / A, store / "features.zarr/zz")


kind("options-not-json", ("options/tile.json", "file", "is not readable JSON"))(
    extra("options/tile.json", "{")
)
kind("options-a-list", ("options/tile.json", "file", "is not readable JSON"))(
    extra("options/tile.json", "[]")
)


@kind(
    "options-huge",
    ("options/tile.json", "file", "larger than"),
    ("options/tile.json", "file", "no file of this kind has more"),
)
def _(store: Path) -> None:
    os.truncate(store / "options/tile.json", 1 << 32)


PLACES = {
    "recipe": (RECIPE, "file", True),
    "slides": (SLIDES_FILE, "file", True),
    "patches": (PATCHES_A, "patches", True),
    "record": (RECORD_A, "commit", True),
    "metadata": (META_A, "metadata", True),
    "chunk": (CHUNK_A, "features", True),
    "options": ("options/tile.json", "", False),
}
"""What is replaced by a link or a pipe, and the kind of the finding that follows from it."""
for _short, (_file, _kind, _rows) in PLACES.items():
    _then = ((_file, _kind, "symbolic link|pipe|is missing"),) if _kind else ()

    def _link(store: Path, file: str = _file) -> None:
        (store / file).unlink()
        (store / file).symlink_to("/etc/hostname")

    def _pipe(store: Path, file: str = _file) -> None:
        (store / file).unlink()
        os.mkfifo(store / file)

    kind(f"link-for-{_short}", (_file, "stray", "is a symbolic link"), *_then, rows=_rows, posix=True)(_link)
    kind(f"pipe-for-{_short}", (_file, "stray", "is a pipe"), *_then, rows=_rows, posix=True)(_pipe)


@kind("link-for-a-folder", ("features.zarr/b", "stray", "is a symbolic link"), rows=True, posix=True)
def _(store: Path) -> None:
    shutil.rmtree(store / "features.zarr/b")
    (store / "features.zarr/b").symlink_to("a")


# the seal


def sealed(change: Callable[[Path], None]) -> Callable[[Path], None]:
    def damage(store: Path) -> None:
        seal(store)
        change(store)

    return damage


SUMS, DIGEST = "checksums.sha256", "checksums.sha256.digest"
for _name, _file, _text, _after in (
    ("seal-changed-picture", "pictures/a.png", "was changed after sealing", extra("pictures/a.png", "y")),
    ("seal-added-file", "pictures/b.png", "is not in the seal: added afterwards", extra("pictures/b.png")),
    ("seal-missing-file", "pictures/a.png", "is missing, the seal lists it",
     lambda store: (store / "pictures/a.png").unlink()),
    ("seal-without-digest", SUMS, "digest is missing", lambda store: (store / DIGEST).unlink()),
    ("seal-without-list", SUMS, "is missing, although", lambda store: (store / SUMS).unlink()),
    ("seal-list-changed", SUMS, "does not fit", extra(SUMS, "")),
    ("seal-digest-changed", SUMS, "does not fit", extra(DIGEST, f"{'0' * 64}  {SUMS}\n")),
):  # fmt: skip
    kind(_name, (_file, "seal", _text))(
        sealed(lambda store, after=_after: after(store))  # type: ignore[misc]
    )


def write(out: Path, chosen: Sequence[str] = ()) -> dict[str, Kind]:
    """Write the stores of some kinds, or of all, and what is expected of them."""
    names = list(chosen or KINDS)
    if os.name != "posix":
        names = [name for name in names if not KINDS[name].posix]
    bases = {"whole": whole.make(out / ".whole")}
    (bases["whole"] / "pictures").mkdir()
    (bases["whole"] / "pictures/a.png").write_text("x")
    if any(KINDS[name].base == "attention" for name in names):
        bases["attention"] = whole.make(out / ".attention", about=whole.ATTENTION)
    for form in ("int8", "lossless"):
        if any(KINDS[name].base == form for name in names):
            options = ExportOptions(compact=form, tokens=form != "int8")
            export(bases["whole"], out / f".{form}", options)
            bases[form] = out / f".{form}"
    if any(KINDS[name].base == "packed" for name in names):
        export(bases["whole"], out / ".packed", ExportOptions(form="packed"))
        bases["packed"] = out / ".packed"
    for name in names:
        store = out / name / "store"
        if KINDS[name].base != "none":
            shutil.copytree(bases[KINDS[name].base], store)
        KINDS[name].damage(store)
    for folder in bases.values():
        shutil.rmtree(folder)
    expected: Mapping[str, Any] = {
        name: {
            "findings": [dict(zip(("file", "kind", "text"), f, strict=True)) for f in KINDS[name].findings],
            "rows_refused": KINDS[name].rows,
        }
        for name in names
    }
    files.write_json(out / "expected.json", expected)
    return {name: KINDS[name] for name in names}


def main() -> None:
    """Write all stores."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    print(f"{out}: {len(write(out))} stores and what is expected of each, in expected.json")


if __name__ == "__main__":
    main()
