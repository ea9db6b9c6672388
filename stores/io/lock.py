"""One writer for a folder: a lock of the operating system, and an owner file where that lock may not reach.

The lock is ``flock`` on ``logs/.lock``; it ends with its process, even a killed one. Linux forwards it to the server of
NFS, so that other hosts see it, but not with the mount options ``nolock`` and ``local_lock``, and on other network file
systems it may hold within a host alone. Therefore ``logs/.owner`` names host, process and time of the writer, which
touches the file every half minute. A second host that finds it fresh is refused. `docs/decisions/0031-one-writer.md`.
"""

import contextlib
import datetime
import hashlib
import json
import os
import platform
import stat
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from stores.errors import OptionError
from stores.io.files import LOGS, PARTIAL, is_alive, make_folder, sweep_partials
from stores.io.location import odd_below
from stores.io.text import one_line

LOCK, OWNER = ".lock", ".owner"
BEAT_S = 30.0
STALE_S = 300.0
"""An owner of another host that has not touched its file for so long is taken for dead."""
_MAX_OWNER_BYTES = 4096
_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)


@dataclass(frozen=True, slots=True)
class Owner:
    """Who writes into a folder."""

    host: str
    boot: str
    """Identity of the running kernel, which all containers of a host share; the host's name where there is none."""
    process: int
    since: str

    @classmethod
    def here(cls) -> "Owner":
        """This process, from now on."""
        host = platform.node() or "unknown"
        try:
            boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        except OSError:
            boot = host
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        return cls(host, boot, os.getpid(), now)

    def __str__(self) -> str:
        return f"process {self.process} on host {one_line(self.host, 80)}, since {one_line(self.since, 40)}"


class Writer:
    """The holder of a folder's lock."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.swept = 0
        """Unfinished files and folders of a killed command that were removed."""

    def rename(self, to: Path) -> None:
        """Give the folder its final name; the lock stays with it."""
        os.rename(self.folder, to)
        self.folder = to


@contextlib.contextmanager
def only_writer(folder: Path) -> Iterator[Writer]:
    """Hold the lock of a folder while a command writes into it. A killed command does not block the next one.

    Who holds it sweeps first what a killed command left unfinished: `docs/decisions/0032-who-sweeps.md`.
    Lock and owner file are in ``logs``, which is no part of a store. They are removed at the end, and so are folders
    that were made here and into which nothing was written.

    Raises
    ------
    OptionError
        When another process holds the lock, or there is a link or a device in the folder: writing through it would
        change files elsewhere. Where the file system has no locks, the owner file alone counts.
    """
    import filelock  # here, since it takes a third of the time of `--help`

    missing = [path for path in (folder.absolute(), *folder.absolute().parents) if not path.exists()]
    make_folder(folder)
    logs = folder / LOGS
    require_plain(folder, LOGS)
    lock = filelock.FileLock(logs / LOCK, mode=0o666)  # colleagues may write into a shared folder, in turn
    writer, mine = Writer(folder), False
    text = json.dumps(asdict(Owner.here())) + "\n"
    try:
        try:
            logs.mkdir(exist_ok=True)
            lock.acquire(blocking=False)
        except (filelock.Timeout, FileNotFoundError, FileExistsError):  # or removed just now, by the other
            found = _read(logs / OWNER)
            who = f" ({found.owner})" if found and found.owner else ""
            raise OptionError(
                f"{folder}: another command is writing into it{who}; wait until it is done, or stop it first"
            ) from None
        except OSError:
            pass  # the file system has no locks, or nothing can be written: then the command itself says so
        mine = _claim(folder, text, lock.is_locked)
        require_plain(folder)
        if mine:  # alone here, so whatever is unfinished is of a command that was killed
            writer.swept = sweep_partials(folder)
        with _touched(writer) if mine else contextlib.nullcontext():
            yield writer
    finally:
        logs = writer.folder / LOGS
        with contextlib.suppress(OSError):
            found = _read(logs / OWNER)
            if mine and found and found.text in (text, ""):
                (logs / OWNER).unlink()
            if mine and lock.is_locked:
                # while it is held: a process that already opened this file then finds that it is gone, and retries
                (logs / LOCK).unlink()
        lock.release()
        for empty in (logs, *missing):
            with contextlib.suppress(OSError):
                empty.rmdir()  # nothing was written


def require_plain(folder: Path, *only: str) -> None:
    """Raise OptionError when something below a folder, or below some names in it, is neither a file nor a folder."""
    for path, what in odd_below(folder, *only):
        raise OptionError(
            f"{one_line(path, 500)}: {what}, and this command could change files elsewhere through it; put a plain "
            "file or folder in its place, or remove it"
        )


def _claim(folder: Path, text: str, locked: bool) -> bool:
    """Write the owner file; whether that was possible. OptionError when another owner is, or may be, alive."""
    path = folder / LOGS / OWNER
    for _ in range(5):
        try:
            if not _create_or_replace(path, text, folder, locked):
                continue
        except FileNotFoundError:  # the draft was swept by another
            continue
        except OSError:
            return False
        for draft in path.parent.glob(f"{OWNER}.*{PARTIAL}"):
            with contextlib.suppress(OSError):
                draft.unlink(missing_ok=True)
        return True
    raise OptionError(f"{folder}: another command has just begun to write into it; wait until it is done")


def _create_or_replace(path: Path, text: str, folder: Path, locked: bool) -> bool:
    try:
        _create(path, text)
    except FileExistsError:
        found = _read(path)
        return found is not None and _replace(path, text, found, _require_gone(folder, found, locked))
    return True


def _create(path: Path, text: str) -> None:
    """Make a file that appears with its content; FileExistsError when there is one."""
    draft = _draft(path, text)
    try:
        os.link(draft, path)
    except (FileExistsError, FileNotFoundError):
        raise
    except OSError:  # a file system without such links
        _open_new(path, text)
    finally:
        with contextlib.suppress(OSError):  # `_claim` tries again: the owner file counts, not its draft
            draft.unlink(missing_ok=True)


def _draft(path: Path, text: str) -> Path:
    draft = path.with_name(f"{path.name}.{uuid.uuid4().hex}{PARTIAL}")
    _open_new(draft, text)
    return draft


def _open_new(path: Path, text: str) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_FOLLOW, 0o666)
    with contextlib.suppress(OSError), os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)  # on a full disk it stays empty; the command itself says so


def _replace(path: Path, text: str, found: "_Found", alone: bool) -> bool:
    """Put another owner in the place of a dead one. Of several processes that have found the same one, one does it."""
    digest = hashlib.sha256(f"{found.text}{found.touched}".encode()).hexdigest()
    turn = path.with_name(f"{path.name}.{digest[:16]}")
    if not alone:
        try:
            _open_new(turn, "")
        except FileExistsError:
            left = _read(turn)  # by a process that was killed here, if it is old
            if left is not None and _now(path.parent.parent) - left.touched > STALE_S:
                turn.unlink(missing_ok=True)
            return False
    try:
        if _read(path) != found:
            return False
        os.replace(_draft(path, text), path)
    finally:
        if not alone:
            turn.unlink(missing_ok=True)
    return True


@dataclass(frozen=True, slots=True)
class _Found:
    owner: Owner | None
    """None in a file that cannot be read."""
    text: str
    touched: float


def _read(path: Path) -> _Found | None:
    """What an owner file says; None when there is none."""
    try:
        handle = os.open(path, os.O_RDONLY | _NO_FOLLOW | getattr(os, "O_NONBLOCK", 0))
    except OSError:
        return None
    with os.fdopen(handle, "rb") as file:
        status = os.fstat(handle)
        text = file.read(_MAX_OWNER_BYTES).decode("utf-8", "replace") if stat.S_ISREG(status.st_mode) else ""
    try:
        about = json.loads(text)
        owner = Owner(str(about["host"]), str(about["boot"]), int(about["process"]), str(about["since"]))
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError):
        return _Found(None, text, status.st_mtime)
    return _Found(owner, text, status.st_mtime)


def _require_gone(folder: Path, found: _Found, locked: bool) -> bool:
    """Raise OptionError unless an owner is dead; whether the lock shows that nobody else is here to replace it."""
    owner = found.owner
    here = Owner.here()
    if owner is not None and owner.boot == here.boot:
        if locked or not is_alive(owner.process):
            return locked  # a killed command of this host
        raise OptionError(
            f"{folder}: another command is writing into it ({owner}); wait until it is done, or stop it first"
        )
    age = _now(folder) - found.touched
    if age < STALE_S:
        who = "unknown" if owner is None else str(owner)
        raise OptionError(
            f"{folder}: another command is writing into it ({who}; last sign of life {max(age, 0):.0f} s ago); wait "
            f"until it is done, or stop it. If it is gone, delete {folder / LOGS / OWNER}, or try again in "
            f"{STALE_S - age:.0f} s"
        )
    return False


def _now(folder: Path) -> float:
    """The time as the file system has it, whose clock may differ from this host's."""
    probe = folder / LOGS / f".{os.getpid()}{PARTIAL}"
    try:
        probe.touch()
        now = probe.stat().st_mtime
        probe.unlink()
    except OSError:
        return time.time()
    return now


@contextlib.contextmanager
def _touched(writer: Writer) -> Iterator[None]:
    """Touch the owner file now and then, as a sign of life."""
    done = threading.Event()

    def touch() -> None:
        while not done.wait(BEAT_S):
            with contextlib.suppress(OSError):
                os.utime(writer.folder / LOGS / OWNER)

    thread = threading.Thread(target=touch, name="sign-of-life", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
