"""A repository on the Hugging Face hub: what is in it, and files added to it in commits.

Everything goes through ``huggingface_hub``. Who one is, it learns from ``hf auth login`` or ``HF_TOKEN``; no token is
read, kept or shown here.
"""

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stores.errors import OptionError, StoreError
from stores.io.progress import SILENT, Reporter
from stores.io.text import one_line

SCHEME = "hf:"
FILES_PER_COMMIT = 100
"""What the hub recommends at most: its page "Storage limits", section "Repository limitations and recommendations"."""
_NAME = re.compile(r"hf:(?://)?([A-Za-z0-9][\w.-]{0,95})/([A-Za-z0-9][\w.-]{0,95})")
_OF_THE_HUB = (".gitattributes",)
_PIECE_BYTES = 1 << 20


def is_hub(text: str) -> bool:
    """Whether a text names a repository of the hub.

    >>> is_hub("hf:lab/student"), is_hub("s3://lab/store")
    (True, False)
    """
    return text.startswith(SCHEME)


def parse_repository(text: str) -> str:
    """``OWNER/NAME`` of ``hf:OWNER/NAME``.

    >>> parse_repository("hf:lab/student")
    'lab/student'

    Raises
    ------
    OptionError
        When it is not the name of a repository.
    """
    found = _NAME.fullmatch(text)
    if found is None or ".." in text or "--" in text or text.endswith((".git", ".", "-")):
        raise OptionError(
            f"{one_line(text, 120)}: not a repository of the Hugging Face hub; allowed is hf:OWNER/NAME, of letters, "
            "digits, '.', '_', '-'"
        )
    return f"{found[1]}/{found[2]}"


def hub_problem(timeout_s: float = 5.0) -> str | None:
    """Why the hub cannot be asked at this moment, or None when it answers.

    One request with a short timeout: without it, the hub's client takes 23 s (five retries) to say that
    a machine has no network.
    """
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE or os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        return "HF_HUB_OFFLINE is set"
    try:
        get_session().head(constants.ENDPOINT, timeout=timeout_s)
    except Exception as error:  # any error of the HTTP library means that the hub did not answer
        return f"the hub cannot be reached: {one_line(error, 80) or type(error).__name__}"
    return None


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a repository, as the hub lists it."""

    size: int
    sha256: str | None
    """Of what is kept apart from git; None for the others."""
    blob: str
    """Git's name of it."""

    def is_same(self, path: Path) -> bool:
        """Whether a local file has this content."""
        size = path.stat().st_size
        if size != self.size:
            return False
        if self.sha256 is not None:
            return _digest(path, hashlib.sha256()) == self.sha256
        return _digest(path, hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)) == self.blob


def _digest(path: Path, digest: Any) -> str:
    with path.open("rb") as file:
        while piece := file.read(_PIECE_BYTES):
            digest.update(piece)
    return str(digest.hexdigest())


class Repository:
    """A repository, or the place of one that is not there yet.

    Parameters
    ----------
    name
        ``OWNER/NAME``.
    kind
        ``model`` or ``dataset``.
    revision
        A branch; None for ``main``.

    Raises
    ------
    StoreError
        When the hub cannot be reached.
    """

    def __init__(self, name: str, kind: str, revision: str | None = None) -> None:
        from huggingface_hub import HfApi

        problem = hub_problem()
        if problem is not None:
            raise StoreError(f"{SCHEME}{name}: {problem}")
        self.name, self.kind, self.revision = name, kind, revision
        self._api = HfApi()
        self._about: dict[str, Any] = {"repo_id": name, "repo_type": kind}
        self.is_private: bool | None = None
        """None while it is not known."""

    def __str__(self) -> str:
        at = "" if self.revision is None else f" at {self.revision}"
        return f"{SCHEME}{self.name}{at}"

    @property
    def url(self) -> str:
        """Its page."""
        from huggingface_hub import constants

        prefix = "datasets/" if self.kind == "dataset" else ""
        return f"{constants.ENDPOINT}/{prefix}{self.name}"

    def listed(self) -> dict[str, HubFile] | None:
        """The files of the branch by name, without those that the hub makes itself; None when there is no such branch.

        Raises
        ------
        StoreError
            When the hub refuses to say, or does not answer.
        """
        from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
        from huggingface_hub.hf_api import RepoFile

        with self._said():
            try:
                self.is_private = self._api.repo_info(**self._about).private
                tree = list(self._api.list_repo_tree(**self._about, revision=self.revision, recursive=True))
            except (RepositoryNotFoundError, RevisionNotFoundError):
                return None
        found = {}
        for each in tree:
            if isinstance(each, RepoFile) and each.path not in _OF_THE_HUB:
                found[each.path] = HubFile(each.size, each.lfs.sha256 if each.lfs else None, each.blob_id)
        return found

    def create(self, private: bool) -> None:
        """Make the repository and the branch, where they are missing."""
        with self._said():
            if self.is_private is None:
                self._api.create_repo(self.name, repo_type=self.kind, private=private, exist_ok=True)
                self.is_private = private
            if self.revision is not None:
                self._api.create_branch(**self._about, branch=self.revision, exist_ok=True)

    def commit(
        self,
        files: Mapping[str, Path],
        message: str,
        at_once: int | None = None,
        report: Reporter = SILENT,
    ) -> int:
        """Add files, or replace them, in one commit or several; returns how many commits there were.

        What was uploaded for a commit that did not come about is not uploaded again: the hub knows it by its digest.

        Parameters
        ----------
        at_once : int, optional
            Files of a commit; all by default.
        report : Reporter
            Advances by byte.
        """
        from huggingface_hub import CommitOperationAdd

        names = sorted(files)
        step = at_once or max(len(names), 1)
        parts = [names[start : start + step] for start in range(0, len(names), step)]
        for number, part in enumerate(parts, start=1):
            of = "" if len(parts) == 1 else f" ({number} of {len(parts)})"
            adds = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=str(files[name])) for name in part]
            with self._said():
                self._api.create_commit(
                    **self._about, operations=adds, commit_message=f"{message}{of}", revision=self.revision
                )
            report.advance(sum(files[name].stat().st_size for name in part), part[-1])
        return len(parts)

    @contextmanager
    def _said(self) -> Iterator[None]:
        """Make one line of what the client raises. Progress bars of its own are off: the caller has one."""
        from huggingface_hub.utils import are_progress_bars_disabled, logging
        from huggingface_hub.utils import disable_progress_bars as hide
        from huggingface_hub.utils import enable_progress_bars as show

        verbosity, shown = logging.get_verbosity(), not are_progress_bars_disabled()
        logging.set_verbosity_error()
        if shown:
            hide()
        try:
            yield
        except Exception as error:
            # the HTTP library of the client, and so its errors, changes with the version
            raise StoreError(f"{self}: {self._reason(error)}") from error
        finally:
            logging.set_verbosity(verbosity)
            if shown:
                show()

    def _reason(self, error: Exception) -> str:
        from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

        status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
        if isinstance(error, LocalTokenNotFoundError) or status == 401:
            return "the hub does not know you; log in with `hf auth login` or set HF_TOKEN, with a token that may write"
        if status == 403:
            return f"you may not write there; check owner and name, and that the token may write ({_brief(error)})"
        return f"the hub did not do it ({_brief(error)}); what is there already is kept: start the same command again"


def _brief(error: Exception) -> str:
    said = getattr(error, "server_message", None) or str(error)
    return one_line(re.sub(r"hf_[A-Za-z0-9]{8,}", "hf_...", said), 200) or type(error).__name__
