"""A store as a dataset repository of the Hugging Face hub.

It goes there in commits of a few files, ``recipe.json`` last, as to every URL. A push that was killed continues: files
that are there are compared by digest and not sent again, and the hub keeps what was uploaded for a commit that did not
come about. Nothing that is there is overwritten.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from stores.errors import OptionError, StoreError
from stores.format import layout, recipe
from stores.format.permission import permission_of
from stores.format.terms import objections, of_store
from stores.io.progress import SILENT, Reporter
from stores.io.text import counted, one_line
from stores.remote.hub import FILES_PER_COMMIT, HubFile, Repository, parse_repository
from stores.remote.transfer import LAST, Transferred, known_files

MAX_FILES, MAX_ENTRIES = 100_000, 10_000
"""Files of a repository and entries of a folder, which the hub recommends to stay below.

Source: "Storage limits" in the Hub documentation, section "Repository limitations and recommendations", 2026-11.
The same table has 20 GB for a file, and 50 GB as the limit: no file of a store has more than 1 GiB.
"""


def push(
    store: Path, to: str, public: bool = False, revision: str | None = None, report: Reporter = SILENT
) -> Transferred:
    """Upload a store to ``hf:OWNER/NAME``. Call it again after an interruption: it continues.

    Parameters
    ----------
    public : bool
        Make a new repository public.
    revision : str, optional
        A branch, made where it is missing.
    report : Reporter
        Advances by byte.

    Raises
    ------
    OptionError
        When the store has no card, terms forbid it, it has more files than the hub takes, or something else is there.
    StoreError
        When the hub refuses or does not answer, or the store is changed meanwhile.
    """
    name = parse_repository(to)
    stored = recipe.load_complete(store)
    result = Transferred(to, proof="digests of the files, as the hub has them")
    sizes = layout.list_files(store)
    names = known_files(sizes, result)
    require_fit(store, names)
    if layout.README not in sizes:
        raise OptionError(
            f"{store}: has no card, which is its page on the hub; write it with `g2l store card`"
        )
    _require_permitted(store, stored.teacher.name)
    repository = Repository(name, "dataset", revision)
    result.store = repository.url
    there = repository.listed() or {}
    missing = [each for each in names if each not in there]
    _require_same(repository, store, names, there)
    repository.create(private=not public)
    report.start("push", sum(sizes[each] for each in missing))
    chosen = {each: store / each for each in missing}
    repository.commit(
        {each: path for each, path in chosen.items() if each not in LAST},
        f"Upload {store.name} by g2l",
        FILES_PER_COMMIT,
        report=report,
    )
    layout.require_unchanged(store, sizes)
    repository.commit(
        {each: chosen[each] for each in LAST if each in chosen}, f"Finish {store.name}", report=report
    )
    arrived = repository.listed() or {}
    lost = [each for each in names if each not in arrived or arrived[each].size != sizes[each]]
    if lost:
        raise StoreError(f"{repository}: {lost[0]} did not arrive as it was sent; start the push again")
    result.files, result.there_before = len(names), len(names) - len(missing)
    result.bytes = sum(sizes[each] for each in names)
    return result


def require_fit(store: Path, names: Sequence[str]) -> None:
    """Raise OptionError when a store has more files than a repository, or a folder of one, should have."""
    entries = {parent for name in names for parent in _parents(name)} | set(names)
    folders = Counter(name.rpartition("/")[0] for name in entries)
    folder, most = folders.most_common(1)[0]
    if len(names) < MAX_FILES and most < MAX_ENTRIES:
        return
    found = (
        f"{len(names):,} files"
        if len(names) >= MAX_FILES
        else f"{most:,} entries in {folder or 'its folder'}"
    )
    raise OptionError(
        f"{store}: {found}; the hub takes fewer than {MAX_FILES:,} files in a repository and {MAX_ENTRIES:,} entries "
        "in a folder. Pack it with `g2l store export --packed --out DIR` and push that; if it is packed, push several "
        "parts: `g2l store subset` of the loose store, each packed"
    )


def _parents(name: str) -> list[str]:
    parts = name.split("/")[:-1]
    return ["/".join(parts[: depth + 1]) for depth in range(len(parts))]


def _require_permitted(store: Path, teacher: str) -> None:
    against_it = objections(of_store(store, teacher))
    if against_it and permission_of(store) is None:
        raise OptionError(
            f"{store}: terms speak against passing on what is made of its teacher: "
            f"{one_line('; '.join(against_it), 1000)}. If you may do it all the same, say in a sentence by what right; "
            "the card quotes it: g2l store card --permission TEXT, then seal and push again"
        )


def _require_same(
    repository: Repository, store: Path, names: Sequence[str], there: Mapping[str, HubFile]
) -> None:
    """Raise OptionError when a file of the repository is not of the store: nothing is overwritten or mixed."""
    mine = set(names)
    other = [
        one_line(name, 80)
        for name in sorted(there)
        if name not in mine or not there[name].is_same(store / name)
    ]
    if other:
        more = f" (and {counted(len(other) - 1, 'file')} more)" if other[1:] else ""
        raise OptionError(
            f"{repository}: holds something else than {store}: {other[0]}{more}; choose another name, or a branch of "
            "its own with --revision NAME"
        )
