"""The stages as functions: what ``import pipeline as g2l`` offers, and what the command line calls.

Every option of a command is a keyword here: ``--min-tissue 0.3`` is ``min_tissue=0.3``, an option that may be repeated
takes a list, and ``g2l COMMAND --help`` explains each. A function does what its command does, log and summary files
included. It is silent unless it gets a reporter, as `pipeline.runtime.progress.reporter_for` makes one. A call that
was interrupted can be repeated: it continues. Errors are those of `stores.errors`.
"""

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, overload

from pipeline.runtime.options import ClusterOptions, from_json, types_of
from pipeline.tile.options import TileOptions
from stores.errors import OptionError
from stores.format import layout
from stores.io.location import LOGS, StoreLike, names_of
from stores.io.progress import SILENT, Reporter

if TYPE_CHECKING:
    from pipeline.distill.memory import MemoryPlan
    from pipeline.distill.prototypes.fit import Fitted
    from pipeline.distill.result import Distilled
    from pipeline.distill.taught import Named
    from pipeline.distill.weighted import WeightedStore
    from pipeline.embed.publish import EmbeddedTogether, EmbedSummary
    from pipeline.export.export import Exported
    from pipeline.export.push import Pushed
    from pipeline.extract.plan import Plan, PlannedTogether
    from pipeline.extract.result import Extracted, ExtractedTogether
    from pipeline.importing.importer import Imported
    from pipeline.runtime.log import RunLog
    from pipeline.tile.summary import TileSummary
    from pipeline.verify.slide_views import Verified
    from stores.family import Family
    from stores.store import Store


AnyPath = str | Path
AnyStore: TypeAlias = "str | Path | Store"


def tile(
    slides: AnyPath | Iterable[AnyPath], store: AnyPath, *, report: Reporter = SILENT, **options: Any
) -> "TileSummary":
    """Find tissue, lay the patch grid and split by patient: ``g2l tile``.

    Parameters
    ----------
    slides
        Slide files, or folders of slides.
    store
        Folder of the store, new or begun.
    report
        Shows progress.
    **options
        Fields of `pipeline.tile.options.TileOptions` (``mpp=0.5``, ``patch=256``, ...) and of
        `pipeline.runtime.options.ClusterOptions`. What is not given is as the store was tiled before, or the default.

    Returns
    -------
    TileSummary
        ``slides`` (rows of the slides table), ``unusable``, ``n_patches``; ``lines()`` and ``to_json()``.

    Raises
    ------
    OptionError
        For an unknown option, a value that is not allowed, or one that contradicts the store.
    """
    from pipeline.tile.tile import tile as run

    folder = _folder(store)
    given = _checked("tile", options, TileOptions, ClusterOptions)
    with _logged(report, folder / LOGS / "tile") as log:
        result = run(_paths(slides), folder, _as_tiled(folder, given), log, _made(ClusterOptions, given))
    _write_summary(folder / LOGS / "tile", result)
    return result


@overload
def plan(
    inputs: "AnyStore | Iterable[AnyPath]",
    *,
    teachers: None = None,
    report: Reporter = SILENT,
    **options: Any,
) -> "Plan": ...


@overload
def plan(
    inputs: "AnyStore | Iterable[AnyPath]",
    *,
    teachers: Sequence[Mapping[str, Any]],
    report: Reporter = SILENT,
    **options: Any,
) -> "PlannedTogether": ...


def plan(
    inputs: "AnyStore | Iterable[AnyPath]",
    *,
    teachers: Sequence[Mapping[str, Any]] | None = None,
    report: Reporter = SILENT,
    **options: Any,
) -> "Plan | PlannedTogether":
    """Predict patches, bytes, files and hours without writing anything: ``g2l plan``.

    Several teachers see the same views, which are counted once:
    ``plan("slides", teachers=[{"teacher": "h-optimus-0"}, {"teacher": "uni2-h", "store": "B"}])``.

    Parameters
    ----------
    inputs
        Slide files or folders of slides; or one tiled store, as a folder, a URL or an open `stores.Store`.
    teachers
        Several teachers: each with the options that are its own.
    **options
        Fields of `pipeline.extract.options.PlanOptions` (``seeds=4``, ``teacher=...``, ``store=...``) and of
        `pipeline.tile.options.TileOptions`.

    Returns
    -------
    Plan or PlannedTogether
        ``slides``, ``patches``, ``views``, ``feature_bytes(dim)``, ``hours``, and of a store ``left`` (views that it
        lacks); ``lines()`` and ``to_json()``. Of several teachers ``plans`` has these by name, and ``total_bytes``,
        ``hours`` and ``left`` are those of all.

    Raises
    ------
    OptionError
        For an unknown option, or a value that is not allowed.
    RecipeMismatch, StoreError
        When a store that is begun holds something else than is planned for it.
    """
    from pipeline.extract.options import PlanOptions
    from pipeline.extract.plan import plan_together as run
    from pipeline.extract.tiling import first_tiled

    given = _checked("plan", options, PlanOptions, TileOptions)
    each = [{**given, **own} for own in _own_of_teachers(teachers, given)]
    for own in each:
        if own.get("store") is not None:
            _folder(own["store"])
    asked = [_made(PlanOptions, own) for own in each]
    stores = [one.store for one in asked if one.store is not None]
    named = stores if len(stores) == len(asked) else [one.teacher for one in asked]
    by_name = dict(zip(names_of(named), asked, strict=True))
    tiling = _as_tiled(first_tiled(stores), given) if stores else _made(TileOptions, given)
    listed: list[Any] = _listed(inputs)
    only = listed[0] if len(listed) == 1 else None
    is_path = isinstance(only, str | Path)
    if only is not None and (not is_path or _is_url(only) or (Path(only) / layout.RECIPE).is_file()):
        with _opened(only) as files:
            found = run(files, by_name, tiling, report)
    else:
        found = run(_paths(listed), by_name, tiling, report)
    return found.first if teachers is None else found


def _own_of_teachers(
    teachers: Sequence[Mapping[str, Any]] | None, given: Mapping[str, Any]
) -> Sequence[Mapping[str, Any]]:
    """The options of each teacher that are its own; those of a single one are given with the others."""
    from pipeline.extract.options import SHARED, PlanOptions, require_distinct

    if teachers is None:
        return [{}]
    if not teachers:
        raise OptionError("plan: no teacher; give {'teacher': NAME} for each")
    for name in ("teacher", "store"):
        if name in given:
            raise OptionError(f"plan: several teachers: give each its own {name}, [{{{name!r}: ...}}]")
    for number, own in enumerate(teachers, 1):
        for name in _checked(f"plan: teacher {number}", own, PlanOptions):
            if name in SHARED:
                raise OptionError(
                    f"plan: teacher {number}: {name} holds for all teachers; give it beside them"
                )
    require_distinct([Path(own["store"]) for own in teachers if own.get("store") is not None])
    return teachers


def plan_student(
    student: str,
    *,
    store: "AnyStore | Sequence[AnyStore | tuple[AnyStore, float]] | None" = None,
    teachers: Sequence[Mapping[str, Any]] | None = None,
    device_memory: str | None = None,
    report: Reporter = SILENT,
    **options: Any,
) -> "MemoryPlan":
    """Predict the memory of a training step of a student: ``g2l plan --student``.

    Parameters
    ----------
    student
        A preset or a name of timm.
    store
        The store that it is to learn from, or several, as `distill` takes them; recipes alone are read.
    teachers
        In place of a store several teachers by name: each with ``teacher``, ``dim``, ``tokens``, ``attention``.
    device_memory
        Memory of the GPU that it should fit into, such as ``8GB``; by default several sizes are tried.
    **options
        Of a single teacher ``teacher`` or ``dim``, for the length of its features, ``tokens=N`` and ``attention=True``.
        Those of `pipeline.distill.options.OF_MEMORY` (``batch_size=32``, ``loss``, ``ema``, ...); ``dtype`` and
        ``device``: ``auto`` is a GPU that computes in bfloat16.

    Returns
    -------
    MemoryPlan
        ``peaks`` (bytes, by options of ``distill``), ``fitting(device_gb)``; ``lines()`` and ``to_json()``.

    Raises
    ------
    OptionError
        For an unknown option, a value that is not allowed, or a student that cannot be built without its weights.
    StoreError
        When a store has not what the loss needs.
    """
    from pipeline.distill.memory import DEVICES_GB, plan_memory
    from pipeline.distill.options import OF_MEMORY, DistillOptions
    from pipeline.distill.taught import of_stores, of_teachers
    from pipeline.extract.options import PlanOptions

    counted = {*OF_MEMORY, "device", *_OF_TEACHER}
    for name in _checked("plan", options, PlanOptions, DistillOptions):
        if name not in counted:
            flag = name.replace("_", "-")
            raise OptionError(f"--{flag}: is not counted in the memory of a --student; leave it out")
    dtype = options.get("dtype") or "auto"
    if dtype == "auto":
        dtype = "float32" if options.get("device", "auto") in ("cpu", "mps") else "bfloat16"
    own = {name: value for name, value in options.items() if name in OF_MEMORY}
    asked = _made(DistillOptions, {**own, "student": student, "dtype": dtype})
    sizes = DEVICES_GB if device_memory is None else (_gigabytes(device_memory),)
    with contextlib.ExitStack() as stack:
        if store is None:
            lessons = of_teachers(_named_teachers(teachers, options), asked)
        else:
            for name in _OF_TEACHER:
                if teachers is not None or name in options:
                    flag = "teacher" if name not in options else name
                    raise OptionError(f"--{flag}: the --store says what its teacher is; leave it out")
            given = _weighted(store)
            lessons = of_stores(
                [replace(one, store=stack.enter_context(_opened(one.store))) for one in given], asked
            )
    return plan_memory(asked, lessons, sizes, report)


_OF_TEACHER = ("teacher", "dim", "tokens", "attention")
"""What ``plan --student`` takes of a teacher that is only named."""


def _named_teachers(
    teachers: Sequence[Mapping[str, Any]] | None, options: Mapping[str, Any]
) -> "list[Named]":
    from pipeline.distill.taught import Named
    from pipeline.extract.options import PlanOptions

    found = []
    shared = {name: value for name, value in options.items() if name in _OF_TEACHER}
    for own in teachers or [{}]:
        for name in _checked("plan", own, PlanOptions):
            if name not in _OF_TEACHER:
                flag = name.replace("_", "-")
                raise OptionError(f"--{flag}: is not counted in the memory of a --student; leave it out")
        asked = _made(PlanOptions, {**shared, **own})
        asked.validate()
        found.append(Named(asked.teacher or "h-optimus-0", asked.dim, asked.tokens, asked.attention))
    return found


def _gigabytes(text: str) -> float:
    """The size of a device, such as ``8GB`` or ``11.9 GiB``."""
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?(GB|GiB)?", text.strip())
    if found is None or not float(found[1]):
        raise OptionError(f"--device-memory {text}: allowed is a size such as 8GB or 8GiB")
    return float(found[1]) * (1.073741824 if found[2] == "GiB" else 1)


@overload
def extract(
    slides: AnyPath | Iterable[AnyPath],
    store: AnyPath,
    *,
    like: "AnyStore | None" = None,
    report: Reporter = SILENT,
    **options: Any,
) -> "Extracted": ...


@overload
def extract(
    slides: AnyPath | Iterable[AnyPath],
    store: Mapping[Any, Mapping[str, Any]],
    *,
    like: "AnyStore | None" = None,
    report: Reporter = SILENT,
    **options: Any,
) -> "ExtractedTogether": ...


def extract(
    slides: AnyPath | Iterable[AnyPath],
    store: AnyPath | Mapping[Any, Mapping[str, Any]],
    *,
    like: "AnyStore | None" = None,
    report: Reporter = SILENT,
    **options: Any,
) -> "Extracted | ExtractedTogether":
    """Run the teacher once over every view of every patch: ``g2l extract-teacher``.

    Slides that are not tiled yet are tiled first. Several teachers see the same views, which are rendered once:
    ``extract(slides, {"A": {"teacher": "h-optimus-0"}, "B": {"teacher": "uni2-h", "tokens": 64}}, seeds=4)``.

    Parameters
    ----------
    slides
        Slide files, or folders of slides.
    store
        Folder of the store, new or begun. For several teachers the folder of each with the teacher and the options that
        are its own.
    like
        Folder or URL of a store, or an open `stores.Store`, whose slides table, patches, policy and seeds are taken
        over. Each view's checksum is compared with that of the other store.
    **options
        ``teacher=...`` is required. Fields of `pipeline.extract.options.ExtractOptions` (``seeds=4``, ``pixels=False``,
        ``device="auto"``, ...), of `pipeline.tile.options.TileOptions` and of
        `pipeline.runtime.options.ClusterOptions`.

    Returns
    -------
    Extracted or ExtractedTogether
        ``views`` (new), ``views_before``, ``bad_reads``, ``failed_slides``, with `like` also ``compared``; ``lines()``
        and ``to_json()``. Of several teachers ``stores`` has these for each, and ``rendered`` counts views that were
        rendered.

    Raises
    ------
    RecipeMismatch
        When the store was made with other options, weights or software.
    OptionError
        For an unknown option, a value that is not allowed, or one that contradicts `like`.
    ViewMismatch
        When a view is not that of `like`, or of another of the stores.
    DiskFull
        When there is no room for what is to be written.
    """
    from pipeline.extract.extract import extract_together as run
    from pipeline.extract.like import Like
    from pipeline.extract.options import SHARED, ExtractOptions
    from pipeline.extract.tiling import first_tiled

    given = _checked("extract", options, ExtractOptions, TileOptions, ClusterOptions)
    of_each = _of_each("extract", store, given, ExtractOptions, "teacher", SHARED)
    asked = [(_folder(folder), _made(ExtractOptions, own)) for folder, own in of_each]
    folders = [folder for folder, _ in asked]
    other = None
    with contextlib.ExitStack() as stack:
        if like is None:
            tiling = _as_tiled(first_tiled(folders), given)
        else:
            other = Like.of(stack.enter_context(_opened(like)))
            tiling = other.tile_options(given)
            asked = [(folder, other.options(own)) for folder, own in asked]
        log: Reporter = report
        for folder in folders:
            log = stack.enter_context(_logged(log, folder / LOGS / "extract-teacher"))
        done = run(_paths(slides), asked, tiling, log, _made(ClusterOptions, given), other)
    for one in done.stores:
        _write_summary(one.store / LOGS / "extract-teacher", one)
    return done if isinstance(store, Mapping) else done.stores[0]


def _of_each(
    function: str,
    places: AnyPath | Mapping[Any, Mapping[str, Any]],
    given: Mapping[str, Any],
    kind: type,
    name: str,
    shared: Sequence[str],
) -> list[tuple[Any, Mapping[str, Any]]]:
    """Each folder with the options of its encoder, called `name`: those that are given for all, and its own."""
    if not isinstance(places, Mapping):
        return [(places, given)]
    what = "store" if name == "teacher" else "folder"
    if not places:
        raise OptionError(f"{function}: no {what}; give each {name} a folder")
    if name in given:
        raise OptionError(
            f"{function}: several {what}s: give each its own {name}, {{'{what.upper()}': {{'{name}': ...}}}}"
        )
    for folder, own in places.items():
        for option in _checked(f"{function}: {folder}", own, kind):
            if option in shared:
                raise OptionError(
                    f"{function}: {folder}: {option} holds for all {name}s; give it beside the {what}s"
                )
    return [(folder, {**given, **own}) for folder, own in places.items()]


def distill(
    store: "AnyStore | Sequence[AnyStore | tuple[AnyStore, float]]",
    out: AnyPath,
    *,
    resume: bool = False,
    cache: AnyPath | None = None,
    cache_gb: float = 20.0,
    report: Reporter = SILENT,
    **options: Any,
) -> "Distilled":
    """Train a student on a store, or on several: ``g2l distill``. Under ``torchrun`` every process calls it.

    Parameters
    ----------
    store
        Folder or URL of a store with teacher features, or an open `stores.Store`. A list of them, or of pairs (store,
        weight), for several teachers of the same views.
    out
        Folder of the run. A run that is there is continued.
    resume
        Fail unless a checkpoint exists.
    cache, cache_gb
        Cache folder for a store behind a URL, by default a temporary one, and its size.
    **options
        ``student=...`` is required. Fields of `pipeline.distill.options.DistillOptions` (``loss="log-sum"``,
        ``epochs=10.0``, ``batch_size=32``, ``lr=None``, ...).

    Returns
    -------
    Distilled
        ``figures`` (those of ``summary.json``) and ``student`` (its folder); ``lines()`` and ``to_json()``.

    Raises
    ------
    OptionError
        For an unknown option, a value that is not allowed, or one that contradicts the run.
    StoreError
        When the store has no teacher features.
    """
    from pipeline.distill.options import DistillOptions
    from pipeline.distill.result import Distilled
    from pipeline.distill.train import distill as run
    from stores.io.files import write_text

    asked = _made(DistillOptions, _checked("distill", options, DistillOptions))
    folder = Path(out)
    given = _weighted(store)
    with contextlib.ExitStack() as stack:
        opened = []
        for number, one in enumerate(given, 1):
            place = cache if cache is None or len(given) == 1 else Path(cache) / str(number)
            files = stack.enter_context(_opened(one.store, place, cache_gb / len(given)))
            opened.append(replace(one, store=files))
        result = Distilled(folder, run(opened, folder, asked, resume, report))
    if result.figures:  # the first of several processes
        write_text(folder / "summary.txt", "\n".join(result.lines()) + "\n")
    return result


def _weighted(store: Any) -> "list[WeightedStore]":
    """One store or several, with their names and weights."""
    from pipeline.distill.weighted import named

    several = list(store) if isinstance(store, Sequence) and not isinstance(store, str) else [store]
    pairs = [one if isinstance(one, tuple) else (one, 1.0) for one in several]
    return named([(str(one) if isinstance(one, Path) else one, float(weight)) for one, weight in pairs])


def prototypes(
    store: AnyStore,
    out: AnyPath | None = None,
    *,
    cache: AnyPath | None = None,
    cache_gb: float = 20.0,
    report: Reporter = SILENT,
    **options: Any,
) -> "Fitted":
    """Fit prototypes of the teacher's features and tokens, for the losses dino and ibot: ``g2l prototypes``.

    Parameters
    ----------
    store
        Folder or URL of a store with teacher features, or an open `stores.Store`.
    out
        Folder to write into; by default ``STORE-prototypes-K`` beside a local store.
    **options
        Fields of `pipeline.distill.prototypes.options.PrototypeOptions` (``k=4096``, ``epochs=3``, ...).

    Returns
    -------
    Fitted
        ``out`` and ``about``, the content of ``prototypes.json``; ``lines()`` and ``to_json()``.

    Raises
    ------
    OptionError
        For an unknown option or a value that is not allowed, and without `out` for a store behind a URL.
    StoreError
        When the store has no teacher features.
    """
    from pipeline.distill.prototypes.fit import fit
    from pipeline.distill.prototypes.options import PrototypeOptions

    asked = _made(PrototypeOptions, _checked("prototypes", options, PrototypeOptions))
    if out is None:
        if _is_url(store):
            raise OptionError("--out: give a folder, since the store is behind a URL")
        out = Path(f"{str(store).rstrip('/')}-prototypes-{asked.k}")
    with _opened(store, cache, cache_gb) as files:
        return fit(files, Path(out), asked, report)


@overload
def embed(
    inputs: AnyPath | Iterable[AnyPath],
    out: AnyPath,
    *,
    watch: bool = False,
    report: Reporter = SILENT,
    **options: Any,
) -> "EmbedSummary": ...


@overload
def embed(
    inputs: AnyPath | Iterable[AnyPath],
    out: Mapping[Any, Mapping[str, Any]],
    *,
    watch: bool = False,
    report: Reporter = SILENT,
    **options: Any,
) -> "EmbeddedTogether": ...


def embed(
    inputs: AnyPath | Iterable[AnyPath],
    out: AnyPath | Mapping[Any, Mapping[str, Any]],
    *,
    watch: bool = False,
    report: Reporter = SILENT,
    **options: Any,
) -> "EmbedSummary | EmbeddedTogether":
    """Compute features of slides, or of the tiles in a CSV, with any encoder: ``g2l embed``.

    Several encoders see patches that are read once:
    ``embed(slides, {"a": {"encoder": "run/student"}, "b": {"encoder": "hibou-l", "batch_size": 8}})``.

    Parameters
    ----------
    inputs
        Slide files, folders of slides, or one CSV of tiles.
    out
        Folder to write into. For several encoders the folder of each with the encoder and the options that are its own.
    watch
        Go on with slides that arrive in the folders, until KeyboardInterrupt in a pause; returns what was done last.
    **options
        ``encoder=...`` is required. Fields of `pipeline.embed.options.EmbedOptions` (``format="parquet"``,
        ``pooling=None``, ...), of `pipeline.tile.options.TileOptions` and of `pipeline.runtime.options.ClusterOptions`.

    Returns
    -------
    EmbedSummary or EmbeddedTogether
        ``views`` (patches done now), ``views_before``, ``published``, ``dim``; ``lines()`` and ``to_json()``. Of
        several encoders ``outs`` has these for each, and ``read`` counts patches that were read.

    Raises
    ------
    RecipeMismatch
        When `out` was begun with another encoder, patch, format or software.
    OptionError
        For an unknown option, or a value that is not allowed.
    """
    from pipeline.embed.block import TILING
    from pipeline.embed.embed import embed_together as run
    from pipeline.embed.options import SHARED, EmbedOptions
    from pipeline.embed.watch import watch as arriving

    if watch:
        paths = _paths(inputs)
        if any(path.suffix.lower() == ".csv" for path in paths):
            raise OptionError("--watch: is for slides and folders of them; a CSV lists tiles that are there")
        return arriving(paths, lambda found: embed(found, out, report=report, **options), report)
    given = _checked("embed", options, EmbedOptions, TileOptions, ClusterOptions)
    of_each = _of_each("embed", out, given, EmbedOptions, "encoder", SHARED)
    asked = [(Path(folder), _made(EmbedOptions, own)) for folder, own in of_each]
    folders = [folder for folder, _ in asked]
    tiling = _as_tiled(folders[0] / TILING, given)
    with contextlib.ExitStack() as stack:
        log: Reporter = report
        for folder in folders:
            log = stack.enter_context(_logged(log, folder / LOGS / "embed"))
        done = run(_paths(inputs), asked, tiling, log, _made(ClusterOptions, given))
    for one in done.outs:
        _write_summary(one.out / LOGS / "embed", one)
    return done if isinstance(out, Mapping) else done.outs[0]


def export(
    encoder: AnyPath,
    out: AnyPath,
    *,
    store: "AnyStore | None" = None,
    cache: AnyPath | None = None,
    cache_gb: float = 20.0,
    report: Reporter = SILENT,
    **options: Any,
) -> "Exported":
    """Write an encoder for another runtime, and compare it with the original: ``g2l export``.

    Parameters
    ----------
    encoder
        Folder of a run or of a student, a preset, a timm name, ``hf-hub:owner/name`` or ``module:function``.
    out
        Folder to write; it must not exist.
    store
        Folder or URL of a store, or an open `stores.Store`, on whose views both are compared.
    cache, cache_gb
        Cache folder for a store behind a URL, by default a temporary one, and its size.
    **options
        ``format=...`` is required, and ``patches=[...]`` where `store` is not given. Fields of
        `pipeline.export.options.ExportOptions`.

    Returns
    -------
    Exported
        ``agrees``, ``agreement`` (``cosine_min``, ``cosine_median``, ``difference_max``), ``facts`` (the content of
        ``export.json``); ``lines()`` and ``to_json()``. When it does not agree, nothing is in `out`.

    Raises
    ------
    OptionError
        For an unknown option, a value that is not allowed, a package that is missing, and terms that forbid it.
    EncoderError
        When the encoder cannot be loaded, or not be written in this format.
    """
    from pipeline.export.export import export as run
    from pipeline.export.options import ExportOptions

    asked = _made(ExportOptions, _checked("export", options, ExportOptions))
    with contextlib.ExitStack() as stack:
        files = None if store is None else stack.enter_context(_opened(store, cache, cache_gb))
        return run(str(encoder), Path(out), asked, files, report)


def push_student(
    encoder: AnyPath,
    to: str,
    *,
    store: "AnyStore | None" = None,
    cache: AnyPath | None = None,
    cache_gb: float = 20.0,
    report: Reporter = SILENT,
    **options: Any,
) -> "Pushed":
    """Push a student to the Hugging Face hub, as a repository that timm opens: ``g2l push-student``.

    Parameters
    ----------
    encoder
        Folder of a run or of a student, or another encoder as for `export`.
    to
        ``hf:OWNER/NAME``.
    store
        Folder or URL of a store, or an open `stores.Store`, on whose views what is pushed is compared with the encoder.
    cache, cache_gb
        Cache folder for a store behind a URL, by default a temporary one, and its size.
    **options
        ``patches=[...]`` where `store` is not given. Fields of `pipeline.export.options.PushOptions`: ``public=True``,
        ``revision=...``, ``replace=True``, ...

    Returns
    -------
    Pushed
        ``agrees``, ``url``, ``uploaded`` (bytes by name; empty where all of it was there), ``facts`` (the content of
        ``export.json``); ``lines()`` and ``to_json()``. When it does not agree, nothing is pushed.

    Raises
    ------
    OptionError
        For an unknown option, a value that is not allowed, terms that forbid it, and a repository that holds something
        else.
    EncoderError
        When the encoder cannot be loaded, or timm cannot open it.
    StoreError
        When the hub refuses, or does not answer.
    """
    from pipeline.export.options import PushOptions
    from pipeline.export.push import push_student as run

    asked = _made(PushOptions, _checked("push_student", options, PushOptions))
    with contextlib.ExitStack() as stack:
        files = None if store is None else stack.enter_context(_opened(store, cache, cache_gb))
        return run(str(encoder), to, asked, files, report)


def verify(
    store: AnyStore,
    *,
    cache: AnyPath | None = None,
    cache_gb: float = 20.0,
    report: Reporter = SILENT,
    **options: Any,
) -> "Verified":
    """Check a store: structure; views with ``slides``; features with ``teacher``. ``g2l store verify``.

    Parameters
    ----------
    store
        Folder or URL of a store, or an open `stores.Store`.
    cache, cache_gb
        Cache folder for a store behind a URL, by default a temporary one, and its size.
    **options
        Fields of `pipeline.verify.options.VerifyOptions` (``slides=[...]``, ``sample=32`` or ``"all"``, ...) and of
        `pipeline.runtime.options.ClusterOptions`.

    Returns
    -------
    Verified
        ``findings``, empty when nothing is wrong; ``lines()`` and ``to_json()``.

    Raises
    ------
    StoreError
        When it is no store.
    RecipeMismatch
        When the teacher that was given is not the store's.
    OptionError
        For an unknown option, or a value that is not allowed.
    """
    from pipeline.verify.options import VerifyOptions
    from pipeline.verify.verify import verify as run

    given = _checked("verify", options, VerifyOptions, ClusterOptions)
    with _opened(store, cache, cache_gb) as files:
        return run(files, _made(VerifyOptions, given), report, _made(ClusterOptions, given))


def family(stores: Iterable[AnyStore]) -> "Family":
    """Compare stores of several teachers: ``g2l store info --family``.

    Parameters
    ----------
    stores
        Folders or URLs, or open `stores.Store` objects; two or more.

    Returns
    -------
    Family
        ``is_family``, ``differences``, ``stores`` (what each has and lacks), ``licence``;
        ``lines()`` and ``to_json()``.

    Raises
    ------
    StoreError
        When one is no store with teacher features.
    OptionError
        For fewer than two stores, or when one is given twice.
    """
    from stores.family import family as run

    with contextlib.ExitStack() as stack:
        return run([stack.enter_context(_opened(store)) for store in _listed(stores)])


def import_features(
    features: AnyPath,
    slides: AnyPath | Iterable[AnyPath],
    store: AnyPath,
    *,
    report: Reporter = SILENT,
    **options: Any,
) -> "Imported":
    """Make a store of features that TRIDENT or CLAM computed: ``g2l store import``.

    Parameters
    ----------
    features
        Folder with the h5 files of features.
    slides
        Slide files, or folders of slides.
    store
        Folder of the store, new or begun.
    **options
        ``encoder=...`` is required. Fields of `pipeline.importing.options.ImportOptions`.

    Returns
    -------
    Imported
        ``views`` (new), ``views_before``, ``failed_slides``; ``lines()`` and ``to_json()``.

    Raises
    ------
    OptionError
        For an unknown option, a value that is not allowed, or when no file is of a slide that was given.
    RecipeMismatch
        When the store was made otherwise.
    """
    from pipeline.importing.importer import import_features as run
    from pipeline.importing.options import ImportOptions

    folder = _folder(store)
    asked = _made(ImportOptions, _checked("import_features", options, ImportOptions))
    with _logged(report, folder / LOGS / "import") as log:
        result = run(Path(features), _paths(slides), folder, asked, log)
    _write_summary(folder / LOGS / "import", result)
    return result


def _checked(function: str, options: Mapping[str, Any], *kinds: type) -> Mapping[str, Any]:
    """`options`, all of which are fields of one of `kinds`; else an OptionError that names the first."""
    import difflib

    known = sorted({name for kind in kinds for name in types_of(kind)})
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"allowed: {', '.join(known)}"
            raise OptionError(f"{function}: no option {name!r}; {hint}")
    return options


def _made(kind: type, given: Mapping[str, Any]) -> Any:
    return from_json(kind, {name: value for name, value in given.items() if name in types_of(kind)})


def _as_tiled(folder: Path, given: Mapping[str, Any]) -> TileOptions:
    """What was given; the rest as the store in `folder` was tiled, or the defaults."""
    own = {name: value for name, value in given.items() if name in types_of(TileOptions)}
    options: TileOptions = from_json(TileOptions, {**layout.read_options(folder, "tile"), **own})
    return options


def _is_url(place: object) -> bool:
    from stores.remote.objects import is_url

    return is_url(str(place))


def _listed(paths: Any) -> list[Any]:
    return list(paths) if isinstance(paths, Iterable) and not isinstance(paths, str) else [paths]


def _paths(paths: AnyPath | Iterable[AnyPath]) -> list[Path]:
    return [Path(path) for path in _listed(paths)]


def _folder(store: AnyPath) -> Path:
    if _is_url(store):
        raise OptionError(
            f"{store}: a URL; this works on local folders: `g2l store push` and `pull` copy stores"
        )
    return Path(store)


@contextlib.contextmanager
def _opened(store: Any, cache: AnyPath | None = None, cache_gb: float = 20.0) -> Iterator[StoreLike]:
    """The files of a store, also of one that is too broken for `stores.open`."""
    if not isinstance(store, str | Path):
        yield store.files
        return
    from stores.remote.store import open_store

    with open_store(str(store), None if cache is None else Path(cache), cache_gb) as files:
        yield files


def _logged(report: Reporter, path: Path) -> "RunLog":
    from pipeline.runtime.log import RunLog

    return RunLog(report, path.with_name(f"{path.name}.jsonl"))


def _write_summary(path: Path, result: Any) -> None:
    """Keep the summary of a run beside its log."""
    from stores.io.files import write_json, write_text

    write_json(path.with_name(f"{path.name}-summary.json"), result.to_json())
    write_text(path.with_name(f"{path.name}-summary.txt"), "\n".join(result.lines()) + "\n")
