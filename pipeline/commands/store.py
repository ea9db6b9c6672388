"""The commands ``g2l store ...``: parse, call one function, print. Heavy imports stand inside the commands."""

import dataclasses
import datetime
import sys
from pathlib import Path
from typing import Any

import click

from pipeline.commands.click_options import (
    JSON,
    PATH,
    STORE,
    build,
    opened,
    options_of,
    print_result,
    remote_options,
)
from pipeline.runtime.options import ClusterOptions
from pipeline.verify.options import VerifyOptions


@click.group()
def store() -> None:
    """Look at a store, prove it, share it, combine it."""


@store.command()
@click.argument("path", type=STORE)
@JSON
def info(path: str, as_json: bool) -> None:
    """What a store holds: recipe, slides, patches, views per seed and split, bytes, completeness."""
    from pipeline.commands import summaries
    from stores.info import store_info

    result = store_info(opened(path))
    print_result(as_json, result, lambda: summaries.info_lines(path, result))


@store.command()
@click.argument("path", type=STORE)
@remote_options
@options_of(VerifyOptions, ClusterOptions)
def verify(path: str, cache: Path | None, cache_gb: float, as_json: bool, **values: Any) -> None:
    """Prove a store: structure, views with --slides, features with --teacher. Exit code 1: something is wrong."""
    from pipeline.commands import summaries
    from pipeline.runtime.progress import reporter_for
    from pipeline.verify.verify import verify as look

    with reporter_for(sys.stderr) as report:
        where = build(ClusterOptions, values)
        result = look(opened(path, cache, cache_gb), build(VerifyOptions, values), report, where)
    print_result(as_json, summaries.verify_json(path, result), lambda: summaries.verify_lines(path, result))
    sys.exit(bool(result.findings))


@store.command()
@click.argument("path", type=PATH)
@click.option("--as-it-is", is_flag=True, help="Seal without verifying the structure first.")
@JSON
def seal(path: Path, as_it_is: bool, as_json: bool) -> None:
    """Write checksums.sha256 over every file, and the digest of it to publish; refuses a store with mistakes."""
    from pipeline.runtime.progress import reporter_for
    from pipeline.verify.verify import seal_store

    with reporter_for(sys.stderr) as report:
        digest, n_files = seal_store(path, as_it_is, report)
    result = {"store": str(path), "digest": digest, "files": n_files}
    print_result(
        as_json, result, lambda: [f"sealed {n_files} files of {path}", f"digest  {digest}  (publish it)"]
    )


@store.command()
@click.argument("stores", nargs=-1, required=True, type=STORE)
@click.option("--out", required=True, type=PATH, help="Folder of the new store.")
@click.option("--allow-duplicates", is_flag=True, help="Accept one slide file under two ids.")
@JSON
def merge(stores: tuple[str, ...], out: Path, allow_duplicates: bool, as_json: bool) -> None:
    """The union of stores by slide: one recipe, and what they both have has to be equal."""
    from pipeline.commands.summaries import copy_json, copy_lines
    from pipeline.runtime.progress import reporter_for
    from stores.combine import merge as share

    with reporter_for(sys.stderr) as report:
        found = [opened(path) for path in stores]
        result = share.merge(found, out, allow_duplicates, lambda n: report.start("merge", n), report.advance)
    summary = copy_json(out, result)
    print_result(as_json, summary, lambda: copy_lines(summary))


@store.command()
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
    from pipeline.commands.summaries import copy_json, copy_lines
    from pipeline.runtime.progress import reporter_for
    from stores.combine import subset as subsets

    chosen = subsets.Selection(
        slides=subsets.read_ids(slides), pixels=not no_pixels, tokens=not no_tokens, **values
    )
    with reporter_for(sys.stderr) as report:
        found = opened(path)
        result = subsets.subset(found, out, chosen, lambda n: report.start("subset", n), report.advance)
    summary = copy_json(out, result)
    print_result(as_json, summary, lambda: copy_lines(summary))


@store.command()
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
    from pipeline.commands import summaries
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
        result = exports.export(found, out, options, lambda n: report.start("export", n), report.advance)
    print_result(as_json, summaries.export_json(result), lambda: summaries.export_lines(out, result))


@store.command()
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
    written = write_card(path, CardOptions(name=name or path.resolve().name, date=day, **values))
    names = [str(file) for file in written]
    print_result(as_json, {"written": names}, lambda: names)


@store.command()
@click.argument("path", type=PATH)
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@click.option("--prune", is_flag=True, help="Remove chunks that no commit record lists.")
@JSON
def reindex(path: Path, dry_run: bool, prune: bool, as_json: bool) -> None:
    """Bring in line what follows from other things. Exit code 1: something contradicts itself."""
    from pipeline.commands.summaries import reindex_json, reindex_lines
    from pipeline.runtime.progress import reporter_for
    from stores.verify.reindex import reindex as bring_in_line

    with reporter_for(sys.stderr) as report:
        result = bring_in_line(path, dry_run, prune, lambda n: report.start("reindex", n), report.advance)
    summary = reindex_json(path, dry_run, result)
    print_result(as_json, summary, lambda: reindex_lines(summary))
    sys.exit(bool(result.problems))


@store.command()
@click.argument("path", type=PATH)
@click.argument("url")
@JSON
def push(path: Path, url: str, as_json: bool) -> None:
    """Upload a store to a URL such as s3://bucket/name; goes on after an interruption."""
    from pipeline.commands import summaries
    from pipeline.runtime.progress import reporter_for
    from stores.remote import transfer
    from stores.remote.objects import Objects

    with reporter_for(sys.stderr) as report:
        objects = Objects(url)
        result = transfer.push(path, objects, lambda total: report.start("push", total), report.advance)
    print_result(as_json, dataclasses.asdict(result), lambda: summaries.transfer_lines(url, result))


@store.command()
@click.argument("url")
@click.argument("out", type=PATH)
@JSON
def pull(url: str, out: Path, as_json: bool) -> None:
    """Download a store from a URL into a new folder; goes on after an interruption."""
    from pipeline.commands import summaries
    from pipeline.runtime.progress import reporter_for
    from stores.remote import transfer
    from stores.remote.objects import Objects

    with reporter_for(sys.stderr) as report:
        objects = Objects(url)
        result = transfer.pull(objects, out, lambda total: report.start("pull", total), report.advance)
    print_result(as_json, dataclasses.asdict(result), lambda: summaries.transfer_lines(str(out), result))
