"""Stores behind a URL: any fsspec file system, read with retries, through a bounded cache on disk.

Opening fetches what is small and needed as a whole (recipe, options, manifest) into a folder; arrays are read file by
file. All traffic goes through `Objects`, the one place that retries.
"""

import contextlib
import hashlib
import random
import re
import shutil
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stores.errors import CorruptStore, OptionError, StoreError
from stores.format.layout import classify
from stores.io.files import first_line
from stores.io.location import StoreLike

ATTEMPTS = 8
FIRST_DELAY_S, LAST_DELAY_S = 0.25, 20.0
THREADS = 16
_MAX_SMALL_BYTES = 1 << 30
_ASK_FIRST_BYTES = 64 << 20
_URL = re.compile(r"[a-z][a-z0-9+.-]*://.+", re.IGNORECASE)
_MD5 = re.compile(r'"?([0-9a-f]{32})"?')
_TIMEOUTS = {"connect_timeout": 10, "read_timeout": 30, "retries": {"max_attempts": 0}}
_S3 = ("s3", "s3a")


def is_url(text: str) -> bool:
    """Whether `text` is a URL rather than a path.

    >>> is_url("s3://bucket/store"), is_url("stores/brca"), is_url("C://x")
    (True, False, True)
    """
    return _URL.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class Object:
    """What a listing says of a file."""

    size: int
    md5: str | None
    """Hex; None where the service does not tell it."""


class Objects:
    """The files below a URL: list, get and put, each tried again when the network or the service fails.

    Parameters
    ----------
    sleep, jitter
        How to wait, and where the random part of the waiting time comes from.
    """

    def __init__(
        self,
        url: str,
        sleep: Callable[[float], None] = time.sleep,
        jitter: random.Random | None = None,
        attempts: int = ATTEMPTS,
    ) -> None:
        self.url = url.rstrip("/")
        self._sleep, self._jitter, self._attempts = sleep, jitter or random.Random(), attempts
        scheme = url.partition("://")[0].lower()
        settings: dict[str, Any] = {"skip_instance_cache": True, "use_listings_cache": False}
        if scheme in ("file", "local"):
            settings["auto_mkdir"] = True
        if scheme in _S3:
            settings["config_kwargs"] = _TIMEOUTS | {"max_pool_connections": 2 * THREADS}
        try:
            import fsspec

            self._fs, self._root = fsspec.core.url_to_fs(self.url, **settings)
        except ImportError as error:
            extra = "g2l[s3]" if scheme in _S3 else first_line(error)
            raise OptionError(
                f"{url}: needs a package that is not installed: pip install '{extra}'"
            ) from None
        except ValueError as error:
            raise OptionError(f"{url}: not a URL that fsspec knows ({first_line(error)})") from None
        if scheme in _S3:
            self._fs.retries = 1  # otherwise it retries on its own, in another way for each kind of failure
        self._root = self._root.rstrip("/")

    def list(self, prefix: str = "") -> dict[str, Object]:
        """Every file below `prefix`, by its name below the URL; empty when there is none."""
        path = f"{self._root}/{prefix}".rstrip("/")
        found: Mapping[str, Any] = (
            self._try(f"listing {prefix}", lambda: self._fs.find(path, detail=True)) or {}
        )
        result = {}
        for full, about in found.items():
            name = full.lstrip("/").removeprefix(self._root.lstrip("/") + "/")
            if about.get("type", "file") == "file":
                result[name] = Object(int(about["size"]), _md5_of(about))
        return result

    def get(self, name: str, limit_bytes: int) -> bytes | None:
        """The bytes of a file, None when there is none; CorruptStore when there are more than `limit_bytes`."""
        path = f"{self._root}/{name}"
        if limit_bytes > _ASK_FIRST_BYTES:  # some backends allocate all that may come
            about = self.about(name)
            if about is None:
                return None
            if about.size > limit_bytes:
                raise CorruptStore(f"{self.url}/{name}: larger than {limit_bytes} bytes")
            limit_bytes = about.size

        def once() -> bytes:
            try:
                return bytes(self._fs.cat_file(path, start=0, end=limit_bytes + 1))
            except Exception as error:
                if "range" in str(error).lower():  # an empty object has none
                    return bytes(self._fs.cat_file(path))
                raise

        data: bytes | None = self._try(name, once)
        if data is not None and len(data) > limit_bytes:
            raise CorruptStore(f"{self.url}/{name}: larger than {limit_bytes} bytes")
        return data

    def put(self, name: str, data: bytes) -> None:
        """Write a file as a whole."""
        path = f"{self._root}/{name}"

        def once() -> bool:
            self._fs.pipe_file(path, data)
            return True

        if self._try(name, once) is None:
            raise StoreError(f"{self.url}: there is no such bucket or folder; make it first")

    def about(self, name: str) -> Object | None:
        """Size and MD5 of one file, None when there is none."""
        found = self._try(name, lambda: self._fs.info(f"{self._root}/{name}"))
        return None if found is None else Object(int(found["size"]), _md5_of(found))

    def _try(self, what: str, call: Callable[[], Any]) -> Any:
        for attempt in range(self._attempts):
            try:
                return call()
            except FileNotFoundError:
                return None
            except PermissionError as error:
                raise StoreError(
                    f"{self.url}: no access ({first_line(error)}); check the credentials"
                ) from None
            except Exception as error:  # every backend and every layer below has errors of its own
                if type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError"):
                    raise StoreError(
                        f"{self.url}: no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
                    ) from None
                if attempt + 1 == self._attempts:
                    raise StoreError(
                        f"{self.url}: {what}: {self._attempts} attempts failed, the last with "
                        f"{type(error).__name__}: {first_line(error)}; try again later"
                    ) from None
            delay = min(FIRST_DELAY_S * 2**attempt, LAST_DELAY_S)
            self._sleep(delay * (0.5 + self._jitter.random()))
        raise AssertionError


def _md5_of(about: Mapping[str, Any]) -> str | None:
    match = _MD5.fullmatch(str(about.get("ETag", "")))
    return match[1] if match else None


class RemoteStore:
    """A store that is read over the network.

    Parameters
    ----------
    folder : Path
        Where the small files and the cache lie.
    cache_bytes : int
        Array files are kept up to this size in all, the least recently used go first.
    """

    def __init__(self, objects: Objects, folder: Path, cache_bytes: int) -> None:
        self.objects = objects
        self._mirror, self._chunks = folder / "store", folder / "chunks"
        self._limit, self._held = cache_bytes, 0
        self._sizes: OrderedDict[str, int] = OrderedDict()
        self._lock = threading.Lock()
        self._busy: dict[str, threading.Lock] = {}
        self._listed: dict[str, Object] | None = None
        self._mirror.mkdir(parents=True, exist_ok=True)
        self._chunks.mkdir(exist_ok=True)
        self._fetch_small()

    def __str__(self) -> str:
        return self.objects.url

    def __truediv__(self, name: str) -> Path:
        return self._mirror / name

    def list_files(self) -> dict[str, int]:
        """Size in bytes of every file of the store."""
        return {name: about.size for name, about in self.list_objects().items()}

    def list_objects(self) -> dict[str, Object]:
        """What the service says of every file of the store; listed once."""
        if self._listed is None:
            self._listed = self.objects.list()
        return self._listed

    def _fetch_small(self) -> None:
        names: dict[str, int] = {"recipe.json": 16 << 20}
        for folder in ("options", "manifest"):
            for name, about in self.objects.list(folder).items():
                if (
                    classify(name) is not None
                ):  # anything else is not ours, and may be a path that leads elsewhere
                    names[name] = min(about.size, _MAX_SMALL_BYTES)
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
        with self._lock:
            busy = self._busy.setdefault(name, threading.Lock())
        with busy:
            data = self._cached(name)
            if data is None:
                data = self.objects.get(name, limit_bytes)
                if data is not None:
                    self._keep(name, data)
        if data is not None and len(data) > limit_bytes:
            raise CorruptStore(f"{self}/{name}: larger than {limit_bytes} bytes")
        return data

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
                self._busy.pop(oldest, None)
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
    if not is_url(text):
        yield Path(text)
        return
    if cache_gb <= 0:
        raise OptionError(f"--cache-gb {cache_gb}: allowed is above 0")
    if cache is not None:
        cache.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="g2l-cache-", dir=cache))
    try:
        yield RemoteStore(Objects(text), folder, int(cache_gb * 1e9))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
