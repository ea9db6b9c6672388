"""``store verify``: structure, then views and features made again and compared with what is stored.

Structure needs the store alone. Views are rendered from the slides (or the store's own pixels) with the stored
parameters and compared by checksum; features are recomputed with a teacher that the user names, never the recipe.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from pipeline.runtime.cluster import open_cluster
from pipeline.runtime.options import IN_PROCESS, ClusterOptions
from pipeline.runtime.progress import Reporter, Silent
from pipeline.runtime.work import Advance, Cluster
from pipeline.tiles.places import find_places
from pipeline.verify.draws import check_draws, check_policy
from pipeline.verify.options import VerifyOptions
from pipeline.verify.slide_views import SlideLooker, SlideToLook, Verified
from pipeline.views.draw import RENDERING
from stores.errors import OptionError, StoreError
from stores.format import manifest, recipe
from stores.io.location import StoreLike
from stores.io.lock import only_writer
from stores.io.text import counted
from stores.verify.checks import SlideFiles, SlideFindings
from stores.verify.findings import Finding
from stores.verify.seal import Sealed, seal
from stores.verify.structure import Structure, verify_structure

_ROUNDS = 3  # broken metadata or a broken record may hide further faults


def verify(
    store: StoreLike, options: VerifyOptions, report: Reporter, where: ClusterOptions = IN_PROCESS
) -> Verified:
    """Verify a store as deeply as the options say; with ``repair``, mend what was found and verify again.

    Raises
    ------
    StoreError
        When it is no store.
    RecipeMismatch
        When the teacher that was given is not the store's.
    """
    options.validate()
    if not isinstance(store, Path) and where != IN_PROCESS:
        raise OptionError(f"{store}: a remote store is verified in this process; pull it to use several")
    if isinstance(store, Path):
        store = store.absolute()
        if options.repair and store.is_dir():
            with only_writer(store):
                return _verify(store, options, report, where)
    return _verify(store, options, report, where)


def _verify(store: StoreLike, options: VerifyOptions, report: Reporter, where: ClusterOptions) -> Verified:
    with open_cluster(where, f"verify {store}", report) as workers:
        result = _look(workers, store, options, report)
    repaired: list[str] = []
    for _ in range(_ROUNDS if options.repair else 0):
        if not isinstance(store, Path):
            raise StoreError(f"{store}: a remote store cannot be repaired; pull it, repair it, push it")
        from pipeline.verify.repair import (
            repair,  # torch and timm, which a look at the structure does not need
        )

        done = repair(store, result.findings, options, report) if result.findings else []
        if not done:
            break
        repaired += done
        with open_cluster(where, f"verify {store}", report) as workers:
            result = _look(workers, store, options, report)
    result.repaired = repaired
    return result


def _look(workers: Cluster, store: StoreLike, options: VerifyOptions, report: Reporter) -> Verified:
    def each(check: Any, slides: Iterable[SlideFiles]) -> Iterator[SlideFindings]:
        for done in workers.run(
            functools.partial(_with_draws, check, store, options.sample), slides, Silent()
        ):
            slide_id = done.item.slide_id
            lost = Finding(slide_id, f"could not be checked: {done.error}", "unreadable", slide_id)
            yield done.result or SlideFindings(slide_id, [lost], 0)

    result = Verified(verify_structure(store, options.partial, report, each, options.digest))
    result.findings.extend(check_policy(store))
    with contextlib.suppress(StoreError):  # structure has named it
        result.declared = recipe.load(store).declared is not None
    if options.slides or options.views or options.teacher:
        _recompute(workers, store, options, result, report)
    return result


def _with_draws(
    check: Callable[[SlideFiles], SlideFindings],
    store: StoreLike,
    sample: int | str,
    files: SlideFiles,
    advance: Advance,
) -> SlideFindings:
    found = check(files)
    found.findings.extend(check_draws(store, files, found.findings, sample))
    return found


def _recompute(
    workers: Cluster, store: StoreLike, options: VerifyOptions, result: Verified, report: Reporter
) -> None:
    try:
        stored = recipe.load(store)
        slides = [row for row in manifest.read_slides(store) if row["status"] == manifest.OK]
    except StoreError:
        return result.notes.append(
            "views and features were not checked: recipe or slides table is unreadable"
        )
    if not stored.complete:
        return result.notes.append("views and features were not checked: there are none yet")
    complete = recipe.require_complete(stored, store)
    if complete.reader.rendering != RENDERING:
        return result.notes.append(
            f"views were not checked: made by {complete.reader.rendering}, this version has {RENDERING}"
        )
    places = find_places(store, stored.patch, slides, options.slides, report=report) if options.slides else {}
    weights = None if options.weights is None else options.weights.absolute()
    options = dataclasses.replace(options, slides=(), weights=weights)
    looker = SlideLooker(workers.job, store, complete, options, workers.processes)
    workers.call(looker.require_teacher)
    records = [f for f in result.findings if f.kind == "commit"]
    items = [
        SlideToLook(row, places.get(row["slide_id"]), [f for f in records if f.slide_id == row["slide_id"]])
        for row in slides
    ]
    report.start("verify views", len(slides))
    parts: dict[str, Verified] = {}
    for done in workers.run(looker.look, items, report):
        slide_id = done.item.row["slide_id"]
        if done.result is None:
            parts[slide_id] = Verified(Structure())
            parts[slide_id].findings.append(
                Finding("", f"could not be checked: {done.error}", "view", slide_id)
            )
        else:
            parts[slide_id] = done.result
    for slide_id in sorted(parts):
        result.take_in(parts[slide_id])


def seal_store(store: Path, as_it_is: bool, report: Reporter) -> Sealed:
    """Verify the structure and seal.

    Raises
    ------
    StoreError
        When something is wrong with the store and `as_it_is` is not set.
    """
    if not as_it_is:
        found = [f for f in verify(store, VerifyOptions(), report).findings if f.kind != "seal"]
        if found:
            raise StoreError(
                f"{store}: not sealed, {counted(len(found), 'thing is', 'things are')} wrong: {found[0]}; see "
                "`g2l store verify`, or seal it all the same with --as-it-is"
            )
    return seal(store, report)
