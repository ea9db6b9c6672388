"""Each kind of broken or hostile store gives its findings and nothing else, and whoever reads its rows refuses it."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.data.committed import BlockCache
from pipeline.data.split import open_split
from pipeline.evaluate.embeddings import from_store
from pipeline.views.policy import Policy
from stores.combine.subset import Selection, subset
from stores.errors import G2LError
from stores.export.export import ExportOptions, export
from stores.export.pseudonyms import Pseudonyms
from stores.format import recipe
from stores.info import store_info
from stores.publish.card import CardOptions, write_card
from tests.conformance import hostile, whole
from tests.tools.verify import findings_of

pytestmark = pytest.mark.slow
WAITING = ("link-for-a-folder", "folders-1500-deep")
KINDS = {name: about for name, about in hostile.KINDS.items() if not name.startswith(WAITING)}
"""Without a link whose target is read as well, and folders that are too deep for who removes them after the tests."""
COPIED = 12
"""One kind of so many is copied: writing takes ten times as long as reading."""
PSEUDONYMS = ExportOptions(pseudonyms=Pseudonyms(b"x" * 16))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("hostile")
    hostile.write(out, list(KINDS))
    return out


def read_rows(store: Path) -> int:
    """Read every committed view of both splits as training does, without its pixels; how many there are."""
    stored = recipe.load_complete(store)
    policy, n_views = Policy.from_json(stored.policy), 0
    for name in ("train", "val"):
        split = open_split(store, stored, name, None)
        split.statistics()
        cache = BlockCache(store, stored.tokens, policy, stored.attention)
        for unit in split.units:
            cache.commit(unit.commit)
            for seed in unit.seeds:
                n_views += len(cache.stored(unit.commit, unit.rows, seed)[0])
    from_store(store)
    return n_views


def test_a_whole_store_gives_no_finding(tmp_path: Path) -> None:
    for about in (None, whole.ATTENTION):
        store = whole.make(tmp_path / f"store-{about is None}", about=about)
        assert findings_of(store, views=True) == []
        assert read_rows(store) == 2 * (39 + 33 + 5)


def test_expectations_are_written_beside_the_stores(folder: Path) -> None:
    expected = json.loads((folder / "expected.json").read_text())
    assert list(expected) == sorted(KINDS)
    assert len(expected) >= 100
    for name in expected:
        assert (folder / name / "store").is_dir(), name


def _unexpected(name: str, store: Path) -> list[str]:
    """How the findings differ from what is expected."""
    left = [(f.file, f.kind, str(f)) for f in findings_of(store)]
    wrong = []
    for file, of, pattern in hostile.KINDS[name].findings:
        fits = [f for f in left if f[0].startswith(file) and f[1] == of and re.search(pattern, f[2])]
        if fits:
            left.remove(fits[0])
        else:
            wrong.append(f"{name}: no finding in {file}, {of}: {pattern}")
    return wrong + [f"{name}: beside what is expected: {text}" for _, _, text in left]


def test_verify_gives_exactly_these_findings(folder: Path) -> None:
    wrong = [text for name in KINDS for text in _unexpected(name, folder / name / "store")]
    assert wrong == [], "\n".join(wrong)


def refusal(call: Callable[..., object], *arguments: object) -> str | None:
    """The message of one of our errors, None when there is none; any other exception fails the test."""
    try:
        call(*arguments)
    except G2LError as error:
        return str(error)
    return None


def test_who_reads_rows_refuses_them(folder: Path) -> None:
    said = {name: refusal(read_rows, folder / name / "store") for name in KINDS}
    went_on = [name for name, about in KINDS.items() if about.rows and said[name] is None]
    assert went_on == []
    assert [name for name, text in said.items() if text is not None and "\n" in text] == []


def test_no_other_command_ends_in_a_traceback(folder: Path, tmp_path: Path) -> None:
    for number, name in enumerate(KINDS):
        store, out = folder / name / "store", tmp_path / name
        said = [
            refusal(store_info, store),
            refusal(write_card, store, CardOptions(name="store", date="2026-01-01")),
        ]
        if number % COPIED == 0:
            said.append(refusal(subset, store, out / "subset", Selection(seeds=1)))
            said.append(refusal(export, store, out / "export", PSEUDONYMS))
        assert not any("\n" in text for text in said if text is not None), name
