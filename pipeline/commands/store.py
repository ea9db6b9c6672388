"""The commands ``g2l store ...``: parse, call one function, print. Heavy imports stand inside the commands."""

import datetime
import sys
from pathlib import Path
from typing import Any

import click

from pipeline.commands.click_options import (
    JSON,
    PATH,
    STORE,
    Group,
    build,
    opened,
    options_of,
    print_result,
    remote_options,
)
from pipeline.runtime.options import ClusterOptions
from pipeline.verify.options import VerifyOptions


@click.group(cls=Group, short_help="Look at a store, check it, share it, join it")
def store() -> None:
    """Look at a store, prove it, share it, combine it."""


@store.command(short_help="Show what a store holds")
@click.argument("path", type=STORE)
@JSON
def info(path: str, as_json: bool) -> None:
    """What a store holds: recipe, slides, patches, views per seed and split, bytes, completeness."""
    from stores.info import info_lines, store_info

    result = store_info(opened(path))
    print_result(as_json, result, lambda: info_lines(result))


@store.command(short_help="Check a store, as deep as you ask")
@click.argument("path", type=STORE)
@remote_options
@options_of(VerifyOptions, ClusterOptions)
def verify(path: str, cache: Path | None, cache_gb: float, as_json: bool, **values: Any) -> None:
    """Prove a store: structure, views with --slides, features with --teacher. Exit code 1: something is wrong."""
    from pipeline.runtime.progress import reporter_for
    from pipeline.verify.verify import verify as look

    with reporter_for(sys.stderr) as report:
        where = build(ClusterOptions, values)
        result = look(opened(path, cache, cache_gb), build(VerifyOptions, values), report, where)
    print_result(as_json, result.to_json(), result.lines)
    sys.exit(bool(result.findings))


@store.command(short_help="Write checksums of every file")
@click.argument("path", type=PATH)
@click.option("--as-it-is", is_flag=True, help="Seal without verifying the structure first.")
@JSON
def seal(path: Path, as_it_is: bool, as_json: bool) -> None:
    """Write checksums.sha256 over every file, and the digest of it to publish; refuses a store with mistakes."""
    from pipeline.runtime.progress import reporter_for
    from pipeline.verify.verify import seal_store

    with reporter_for(sys.stderr) as report:
        result = seal_store(path, as_it_is, report)
    print_result(as_json, result.to_json(), result.lines)


@store.command(short_help="Join stores by slide")
@click.argument("stores", nargs=-1, required=True, type=STORE)
@click.option("--out", required=True, type=PATH, help="Folder of the new store.")
@click.option("--allow-duplicates", is_flag=True, help="Accept one slide file under two ids.")
@JSON
def merge(stores: tuple[str, ...], out: Path, allow_duplicates: bool, as_json: bool) -> None:
    """The union of stores by slide: one recipe, and what they both have has to be equal."""
    from pipeline.runtime.progress import reporter_for
    from stores.combine import merge as share

    with reporter_for(sys.stderr) as report:
        found = [opened(path) for path in stores]
        result = share.merge(found, out, allow_duplicates, report)
    print_result(as_json, result.to_json(), result.lines)


@store.command(short_help="Copy some slides and seeds of a store")
@click.argument("path", type=STORE)
@click.option("--out", required=True, type=PATH, help="Folder of the new store.")
@click.option("--slides", multiple=True, help="A slide id, or a file: an id a line, or a CSV with slide_id.")
@click.option("--split", "splits", multiple=True, help="train, val or test; may be repeated.")
@click.option("--seeds", type=int, help="Keep seeds 0 to N-1.")
@click.option(
    "--where",
    multiple=True,
    metavar="COLUMN=VALUE",
    help="Value of a column of the slides table; may be repeated: columns must all fit, with any value given for them.",
)
@click.option("--no-pixels", is_flag=True, help="Leave the pixels of the patches out.")
@click.option("--no-tokens", is_flag=True, help="Leave the teacher's patch tokens out.")
@JSON
def subset(
    path: str,
    out: Path,
    slides: tuple[str, ...],
    no_pixels: bool,
    no_tokens: bool,
    as_json: bool,
    **values: Any,
) -> None:
    """A store of some slides and seeds of another; all conditions that are given have to hold."""
    from pipeline.runtime.progress import reporter_for
    from stores.combine import subset as subsets

    chosen = subsets.Selection(
        slides=subsets.read_ids(slides), pixels=not no_pixels, tokens=not no_tokens, **values
    )
    with reporter_for(sys.stderr) as report:
        found = opened(path)
        result = subsets.subset(found, out, chosen, report)
    print_result(as_json, result.to_json(), result.lines)


@store.command(short_help="Copy a store for other labs")
@click.argument("path", type=STORE)
@click.option("--out", required=True, type=PATH, help="Folder of the copy.")
@click.option(
    "--pseudonymise", "key", type=PATH, help="File with a secret key: ids and names become keyed hashes."
)
@click.option("--compact", type=click.Choice(["lossless", "int8"]), help="A smaller copy, for slow lines.")
@click.option("--keep-column", multiple=True, help="A column of your own that may leave under pseudonyms.")
@click.option("--no-pixels", is_flag=True, help="Leave the patches' pixels out.")
@click.option("--no-tokens", is_flag=True, help="Leave the teacher's patch tokens out.")
@click.option("--mapping", type=PATH, help="CSV file for yourself: names and pseudonyms.")
@JSON
def export(
    path: str, out: Path, key: Path | None, mapping: Path | None, as_json: bool, **values: Any
) -> None:
    """A copy for others: without the names of slides and patients, or smaller, or both."""
    from pipeline.runtime.progress import reporter_for
    from stores.export import export as exports
    from stores.export.pseudonyms import read_key

    options = exports.ExportOptions(
        compact=values["compact"],
        pseudonyms=read_key(key) if key is not None else None,
        keep_columns=values["keep_column"],
        pixels=not values["no_pixels"],
        tokens=not values["no_tokens"],
        mapping=mapping,
    )
    with reporter_for(sys.stderr) as report:
        found = opened(path)
        result = exports.export(found, out, options, report)
    print_result(as_json, result.to_json(), result.lines)


@store.command(short_help="Write a README and Croissant metadata")
@click.argument("path", type=PATH)
@click.option("--name", help="Short name of the data set; the folder's.")
@click.option("--title", help="Heading of the card; the name.")
@click.option("--creator", help="Who made it.")
@click.option("--licence", help="Licence of the features; the teacher's as the store recorded it.")
@click.option("--url", help="Where it is published.")
@click.option("--date", type=click.DateTime(["%Y-%m-%d"]), help="Day of publication; today.")
@click.option("--cohort-column", multiple=True, help="A column of your own that the cohort table counts.")
@JSON
def card(path: Path, name: str | None, date: datetime.datetime | None, as_json: bool, **values: Any) -> None:
    """Write README.md and croissant.json: what it is, whose licence binds, who is in it, how to load it."""
    from stores.publish.card import CardOptions, write_card

    day = (date or datetime.datetime.now()).date().isoformat()
    result = write_card(path, CardOptions(name=name or path.resolve().name, date=day, **values))
    print_result(as_json, result.to_json(), result.lines)


@store.command(short_help="Rebuild files that follow from others")
@click.argument("path", type=PATH)
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@click.option("--prune", is_flag=True, help="Remove chunks that no commit record lists.")
@JSON
def reindex(path: Path, dry_run: bool, prune: bool, as_json: bool) -> None:
    """Bring in line what follows from other things. Exit code 1: something contradicts itself."""
    from pipeline.runtime.progress import reporter_for
    from stores.verify.reindex import reindex as bring_in_line

    with reporter_for(sys.stderr) as report:
        result = bring_in_line(path, dry_run, prune, report)
    print_result(as_json, result.to_json(), result.lines)
    sys.exit(bool(result.problems))


@store.command(short_help="Upload a store")
@click.argument("path", type=PATH)
@click.argument("url")
@JSON
def push(path: Path, url: str, as_json: bool) -> None:
    """Upload a store to a URL such as s3://bucket/name; goes on after an interruption."""
    from pipeline.runtime.progress import reporter_for
    from stores.remote import transfer
    from stores.remote.objects import Objects

    with reporter_for(sys.stderr) as report:
        objects = Objects(url)
        result = transfer.push(path, objects, report)
    print_result(as_json, result.to_json(), result.lines)


@store.command(short_help="Download a store")
@click.argument("url")
@click.argument("out", type=PATH)
@JSON
def pull(url: str, out: Path, as_json: bool) -> None:
    """Download a store from a URL into a new folder; goes on after an interruption."""
    from pipeline.runtime.progress import reporter_for
    from stores.remote import transfer
    from stores.remote.objects import Objects

    with reporter_for(sys.stderr) as report:
        objects = Objects(url)
        result = transfer.pull(objects, out, report)
    print_result(as_json, result.to_json(), result.lines)
