"""Read a store behind a URL of any fsspec file system, with retries, through a bounded cache on disk.

Opening it fetches the small files (recipe, options, manifest) into a folder; arrays are read file by file, and so are
commit records and patches of a store with an index. All traffic passes through `Objects`, the one place that retries.
"""

import contextlib
import hashlib
import os
import shutil
import stat
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from stores.errors import CorruptStore, OptionError, StoreError
from stores.format import layout
from stores.format.index import read_index
from stores.io.location import StoreLike
from stores.remote.objects import THREADS, Object, Objects, is_url, remote_url

_FETCHED = (layout.OPTIONS, layout.MANIFEST)
_LOCKS = 1024
_CACHE, _CACHE_LOCK = "g2l-cache-", ".lock"


class RemoteStore:
    """A store that is read over the network.

    Parameters
    ----------
    folder : Path
        Folder of the small files and the cache.
    cache_bytes : int
        Size of the cached array files in all; the least recently used are removed first.
    """

    def __init__(self, objects: Objects, folder: Path, cache_bytes: int) -> None:
        self.objects = objects
        self._mirror, self._chunks = folder / "store", folder / "chunks"
        self._limit, self._held = cache_bytes, 0
        self._sizes: OrderedDict[str, int] = OrderedDict()
        self._lock = threading.Lock()
        self._busy = tuple(threading.Lock() for _ in range(_LOCKS))
        self._listed: dict[str, Object] | None = None
        self._mirror.mkdir(parents=True, exist_ok=True)
        self._chunks.mkdir(exist_ok=True)
        self._small: dict[str, int] = {}  # bytes of every file below `_FETCHED`
        self._later: dict[str, int] = {}
        self._entries: dict[str, dict[str, int]] = {}
        self._fetch_small()

    def __str__(self) -> str:
        return self.objects.url

    def __truediv__(self, name: str) -> Path:
        if name in self._later:
            with self._busy_with(name):
                if name in self._later:
                    self._fetch_one(name, self._later[name])
                    del self._later[name]
        return self._mirror / name

    def entries(self, folder: str) -> dict[str, int]:
        """What is in a folder, by name: bytes of a file, 0 for a folder. Of the manifest, as when it was opened."""
        if folder.split("/")[0] in _FETCHED:
            return self._entries.get(folder, {})
        return self.objects.entries(folder)

    def list_files(self, beside: Collection[str] = ()) -> dict[str, int]:
        """Size in bytes of every file of the store, by name.

        Parameters
        ----------
        beside
            Folders at the top that are left out. A service lists 1,000 files for a request.
        """
        if not beside:
            return {name: about.size for name, about in self.list_objects().items()}
        found = self.objects.list_beside({*beside, *_FETCHED})
        return self._small | {name: about.size for name, about in found.items()}

    def list_objects(self) -> dict[str, Object]:
        """Size and MD5 of every file of the store; listed once."""
        if self._listed is None:
            self._listed = self.objects.list()
        return self._listed

    def _fetch_small(self) -> None:
        """Fetch recipe, options and manifest; where there is an index, records and patches only when they are used."""
        names: dict[str, int] = {layout.RECIPE: layout.limit_bytes(layout.RECIPE)}
        for folder in _FETCHED:
            for name, about in self.objects.list(folder).items():
                self._small[name] = about.size
                # a name that the format does not have may be a path that leads elsewhere
                if layout.classify(name) is not None:
                    names[name] = min(about.size, layout.limit_bytes(name))
                    self._list(name, about.size)
        many = {
            n: size for n, size in names.items() if n.startswith((f"{layout.VIEWS}/", f"{layout.PATCHES}/"))
        }
        self._fetch_all({name: size for name, size in names.items() if name not in many})
        self._later = many
        # one that does not fit is named by whoever opens the store by it
        with contextlib.suppress(StoreError):
            if read_index(self) is not None:
                return
        self._later = {}
        self._fetch_all(many)

    def _list(self, name: str, size: int) -> None:
        """Enter a file, and the folders above it."""
        folder, _, last = name.rpartition("/")
        while folder and last not in self._entries.setdefault(folder, {}):
            self._entries[folder][last] = size
            (folder, _, last), size = folder.rpartition("/"), 0

    def _fetch_all(self, names: Mapping[str, int]) -> None:
        with ThreadPoolExecutor(THREADS, thread_name_prefix="fetch") as pool:
            jobs = [pool.submit(self._fetch_one, name, size) for name, size in names.items()]
            try:
                for job in jobs:
                    job.result()
            finally:
                for job in jobs:
                    job.cancel()

    def _fetch_one(self, name: str, limit: int) -> None:
        data = self.objects.get(name, limit)
        if data is not None:
            path = self._mirror / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)

    def read(self, name: str, limit_bytes: int) -> bytes | None:
        """A file of the store, from the cache where it is; two threads never fetch the same file at once."""
        data = self._through_cache(name, lambda: self.objects.get(name, limit_bytes))
        if data is not None and len(data) > limit_bytes:
            raise CorruptStore(f"{self}/{name}: larger than {limit_bytes} bytes")
        return data

    def read_range(self, name: str, start: int, length: int) -> bytes | None:
        """A part of a file, cached like a file: of a shard only the chunks that are needed are fetched."""
        part = f"{name}:{start}+{length}"  # no file of a store has a colon in its name
        return self._through_cache(part, lambda: self.objects.get_range(name, start, length))

    def _through_cache(self, key: str, fetch: Callable[[], bytes | None]) -> bytes | None:
        with self._busy_with(key):
            data = self._cached(key)
            if data is None:
                data = fetch()
                if data is not None:
                    self._keep(key, data)
        return data

    def _busy_with(self, key: str) -> threading.Lock:
        """Held by who fetches a file; hardly ever by who fetches another one."""
        return self._busy[hash(key) % _LOCKS]

    def _cached(self, name: str) -> bytes | None:
        with self._lock:
            if name not in self._sizes:
                return None
            self._sizes.move_to_end(name)
            size = self._sizes[name]
        try:
            data = self._path(name).read_bytes()
        except FileNotFoundError:  # evicted just now
            return None
        return data if len(data) == size else None  # evicted, and being written again by another thread

    def _keep(self, name: str, data: bytes) -> None:
        if len(data) > self._limit:
            return
        with self._lock:  # room first, so that the bound holds at every moment
            self._held -= self._sizes.pop(name, 0)
            while self._held + len(data) > self._limit:
                oldest, size = self._sizes.popitem(last=False)
                self._held -= size
                self._path(oldest).unlink(missing_ok=True)
            self._path(name).write_bytes(data)
            self._held += len(data)
            self._sizes[name] = len(data)

    def _path(self, name: str) -> Path:
        return self._chunks / hashlib.sha256(name.encode()).hexdigest()


@contextlib.contextmanager
def open_store(text: str, cache: Path | None = None, cache_gb: float = 20.0) -> Iterator[StoreLike]:
    """A store by path or URL; the cache of a remote one is a temporary folder unless `cache` is given.

    Raises
    ------
    OptionError
        When the URL is of a kind that is not known or not installed, or `cache` is not empty.
    StoreError
        When it cannot be reached.
    """
    text = remote_url(text)
    if not is_url(text):
        yield Path(text)
        return
    if cache_gb <= 0:
        raise OptionError(f"--cache-gb {cache_gb}: allowed is above 0")
    if cache is not None:
        cache.mkdir(parents=True, exist_ok=True)
    with _own_folder(Path(tempfile.gettempdir()) if cache is None else cache) as folder:
        yield RemoteStore(Objects(text), folder, int(cache_gb * 1e9))


@contextlib.contextmanager
def _own_folder(root: Path) -> Iterator[Path]:
    """A new folder of this process alone; those that killed processes left beside it, up to 20 GB each, are removed."""
    import filelock

    for left in root.glob(f"{_CACHE}*") if os.name == "posix" else ():
        with contextlib.suppress(OSError):
            about = left.lstat()  # in a folder of all users, a name may be a link that somebody else made
            if stat.S_ISDIR(about.st_mode) and about.st_uid == os.getuid() and (left / _CACHE_LOCK).exists():
                # Timeout, an OSError: it is alive
                with filelock.FileLock(left / _CACHE_LOCK, blocking=False):
                    shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=_CACHE, dir=root))
    try:
        with filelock.FileLock(folder / _CACHE_LOCK):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
