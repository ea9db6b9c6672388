"""The commands ``g2l store ...``: parse, call one function, print. Heavy imports stand inside the commands."""

import datetime
import sys
from pathlib import Path
from typing import Any

import click

from pipeline import api
from pipeline.commands.click_options import (
    JSON,
    PATH,
    STORE,
    Group,
    Option,
    given,
    opened,
    options_of,
    print_result,
    remote_options,
    show,
)
from pipeline.importing.options import ImportOptions
from pipeline.runtime.options import VIEWS, ClusterOptions
from pipeline.verify.options import VerifyOptions
from stores.errors import SOME_SLIDES_FAILED, OptionError


@click.group(cls=Group, short_help="Inspect, check, share, combine stores")
def store() -> None:
    """Inspect, check, share and combine stores."""


@store.command(short_help="Show what a store holds")
@click.argument("paths", nargs=-1, required=True, type=STORE, metavar="PATH...")
@click.option(
    "--family",
    "as_family",
    is_flag=True,
    cls=Option,
    heading=VIEWS,
    help="Compare stores of several teachers: what they share, what each lacks, whether their views are the same.",
)
@JSON
def info(paths: tuple[str, ...], as_family: bool, as_json: bool) -> None:
    """Show what a store holds: recipe, slides, patches, views per seed and split, bytes, completeness.

    With --family, exit code 1 means that the stores do not show the same views.
    """
    from stores.info import info_lines, store_info

    if as_family:
        found = api.family(paths)
        show(as_json, found)
        sys.exit(not found.is_family)
    if len(paths) > 1:
        raise OptionError(f"{len(paths)} stores; give one, or --family to compare them")
    result = store_info(opened(paths[0]))
    print_result(as_json, result, lambda: info_lines(result))


@store.command(short_help="Check a store for damage and mistakes")
@click.argument("path", type=STORE)
@remote_options
@options_of(VerifyOptions, ClusterOptions)
def verify(path: str, as_json: bool, **values: Any) -> None:
    """Check a store: its structure; its views with --slides; its features with --teacher.

    Exit code 1 means that something is wrong.
    """
    from pipeline.runtime.progress import reporter_for

    with reporter_for(sys.stderr) as report:
        result = api.verify(path, report=report, **given(values))
    show(as_json, result)
    sys.exit(bool(result.findings))


@store.command("import", short_help="Take in features from TRIDENT or CLAM")
@click.argument("features", type=PATH)
@click.option(
    "--slides",
    multiple=True,
    required=True,
    type=PATH,
    metavar="PATH",
    help="Slide file, or folder of slides. May be repeated.",
)
@click.option("--out", required=True, type=PATH, metavar="DIR", help="Folder of the store, new or begun.")
@options_of(ImportOptions)
def import_command(features: Path, slides: tuple[Path, ...], out: Path, as_json: bool, **values: Any) -> None:
    """Make a store of one view from FEATURES, a folder of h5 files that TRIDENT or CLAM wrote.

    The encoder is declared by --encoder, not proven. The views are read from the slides as that tool read them.
    """
    from pipeline.runtime.progress import reporter_for

    with reporter_for(sys.stderr) as report:
        result = api.import_features(features, slides, out, report=report, **given(values))
    show(as_json, result)
    if result.some_failed:
        sys.exit(SOME_SLIDES_FAILED)


@store.command(short_help="Write checksums over every file")
@click.argument("path", type=PATH)
@click.option("--as-it-is", is_flag=True, help="Do not check the structure first.")
@JSON
def seal(path: Path, as_it_is: bool, as_json: bool) -> None:
    """Write checksums.sha256 over every file, and its digest to publish.

    The structure is checked first: a store with mistakes is not sealed.
    """
    from pipeline.runtime.progress import reporter_for
    from pipeline.verify.verify import seal_store

    with reporter_for(sys.stderr) as report:
        result = seal_store(path, as_it_is, report)
    show(as_json, result)


@store.command(short_help="Unite stores of one recipe")
@click.argument("stores", nargs=-1, required=True, type=STORE)
@click.option("--out", required=True, type=PATH, metavar="DIR", help="Folder of the new store.")
@click.option("--allow-duplicates", is_flag=True, help="Accept the same slide file under two ids.")
@JSON
def merge(stores: tuple[str, ...], out: Path, allow_duplicates: bool, as_json: bool) -> None:
    """Unite stores of one recipe, slide by slide. What several of them have must be equal."""
    from pipeline.runtime.progress import reporter_for
    from stores.combine import merge as share

    with reporter_for(sys.stderr) as report:
        found = [opened(path) for path in stores]
        result = share.merge(found, out, allow_duplicates, report)
    show(as_json, result)


@store.command(short_help="Copy some slides or seeds to a new store")
@click.argument("path", type=STORE)
@click.option("--out", required=True, type=PATH, metavar="DIR", help="Folder of the new store.")
@click.option(
    "--slides",
    multiple=True,
    metavar="ID|FILE",
    help="A slide id, or a file: one id per line, or a CSV with a column slide_id. May be repeated.",
)
@click.option("--split", "splits", multiple=True, metavar="NAME", help="train, val or test. May be repeated.")
@click.option("--seeds", type=int, metavar="N", help="Keep seeds 0 to N-1. [default: all]")
@click.option(
    "--where",
    multiple=True,
    metavar="COLUMN=VALUE",
    help="Slides with this value in a column of the slides table. May be repeated: slides must fit every column, "
    "with one of the values given for it.",
)
@click.option("--no-pixels", is_flag=True, help="Leave out the pixels of the patches.")
@click.option("--no-tokens", is_flag=True, help="Leave out the teacher's patch tokens.")
@click.option("--no-attention", is_flag=True, help="Leave out the teacher's attention.")
@JSON
def subset(
    path: str,
    out: Path,
    slides: tuple[str, ...],
    no_pixels: bool,
    no_tokens: bool,
    no_attention: bool,
    as_json: bool,
    **values: Any,
) -> None:
    """Copy some slides or seeds of a store to a new one. A slide must fit every option that is given."""
    from pipeline.runtime.progress import reporter_for
    from stores.combine import subset as subsets

    chosen = subsets.Selection(
        slides=subsets.read_ids(slides),
        pixels=not no_pixels,
        tokens=not no_tokens,
        attention=not no_attention,
        **values,
    )
    with reporter_for(sys.stderr) as report:
        found = opened(path)
        result = subsets.subset(found, out, chosen, report)
    show(as_json, result)


@store.command(short_help="Copy without names, smaller, or packed")
@click.argument("path", type=STORE)
@click.option("--out", required=True, type=PATH, metavar="DIR", help="Folder of the copy.")
@click.option(
    "--pseudonymise",
    "key",
    type=PATH,
    metavar="KEYFILE",
    help="Replace ids and file names by hashes under the secret key in this file.",
)
@click.option("--compact", type=click.Choice(["lossless", "int8"]), help="Fewer bytes, for slow networks.")
@click.option(
    "--packed",
    "form",
    flag_value="packed",
    help="Few large files: many chunks in each, of at most 256 MiB. Such a store is only read.",
)
@click.option("--loose", "form", flag_value="loose", help="A file for each chunk again, of a packed store.")
@click.option(
    "--keep-column",
    multiple=True,
    metavar="COLUMN",
    help="With --pseudonymise: a column of your own to keep. May be repeated.",
)
@click.option("--no-pixels", is_flag=True, help="Leave out the pixels of the patches.")
@click.option("--no-tokens", is_flag=True, help="Leave out the teacher's patch tokens.")
@click.option("--no-attention", is_flag=True, help="Leave out the teacher's attention.")
@click.option(
    "--mapping",
    type=PATH,
    metavar="FILE",
    help="With --pseudonymise: write a CSV of originals and pseudonyms, to keep private.",
)
@JSON
def export(
    path: str, out: Path, key: Path | None, mapping: Path | None, as_json: bool, **values: Any
) -> None:
    """Copy a store for others: without the names of slides and patients, in fewer bytes, or both; or in fewer files."""
    from pipeline.runtime.progress import reporter_for
    from stores.export import export as exports
    from stores.export.pseudonyms import read_key

    options = exports.ExportOptions(
        compact=values["compact"],
        form=values["form"],
        pseudonyms=read_key(key) if key is not None else None,
        keep_columns=values["keep_column"],
        pixels=not values["no_pixels"],
        tokens=not values["no_tokens"],
        attention=not values["no_attention"],
        mapping=mapping,
    )
    with reporter_for(sys.stderr) as report:
        found = opened(path)
        result = exports.export(found, out, options, report)
    show(as_json, result)


@store.command(short_help="Write README.md and croissant.json")
@click.argument("path", type=PATH)
@click.option("--name", help="Short name of the data set. [default: name of the folder]")
@click.option("--title", help="Heading of the card. [default: the short name]")
@click.option("--creator", help="Who made the store, for the citation.")
@click.option("--licence", help="Licence of the features. [default: the teacher's, as recorded in the store]")
@click.option("--url", metavar="URL", help="Where the store is published.")
@click.option(
    "--date",
    type=click.DateTime(["%Y-%m-%d"]),
    metavar="YYYY-MM-DD",
    help="Day of publication. [default: today]",
)
@click.option(
    "--cohort-column",
    multiple=True,
    metavar="COLUMN",
    help="Count slides and patients by this column of your own. May be repeated.",
)
@click.option(
    "--permission",
    metavar="TEXT",
    help="By what right you publish although the terms of a teacher forbid it: a sentence, which the card quotes.",
)
@JSON
def card(path: Path, name: str | None, date: datetime.datetime | None, as_json: bool, **values: Any) -> None:
    """Write README.md and croissant.json: contents, licence, cohort, how to load the store and cite it."""
    from stores.publish.card import CardOptions, write_card

    day = (date or datetime.datetime.now()).date().isoformat()
    result = write_card(path, CardOptions(name=name or path.resolve().name, date=day, **values))
    show(as_json, result)


@store.command(short_help="Rebuild derived files")
@click.argument("path", type=PATH)
@click.option("--dry-run", is_flag=True, help="Show what would be done, and change nothing.")
@click.option("--prune", is_flag=True, help="Also remove chunks that no commit record lists.")
@JSON
def reindex(path: Path, dry_run: bool, prune: bool, as_json: bool) -> None:
    """Rebuild derived files: block statistics, checksums, merged commit records, the index.

    Exit code 1 means that parts of the store contradict each other.
    """
    from pipeline.runtime.progress import reporter_for
    from stores.verify.reindex import reindex as rebuild

    with reporter_for(sys.stderr) as report:
        result = rebuild(path, dry_run, prune, report)
    show(as_json, result)
    sys.exit(bool(result.problems))


@store.command(short_help="Upload a store to a URL or the hub")
@click.argument("path", type=PATH)
@click.argument("url")
@click.option(
    "--public", is_flag=True, help="Of hf:OWNER/NAME: make a new repository public. [default: private]"
)
@click.option("--revision", metavar="NAME", help="Of hf:OWNER/NAME: branch to push to. [default: main]")
@JSON
def push(path: Path, url: str, public: bool, revision: str | None, as_json: bool) -> None:
    """Upload a store to a URL such as s3://bucket/name, or as a dataset of the Hugging Face hub, hf:OWNER/NAME.

    Run it again after an interruption to continue.
    """
    from pipeline.runtime.progress import reporter_for
    from stores.remote import hub, hub_store, transfer
    from stores.remote.objects import Objects

    with reporter_for(sys.stderr) as report:
        if hub.is_hub(url):
            result = hub_store.push(path, url, public, revision, report)
        elif public or revision:
            raise OptionError("--public, --revision: are of hf:OWNER/NAME; leave them out")
        else:
            result = transfer.push(path, Objects(url), report)
    show(as_json, result)


@store.command(short_help="Download a store from a URL")
@click.argument("url")
@click.argument("out", type=PATH)
@click.option(
    "--digest",
    metavar="HEX",
    help="Digest of the seal that the owner published: the store must carry this seal.",
)
@JSON
def pull(url: str, out: Path, digest: str | None, as_json: bool) -> None:
    """Download a store from a URL, or from hf:OWNER/NAME, to a new folder.

    Run it again after an interruption to continue.
    """
    from pipeline.runtime.progress import reporter_for
    from stores.remote import transfer
    from stores.remote.objects import Objects, remote_url

    with reporter_for(sys.stderr) as report:
        objects = Objects(remote_url(url))
        result = transfer.pull(objects, out, report, digest)
    show(as_json, result)
