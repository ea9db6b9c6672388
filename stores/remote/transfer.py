"""Copies of a store to and from a URL: resumable, and every file is proved to have arrived.

``recipe.json`` is sent last: an unfinished upload is not a store yet. A file that exists already is kept when its MD5
is right, or its bytes, where the service gives no MD5.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from stores.errors import CorruptStore, OptionError, StoreError
from stores.format import layout, recipe
from stores.io import files
from stores.io.location import read_file
from stores.io.lock import Owner
from stores.io.progress import SILENT, Reporter
from stores.io.staging import staged
from stores.io.text import counted, first_of, human_bytes, one_line
from stores.remote.hub import is_hub
from stores.remote.objects import THREADS, Object, Objects
from stores.verify.seal import check_digest, read_checksums

LAST = (layout.CHECKSUMS, layout.DIGEST, layout.RECIPE)
_CLAIM = "push.json"
"""At the URL while a store is pushed there: which one, and by whom. No part of the store."""
_MAX_CLAIM_BYTES = 4096


@dataclass(slots=True)
class Transferred:
    """What a push or a pull did."""

    store: str
    """The URL or folder that the store was copied to."""
    files: int = 0
    bytes: int = 0
    there_before: int = 0
    """Files that an earlier run had copied."""
    left_out: list[str] = field(default_factory=list)
    """Files whose names the format does not have; they are not copied."""
    proof: str = ""
    """How arrival was proved."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)

    def lines(self) -> list[str]:
        """The same to read."""
        return [
            f"{self.store}: {counted(self.files, 'file')}, {human_bytes(self.bytes)}; {self.there_before} of them were "
            "there from an earlier run",
            f"proved by: {self.proof}",
            *first_of("left out, not a file of the format", self.left_out),
        ]


def _each(names: Iterable[str], work: Callable[[str], tuple[int, bool]], result: Transferred) -> None:
    """Work on all names with threads, each returning (bytes, was there before); the first error stops the rest."""
    with ThreadPoolExecutor(THREADS, thread_name_prefix="transfer") as pool:
        jobs = [pool.submit(work, name) for name in names]
        try:
            wait(jobs, return_when=FIRST_EXCEPTION)
            for job in jobs:
                if job.done():
                    _count(result, *job.result())
        finally:
            for job in jobs:
                job.cancel()


def _count(result: Transferred, size: int, before: bool) -> None:
    result.files += 1
    result.bytes += size
    result.there_before += before


def known_files(names: Iterable[str], result: Transferred) -> list[str]:
    """The names that the format has, sorted; the others are noted in `result`."""
    known = [name for name in sorted(names) if layout.classify(name) is not None]
    result.left_out = sorted(set(names) - set(known))
    return known


def push(store: Path, objects: Objects, report: Reporter = SILENT) -> Transferred:
    """Upload a store. Call it again after an interruption: it continues.

    Parameters
    ----------
    report : Reporter
        Advances by byte.

    Raises
    ------
    OptionError
        When another store is at the URL, or is being pushed there.
    StoreError
        When a file did not arrive as it was sent.
    """
    recipe.load(store)
    result = Transferred(objects.url, proof="MD5 or bytes of each file, as the service has it")
    sizes = layout.list_files(store)
    names = known_files(sizes, result)
    there = objects.list()
    stored = objects.get(layout.RECIPE, layout.limit_bytes(layout.RECIPE))
    if stored is not None and stored != read_file(store, layout.RECIPE, layout.limit_bytes(layout.RECIPE)):
        raise OptionError(
            f"{objects.url}: another store is there (its recipe.json differs); choose another URL"
        )
    claim = _claim_of(store)
    if objects.get(_CLAIM, _MAX_CLAIM_BYTES) is None:
        objects.create(_CLAIM, json.dumps(claim).encode())
    _require_claim(objects, claim)
    if layout.INDEX in there and layout.INDEX not in names:
        objects.remove(layout.INDEX)  # of the store as it was pushed before
    report.start("push", sum(sizes[name] for name in names))

    def send(name: str) -> tuple[int, bool]:
        data = read_file(store, name, sizes[name])
        if data is None:
            raise StoreError(f"{store}/{name}: was listed and is gone; start the push again")
        before = _same(objects, name, there.get(name), data)
        if not before:
            objects.put(name, data)
            if not _same(objects, name, objects.about(name), data):
                raise StoreError(f"{objects.url}/{name}: did not arrive as it was sent; start the push again")
        report.advance(len(data), name)
        return len(data), before

    _each([name for name in names if name not in LAST], send, result)
    layout.require_unchanged(store, sizes)
    _require_claim(objects, claim)
    for name in LAST:
        if name in names:
            _count(result, *send(name))
    objects.remove(_CLAIM)
    return result


def _claim_of(store: Path) -> dict[str, str]:
    """What tells a store from others that are pushed to the same URL; equal when its push is continued."""
    digests = {}
    for name in (layout.RECIPE, layout.SLIDES):
        raw = read_file(store, name, layout.limit_bytes(name))
        digests[name] = "" if raw is None else hashlib.sha256(raw).hexdigest()
    return {**digests, "by": str(Owner.here())}


def _require_claim(objects: Objects, claim: Mapping[str, str]) -> None:
    """Raise OptionError when another store is being pushed to the URL: the files of both would mix."""
    raw = objects.get(_CLAIM, _MAX_CLAIM_BYTES)
    if raw is None:
        return  # another push of the same store has ended
    try:
        found = files.parse_json(raw.decode())
        same = all(found[name] == claim[name] for name in (layout.RECIPE, layout.SLIDES))
        by = one_line(found["by"])
    except (ValueError, KeyError, TypeError, RecursionError):
        same, by = False, "unknown"
    if not same:
        raise OptionError(
            f"{objects.url}: another store is being pushed there ({by}); wait for it, or choose another URL. If that "
            f"push will never be continued, remove {_CLAIM} there"
        )


def _same(objects: Objects, name: str, there: Object | None, data: bytes) -> bool:
    if there is None or there.size != len(data):
        return False
    if there.md5 is not None:
        return there.md5 == hashlib.md5(data, usedforsecurity=False).hexdigest()
    return objects.get(name, len(data)) == data


def pull(objects: Objects, out: Path, report: Reporter = SILENT, digest: str | None = None) -> Transferred:
    """Download a store. `out` appears when every file has arrived and was checked.

    Parameters
    ----------
    digest : str, optional
        Of the seal that the store must carry.

    Raises
    ------
    OptionError
        When `out` exists.
    StoreError
        When there is no store, a file is not what the seal or the service says, or the seal is another one.
    """
    layout.require_digest(digest)
    listed = objects.list()
    if layout.RECIPE not in listed:
        raise StoreError(
            f"{objects.url}: no {layout.RECIPE}, so there is no store, or its upload is unfinished"
            + (", or you may not see it: log in with `hf auth login`" if is_hub(objects.url) else "")
        )
    result = Transferred(str(out))
    names = known_files(listed, result)
    identity = hashlib.sha256(
        objects.get(layout.RECIPE, layout.limit_bytes(layout.RECIPE)) or b""
    ).hexdigest()
    with staged(out, {"command": "pull", "url": objects.url, "recipe": identity}) as stage:
        for name in (layout.CHECKSUMS, layout.DIGEST):
            if name in listed:
                _count(result, *_fetch(objects, name, listed[name], stage, None))
        sealed = read_checksums(stage)
        for finding in check_digest(stage, digest):
            raise CorruptStore(f"{objects.url}/{finding}")
        result.proof = _proof(sealed, [listed[name] for name in names])
        missing = sorted(set(sealed or ()) - set(listed))
        if missing:
            raise StoreError(f"{objects.url}/{missing[0]}: is missing, the seal lists it")
        rest = [name for name in names if name not in (layout.CHECKSUMS, layout.DIGEST)]
        report.start("pull", sum(listed[name].size for name in rest))

        def fetch(name: str) -> tuple[int, bool]:
            fetched = _fetch(objects, name, listed[name], stage, sealed)
            report.advance(listed[name].size, name)
            return fetched

        _each(rest, fetch, result)
    return result


def _proof(sealed: Mapping[str, str] | None, objects: Iterable[Object]) -> str:
    if sealed is not None:
        return "SHA-256 of the seal"
    if all(about.md5 is not None for about in objects):
        return "MD5 of the service; not sealed: run `g2l store verify`"
    return "sizes only: the service gives no MD5, and the store is not sealed: run `g2l store verify`"


def _fetch(
    objects: Objects, name: str, listed: Object, stage: Path, sealed: Mapping[str, str] | None
) -> tuple[int, bool]:
    before = read_file(stage, name, layout.limit_bytes(name))
    if before is not None and _wrong(name, before, listed, sealed) is None:
        return len(before), True
    data = objects.get(name, min(listed.size, layout.limit_bytes(name)))
    if data is None:
        raise StoreError(f"{objects.url}/{name}: was listed and is gone; start the pull again")
    wrong = _wrong(name, data, listed, sealed)
    if wrong is not None:
        raise CorruptStore(f"{objects.url}/{name}: {wrong}")
    with files.replacing(stage / name) as partial:
        partial.write_bytes(data)
    return len(data), False


def _wrong(name: str, data: bytes, listed: Object, sealed: Mapping[str, str] | None) -> str | None:
    if len(data) != listed.size:
        return f"{len(data)} bytes, the listing says {listed.size}"
    if sealed is not None and name not in (layout.CHECKSUMS, layout.DIGEST):
        if name not in sealed:
            return "is not in the seal: added afterwards"
        return None if hashlib.sha256(data).hexdigest() == sealed[name] else "is not what was sealed"
    if listed.md5 is not None and listed.md5 != hashlib.md5(data, usedforsecurity=False).hexdigest():
        return "has another MD5 than the service gives"
    return None
