"""Objects behind a URL: ranges, retries, checksums."""

import random
import re
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stores.errors import CorruptStore, OptionError, StoreError
from stores.io.files import first_line
from stores.remote.hub import is_hub, parse_repository

ATTEMPTS = 8
FIRST_DELAY_S, LAST_DELAY_S = 0.25, 20.0
THREADS = 16
_ASK_FIRST_BYTES = 64 << 20
_URL = re.compile(r"[a-z][a-z0-9+.-]*://.+", re.IGNORECASE)
_MD5 = re.compile(r'"?([0-9a-f]{32})"?')
_TIMEOUTS = {"connect_timeout": 10, "read_timeout": 30, "retries": {"max_attempts": 0}}
_S3 = ("s3", "s3a")


def is_url(text: str) -> bool:
    """Whether `text` is a URL, or names a repository of the hub, rather than a path.

    >>> is_url("s3://bucket/store"), is_url("stores/brca"), is_url("C://x"), is_url("hf:lab/brca")
    (True, False, True, True)
    """
    return _URL.fullmatch(text) is not None or is_hub(text)


def remote_url(text: str) -> str:
    """The URL that ``hf:OWNER/NAME`` or ``hf:OWNER/NAME@BRANCH`` stands for: a dataset of the hub; others as they are.

    >>> remote_url("hf:lab/brca"), remote_url("s3://labs/brca")
    ('hf://datasets/lab/brca', 's3://labs/brca')
    """
    if not is_hub(text) or "://" in text:
        return text
    name, at, branch = text.partition("@")
    return f"hf://datasets/{parse_repository(name)}{at}{branch}"


@dataclass(frozen=True, slots=True)
class Object:
    """What a listing says of a file."""

    size: int
    md5: str | None
    """Hex; None where the service does not give one."""


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
        found = self._try(f"listing {prefix}", lambda: self._fs.find(path, detail=True)) or {}
        return self._objects(found)

    def list_beside(self, folders: Collection[str]) -> dict[str, Object]:
        """As `list`, of all that is not in one of some folders at the top: these are not looked into."""
        top = self._listed_in("")
        found = self._objects({about["name"]: about for about in top})
        for about in top:
            name = self._below(about["name"])
            if about.get("type") == "directory" and name not in folders:
                found |= self.list(name)
        return found

    def entries(self, folder: str) -> dict[str, int]:
        """What is in a folder, by name: bytes of a file, 0 for a folder. Empty without it."""
        found = {}
        for about in self._listed_in(folder):
            is_folder = about.get("type") == "directory"  # some services give it a size
            found[self._below(about["name"]).rpartition("/")[2]] = 0 if is_folder else int(about["size"])
        return found

    def _listed_in(self, folder: str) -> Sequence[Mapping[str, Any]]:
        """What the service says of each file and folder in a folder, without those below."""
        path = f"{self._root}/{folder}".rstrip("/")
        listed = self._try(f"listing {folder}", lambda: self._fs.ls(path, detail=True)) or []
        return [about for about in listed if about["name"].strip("/") != path.strip("/")]

    def _objects(self, found: Mapping[str, Any]) -> dict[str, Object]:
        files = {
            self._below(full): about for full, about in found.items() if about.get("type", "file") == "file"
        }
        return {name: Object(int(about["size"]), _md5_of(about)) for name, about in files.items()}

    def _below(self, full: str) -> str:
        """The name below the URL."""
        return full.strip("/").removeprefix(self._root.lstrip("/") + "/")

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

    def get_range(self, name: str, start: int, length: int) -> bytes | None:
        """Bytes of a file from `start`, fewer where it ends before; None when there is none."""
        path = f"{self._root}/{name}"

        def once() -> bytes:
            try:
                return bytes(self._fs.cat_file(path, start=start, end=start + length))
            except Exception as error:
                if "range" in str(error).lower():  # it ends before `start`
                    return b""
                raise

        data: bytes | None = self._try(name, once)
        return data

    def put(self, name: str, data: bytes) -> None:
        """Write a file as a whole."""
        path = f"{self._root}/{name}"

        def once() -> bool:
            self._fs.pipe_file(path, data)
            return True

        if self._try(name, once) is None:
            raise StoreError(f"{self.url}: there is no such bucket or folder; make it first")

    def create(self, name: str, data: bytes) -> None:
        """Write a file unless there is one. Where the service has no such request, it may be overwritten."""
        path = f"{self._root}/{name}"

        def once() -> bool:
            try:
                self._fs.pipe_file(path, data, mode="create")
            except Exception as error:
                if not isinstance(error, FileExistsError) and "precondition" not in str(error).lower():
                    raise
            return True

        if self._try(name, once) is None:
            raise StoreError(f"{self.url}: there is no such bucket or folder; make it first")

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        self._try(name, lambda: self._fs.rm_file(f"{self._root}/{name}"))

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
