"""The commands of the two stages: parse, call `pipeline.api`, print."""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click

from pipeline import api
from pipeline.commands.click_options import (
    PATH,
    STORE,
    Command,
    Option,
    SeveralCommand,
    given,
    options_of,
    remote_options,
    repeated,
    show,
)
from pipeline.distill.options import OF_MEMORY, DistillOptions
from pipeline.distill.prototypes.options import PrototypeOptions
from pipeline.distill.weighted import parse_weight
from pipeline.embed.options import SHARED as EMBED_SHARED
from pipeline.embed.options import EmbedOptions
from pipeline.export.options import CHECK, ExportOptions, PushOptions
from pipeline.extract.options import SHARED, ExtractOptions, PlanOptions, own_options, require_distinct
from pipeline.runtime.options import ENCODER, MACHINE, VIEWS, ClusterOptions, types_of
from pipeline.tile.options import TileOptions
from stores.errors import SOME_SLIDES_FAILED, OptionError
from stores.io.location import names_of
from stores.io.text import counted

_one_or_several = partial(click.option, cls=Option, multiple=True, one_or_several=True)
_for_option = partial(_one_or_several, "--for", "own", heading=ENCODER)


@click.command("tile", cls=Command, short_help="Find tissue and lay the patch grid")
@click.argument("slides", nargs=-1, required=True, type=PATH)
@click.option("--store", required=True, type=PATH, metavar="DIR", help="Folder of the store.")
@options_of(TileOptions, ClusterOptions)
def tile_command(slides: tuple[Path, ...], store: Path, as_json: bool, **values: Any) -> None:
    """Find tissue, lay the patch grid, split by patient, and draw a picture of each slide.

    A CSV with a column path lists tiles instead: images that were cut before.
    """
    from pipeline.runtime.progress import reporter_for

    with reporter_for(sys.stderr) as report:
        result = api.tile(slides, store, report=report, **given(values))
    show(as_json, result)
    _exit_if(result.some_failed)


_OF_STUDENT = tuple(name for name in OF_MEMORY if name not in types_of(PlanOptions))
_PLANNED = {*OF_MEMORY, *types_of(PlanOptions), *types_of(TileOptions)}
_NOT_PLANNED = tuple(name for name in types_of(DistillOptions) if name not in _PLANNED)


@click.command("plan", cls=SeveralCommand, short_help="Predict patches, disk space and time")
@click.argument("inputs", nargs=-1, type=STORE)
@click.option(
    "--student",
    cls=Option,
    heading=ENCODER,
    metavar="ENCODER",
    help="Instead of slides: the memory of a training step of this student, with --batch-size views [32].",
)
@_one_or_several(
    "--teacher",
    "teachers",
    heading=ENCODER,
    metavar="ENCODER",
    help="The teacher. Its name gives the feature length; --measure finds its speed. Several teachers see the same "
    "views, which are counted once.",
)
@_one_or_several(
    "--store",
    "listed",
    type=STORE,
    metavar="DIR",
    help="Store that the views are for, new or begun: says what is left to do. Of several teachers one for each. With "
    "--student the stores that it will learn from, or their URLs.",
)
@_for_option(
    metavar="NAME:OPTION=VALUE",
    help="An option of one of several teachers, by its name, or by the last part of its store: uni2-h:tokens=64.",
)
@click.option(
    "--device-memory",
    cls=Option,
    heading=MACHINE,
    metavar="SIZE",
    help="With --student: memory of the GPU that it should fit into, such as 8GB. [default: 8, 12, 16 and 24 GB]",
)
@options_of(PlanOptions, TileOptions, DistillOptions, without=("teacher", "store", *_NOT_PLANNED))
def plan_command(
    inputs: tuple[str, ...],
    student: str | None,
    teachers: tuple[str, ...],
    listed: tuple[str, ...],
    own: tuple[str, ...],
    device_memory: str | None,
    as_json: bool,
    **values: Any,
) -> None:
    """Predict what slides, or a tiled store, will need: patches, views, bytes, files and hours. Writes nothing.

    With --student and no slides: the memory that training it will need, and what fits into small GPUs.
    """
    if bool(inputs) == (student is not None):
        raise OptionError(
            "plan: give slides or a store, or --student for the memory of its training: one of them"
        )
    from pipeline.extract.plan import Plan, PlannedTogether
    from pipeline.runtime.progress import reporter_for

    options: dict[str, Any] = given(values)
    if student is not None:
        several = (
            _several(teachers, (), own, PlanOptions, may_lack_stores=True) if teachers[1:] or own else None
        )
        options |= {"teacher": teachers[0]} if teachers and several is None else {}
        stores = [parse_weight(text) for text in listed] or None
        with reporter_for(sys.stderr) as report:
            memory = api.plan_student(
                student, store=stores, teachers=several, device_memory=device_memory, report=report, **options
            )
        show(as_json, memory)
        return
    for name in (*_OF_STUDENT, *(["device_memory"] if device_memory is not None else [])):
        if name in options or name == "device_memory":
            flag = name.replace("_", "-")
            raise OptionError(f"--{flag}: is for the memory of a --student; leave it out")
    result: Plan | PlannedTogether
    with reporter_for(sys.stderr) as report:
        if teachers[1:] or listed[1:] or own:
            several = _several(teachers, listed, own, PlanOptions, may_lack_stores=True)
            result = api.plan(inputs, teachers=several, report=report, **options)
        else:
            options |= {"teacher": teachers[0]} if teachers else {}
            options |= {"store": listed[0]} if listed else {}
            result = api.plan(inputs, report=report, **options)
    show(as_json, result)
    _exit_if(result.some_failed)


@click.command("extract-teacher", cls=SeveralCommand, short_help="Run the teacher over all views, once")
@click.argument("slides", nargs=-1, required=True, type=PATH)
@_one_or_several(
    "--teacher",
    "teachers",
    required=True,
    heading=ENCODER,
    metavar="ENCODER",
    help="Preset, timm name, hf-hub:owner/name, folder, or module:function. Several teachers see the same views, which "
    "are rendered once.",
)
@_one_or_several(
    "--store",
    "listed",
    required=True,
    type=PATH,
    metavar="DIR",
    help="Folder of the store; of several teachers one for each, in their order.",
)
@_for_option(
    metavar="STORE:OPTION=VALUE",
    help="An option of one of several teachers, by the last part of its store: B:weights=PATH, B:attention.",
)
@click.option(
    "--like",
    type=STORE,
    metavar="DIR|URL",
    cls=Option,
    heading=VIEWS,
    help="Make the views of this store again for another teacher: its patches, splits, policy and seeds.",
)
@options_of(ExtractOptions, TileOptions, ClusterOptions, without=("teacher",))
def extract_command(
    slides: tuple[Path, ...],
    teachers: tuple[str, ...],
    listed: tuple[Path, ...],
    own: tuple[str, ...],
    like: str | None,
    as_json: bool,
    **values: Any,
) -> None:
    """Run the teacher once over every view of every patch. Slides that are not tiled yet are tiled first.

    With --like, each view's checksum is compared with that of the other store.
    """
    from pipeline.extract.result import Extracted, ExtractedTogether
    from pipeline.runtime.progress import reporter_for

    result: Extracted | ExtractedTogether
    with reporter_for(sys.stderr) as report:
        if len(teachers) == len(listed) == 1 and not own:
            options = {"teacher": teachers[0], **given(values)}
            result = api.extract(slides, listed[0], like=like, report=report, **options)
        else:
            stores = {each.pop("store"): each for each in _several(teachers, listed, own, ExtractOptions)}
            result = api.extract(slides, stores, like=like, report=report, **given(values))
    show(as_json, result)
    _exit_if(result.some_failed)


def _several(
    teachers: Sequence[str],
    stores: Sequence[str | Path],
    own: Sequence[str],
    kind: type,
    may_lack_stores: bool = False,
    words: tuple[str, str] = ("teacher", "store"),
) -> list[dict[str, Any]]:
    """Each teacher with its store and what ``--for`` says of it; or whatever `words` says in their places."""
    a_teacher, a_store = words
    if len(teachers) != len(stores) and (stores or not may_lack_stores):
        raise OptionError(
            f"--{a_teacher}: {counted(len(teachers), a_teacher)} for {counted(len(stores), a_store)}; give "
            f"{'an' if a_store == 'out' else 'a'} --{a_store} for each --{a_teacher}, in the same order"
        )
    if len(teachers) < 2:
        raise OptionError(f"--for {own[0]}: there is one {a_teacher}; give the option itself")
    named = a_store if stores else a_teacher
    for flag in repeated():
        name = flag.removeprefix("--")
        raise OptionError(
            f"{flag}: given twice; an option holds for all {a_teacher}s of a command, and --for "
            f"{named.upper()}:{name}=VALUE gives one {a_teacher} its own"
        )
    require_distinct([Path(store) for store in stores], a_store)  # before two that are one become one key
    shared = EMBED_SHARED if kind is EmbedOptions else SHARED
    options = own_options(own, names_of(stores or teachers), kind, named, shared)
    found = [{a_teacher: teacher, **mine} for teacher, mine in zip(teachers, options, strict=True)]
    for each, store in zip(found, stores, strict=False):  # `plan` needs none
        each[a_store] = store
    return found


@click.command("distill", cls=Command, short_help="Train a student on a store")
@_one_or_several(
    "--store",
    "listed",
    required=True,
    type=STORE,
    metavar="DIR|URL[:WEIGHT]",
    help="The store: a folder or a URL. Several stores of the same views are several teachers, each with a weight.",
)
@click.option("--out", "run", required=True, type=PATH, metavar="DIR", help="Folder of the run.")
@click.option("--resume", is_flag=True, help="Fail unless a checkpoint exists.")
@remote_options
@options_of(DistillOptions)
def distill_command(listed: tuple[str, ...], run: Path, as_json: bool, **values: Any) -> None:
    """Train a student on the teacher features of a store, or of several. The teachers themselves are not loaded.

    The same command continues a run that was stopped.
    """
    from pipeline.runtime.progress import reporter_for

    with reporter_for(sys.stderr) as report:
        stores = [parse_weight(text) for text in listed]
        result = api.distill(stores, run, report=report, **given(values))
    if result.figures:  # the first of several processes prints
        show(as_json, result)


@click.command("prototypes", cls=Command, short_help="Fit prototypes for the dino and ibot losses")
@click.option("--store", required=True, type=STORE, metavar="DIR|URL", help="The store: a folder or a URL.")
@click.option(
    "--out",
    type=PATH,
    metavar="DIR",
    help="Folder to write into. [default: STORE-prototypes-K, beside a local store]",
)
@remote_options
@options_of(PrototypeOptions)
def prototypes_command(store: str, as_json: bool, **values: Any) -> None:
    """Fit prototypes of the teacher's features and tokens, which `distill --loss dino` and `ibot` need."""
    from pipeline.runtime.progress import reporter_for

    with reporter_for(sys.stderr) as report:
        result = api.prototypes(store, report=report, **given(values))
    show(as_json, result)


@click.command("embed", cls=SeveralCommand, short_help="Compute features with any encoder")
@click.argument("inputs", nargs=-1, required=True, type=PATH)
@_one_or_several(
    "--encoder",
    "encoders",
    required=True,
    heading=ENCODER,
    metavar="ENCODER",
    help="Preset, timm name, hf-hub:owner/name, a run's student folder, or module:function. Several encoders see "
    "patches that are read once.",
)
@_one_or_several(
    "--out",
    "listed",
    required=True,
    type=PATH,
    metavar="DIR",
    help="Folder to write into; of several encoders one for each, in their order.",
)
@_for_option(
    metavar="OUT:OPTION=VALUE",
    help="An option of one of several encoders, by the last part of its folder: B:pooling=cls, B:format=clam.",
)
@click.option("--watch", is_flag=True, help="Go on with slides that arrive in the folders, until Ctrl-C.")
@options_of(EmbedOptions, TileOptions, ClusterOptions, without=("encoder",))
def embed_command(
    inputs: tuple[Path, ...],
    encoders: tuple[str, ...],
    listed: tuple[Path, ...],
    own: tuple[str, ...],
    watch: bool,
    as_json: bool,
    **values: Any,
) -> None:
    """Compute features of slides, or of the tiles in a CSV, with any encoder, in formats that other tools read."""
    from pipeline.embed.publish import EmbeddedTogether, EmbedSummary
    from pipeline.runtime.progress import reporter_for

    result: EmbedSummary | EmbeddedTogether
    with reporter_for(sys.stderr) as report:
        if len(encoders) == len(listed) == 1 and not own:
            result = api.embed(
                inputs, listed[0], watch=watch, report=report, encoder=encoders[0], **given(values)
            )
        else:
            several = _several(encoders, listed, own, EmbedOptions, words=("encoder", "out"))
            outs = {each.pop("out"): each for each in several}
            result = api.embed(inputs, outs, watch=watch, report=report, **given(values))
    show(as_json, result)
    _exit_if(result.some_failed)


@click.command("export", cls=Command, short_help="Write a student for other runtimes")
@click.argument("encoder")
@click.option("--out", required=True, type=PATH, metavar="DIR", help="Folder to write; it must not exist.")
@click.option(
    "--store",
    type=STORE,
    cls=Option,
    heading=CHECK,
    metavar="DIR|URL",
    help="Compare on views of this store, such as the one that the student was trained on.",
)
@remote_options
@options_of(ExportOptions)
def export_command(encoder: str, out: Path, store: str | None, as_json: bool, **values: Any) -> None:
    """Write a run's student, or any encoder, as ONNX, TorchScript, a WSInfer folder or a timm folder.

    What was written is run and compared with the original. When it differs, nothing is kept, and the exit code is 1.
    """
    from pipeline.runtime.progress import reporter_for

    with reporter_for(sys.stderr) as report:
        result = api.export(encoder, out, store=store, report=report, **given(values))
    show(as_json, result)
    if not result.agrees:
        sys.exit(1)


@click.command("push-student", cls=Command, short_help="Push a student to the Hugging Face hub")
@click.argument("encoder", metavar="RUN")
@click.argument("to", metavar="hf:OWNER/NAME")
@click.option(
    "--store",
    type=STORE,
    cls=Option,
    heading=CHECK,
    metavar="DIR|URL",
    help="Compare on views of this store, such as the one that the student was trained on.",
)
@remote_options
@options_of(PushOptions)
def push_student_command(encoder: str, to: str, store: str | None, as_json: bool, **values: Any) -> None:
    """Push a run's student, or any encoder that timm opens, to a repository of the Hugging Face hub.

    It is what `export --format hf` writes, in one commit; a new repository is private. Log in with `hf auth login`
    first. What was written is run and compared with the original. When it differs, nothing is pushed, and the exit
    code is 1.
    """
    from pipeline.runtime.progress import reporter_for

    with reporter_for(sys.stderr) as report:
        result = api.push_student(encoder, to, store=store, report=report, **given(values))
    show(as_json, result)
    if not result.agrees:
        sys.exit(1)


def _exit_if(some_failed: bool) -> None:
    if some_failed:
        sys.exit(SOME_SLIDES_FAILED)
