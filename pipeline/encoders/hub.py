"""The Hugging Face hub: what is cached, whether it answers, and what to do when it does not."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

from stores.errors import WeightsError
from stores.io.text import one_line
from stores.remote.hub import hub_problem

OTHER_WAYS = "or give --weights PATH with a file fetched elsewhere, or --random-weights SEED for a trial"


def brief(error: BaseException | str, limit: int = 200) -> str:
    """Another library's message, which may quote a foreign file, as one line of at most `limit` characters."""
    text = one_line(error, limit + 1) or type(error).__name__
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def fetch(repo: str, names: Sequence[str], *, gated: bool = False, otherwise: str = OTHER_WAYS) -> Path:
    """Path of the first of `names` that is in the hub's cache, or that repository `repo` has.

    A cached file is used without a request to the hub, so that machines without network work.

    Parameters
    ----------
    repo
        ``OWNER/NAME`` or ``OWNER/NAME@REVISION``.
    gated
        Whether the owner is known to grant access one by one.
    otherwise
        What to do without the hub, for the message.

    Raises
    ------
    WeightsError
        With what to do about it: no network, access not granted, no such repository or file.
    """
    from huggingface_hub.errors import GatedRepoError

    cause: Exception | None = None
    try:
        found = find_cached(repo, names)
        problem = hub_problem() if found is None else None
        if found is None and problem is None:
            found = _download(repo, names)
            problem = f"it holds neither {' nor '.join(names)}"
        if found is not None:
            return found
    except Exception as error:  # the HTTP library of the client, and so its errors, changes with the version
        cause, problem = error, _reason(error)
        gated = gated or isinstance(error, GatedRepoError)
    access = "request access on its page (it is gated), then " if gated else ""
    raise WeightsError(
        f"cannot fetch {repo} from the Hugging Face hub ({problem}): {access}log in with `hf auth login` "
        f"(older: `huggingface-cli login`) or HF_TOKEN; {otherwise}"
    ) from cause


def find_cached(repo: str, names: Sequence[str]) -> Path | None:
    """Path of the first of `names` in the hub's cache on this machine; touches no network."""
    from huggingface_hub import try_to_load_from_cache

    owner_name, _, revision = repo.partition("@")
    for name in names:
        path = try_to_load_from_cache(owner_name, name, revision=revision or None)
        if isinstance(path, str):
            return Path(path)
    return None


def _download(repo: str, names: Sequence[str]) -> Path | None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import RemoteEntryNotFoundError

    owner_name, _, revision = repo.partition("@")
    for name in names:
        with contextlib.suppress(RemoteEntryNotFoundError):
            return Path(hf_hub_download(owner_name, name, revision=revision or None))
    return None


def _reason(error: Exception) -> str:
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return "access is not granted to you"
    if isinstance(error, errors.RevisionNotFoundError):
        return "there is no such revision"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "it does not exist or is private"
    return brief(error)
