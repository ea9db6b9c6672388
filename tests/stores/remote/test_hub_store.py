"""Stores on the Hugging Face hub: what arrives is the store, once, also after a kill; nothing is overwritten."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.runtime.progress import Silent
from pipeline.verify.verify import seal_store
from stores.errors import OptionError, StoreError
from stores.export.export import ExportOptions, export
from stores.format import layout, terms
from stores.format.terms import Fact, Terms
from stores.io import files
from stores.publish.card import CardOptions, write_card
from stores.remote import hub_store
from stores.remote.objects import Objects, remote_url
from stores.remote.store import open_store
from stores.remote.transfer import pull
from tests.tools.commands import g2l as command
from tests.tools.commands import one_error
from tests.tools.hub_server import FakeHub, log_in, serving
from tests.tools.stores import content, files_of, make_store

# of the HTTP library, on what the hub's client does
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
TO = "hf:lab/brca"
ND = Terms("t", Fact("CC-BY-NC-ND-4.0", "its page", "2026-11"))
CARD = CardOptions("brca", "2026-11-29")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub")
    make_store(folder / "loose", {"a": 40, "bv": 600})
    export(folder / "loose", folder / "store", ExportOptions(form="packed"))
    write_card(folder / "store", CARD)
    seal_store(folder / "store", False, Silent())
    return folder / "store"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[FakeHub]]:
    with serving(tmp_path, monkeypatch) as server:
        log_in(monkeypatch)
        yield server


def of_hub(hub: type[FakeHub]) -> dict[str, bytes]:
    return {k: v for k, v in hub.repos["datasets/lab/brca"].branches["main"].items() if k != ".gitattributes"}


def test_what_arrives_is_the_store(hub: type[FakeHub], made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_store, "FILES_PER_COMMIT", 5)
    done = hub_store.push(made, TO)
    mine = files_of(made)
    assert of_hub(hub) == mine
    assert (done.files, done.there_before) == (len(mine), 0)
    repo = hub.repos["datasets/lab/brca"]
    assert repo.private
    assert max(map(len, repo.commits)) == 5
    # last, together: before, it is no store
    assert repo.commits[-1] == ["checksums.sha256", "checksums.sha256.digest", "recipe.json"]
    again = hub_store.push(made, TO)
    assert again.there_before == again.files == len(mine)
    assert len(hub.uploads) == len(set(hub.uploads))
    assert sum(map(len, repo.commits)) == len(mine)


def test_a_killed_push_continues(hub: type[FakeHub], made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The third commit does not come about, after its files were uploaded."""
    monkeypatch.setattr(hub_store, "FILES_PER_COMMIT", 5)
    seen = []

    def refuse(method: str, path: str) -> int:
        seen.append(path.endswith("/commit/main"))
        return 400 if sum(seen) == 3 else 0

    hub.refuse = staticmethod(refuse)
    with pytest.raises(
        StoreError, match=r"hf:lab/brca: the hub did not do it .* start the same command again"
    ):
        hub_store.push(made, TO)
    assert "recipe.json" not in of_hub(hub)
    with pytest.raises(StoreError, match=r"no recipe\.json"):
        pull(Objects(remote_url(TO), attempts=1), made.with_name("out"))
    hub.refuse = staticmethod(lambda method, path: 0)
    done = hub_store.push(made, TO)
    assert done.there_before == 10
    assert of_hub(hub) == files_of(made)
    assert len(hub.uploads) == len(set(hub.uploads))


def test_it_comes_back_and_is_read_where_it_is(hub: type[FakeHub], made: Path, tmp_path: Path) -> None:
    hub_store.push(made, TO)
    done = pull(Objects(remote_url(TO)), tmp_path / "back", digest=layout.seal_digest(made))
    assert done.proof == "SHA-256 of the seal"
    assert files_of(tmp_path / "back") == files_of(made)
    with pytest.raises(StoreError, match="or you may not see it: log in with `hf auth login`"):
        pull(
            Objects(remote_url("hf:lab/another"), sleep=lambda _: pytest.fail("tried again")), tmp_path / "no"
        )
    with open_store(TO, tmp_path) as found:
        assert content(found) == content(made)  # type: ignore[arg-type]


def test_something_else_is_left_alone(hub: type[FakeHub], made: Path, tmp_path: Path) -> None:
    hub_store.push(made, TO)
    before = of_hub(hub)
    other = make_store(tmp_path / "other", {"a": 41})
    write_card(other, CARD)
    with pytest.raises(OptionError, match=r"holds something else than .*--revision NAME"):
        hub_store.push(other, TO)
    assert of_hub(hub) == before
    hub_store.push(made, TO, revision="sealed")
    assert hub.repos["datasets/lab/brca"].branches["sealed"].keys() == {*before, ".gitattributes"}


def test_terms_that_forbid_it(hub: type[FakeHub], tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", {"a": 5})
    files.write_json(store / layout.options_file("extract-teacher"), terms.recorded([ND]))
    with pytest.raises(OptionError, match="has no card"):
        hub_store.push(store, TO)
    write_card(store, CARD)
    before = (store / "README.md").read_text()
    with pytest.raises(OptionError, match=r"may not be passed on .* g2l store card --permission TEXT"):
        hub_store.push(store, TO)
    assert not hub.repos
    done = command("store", "card", store, "--permission", "agreement of 2026-03", "--date", "2026-11-29")
    assert done.exit_code == 0, done.output
    assert '"agreement of 2026-03"' in (store / "README.md").read_text()
    assert "agreement" not in before
    done = command("store", "push", store, TO, "--public")
    assert done.exit_code == 0, done.output
    assert not hub.repos["datasets/lab/brca"].private
    assert hub.token not in done.output


def test_more_files_than_the_hub_takes(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"features.zarr/s{n}/features/c/0/0/0" for n in range(9_000)]
    hub_store.require_fit(made, names)
    with pytest.raises(
        OptionError, match=r"10,000 entries in features.zarr; .* `g2l store export --packed --out DIR`"
    ):
        hub_store.require_fit(made, [f"features.zarr/s{n}/zarr.json" for n in range(10_000)])
    many = [f"features.zarr/s{n // 100}/features/c/0/{n}/0" for n in range(100_000)]
    with pytest.raises(OptionError, match="100,000 files; the hub takes fewer than 100,000"):
        hub_store.require_fit(made, many)
    monkeypatch.setattr(hub_store, "MAX_FILES", 5)
    copy = Path(shutil.copytree(made, tmp_path / "copy"))
    one_error(command("store", "push", copy, TO), "the hub takes fewer than 5 files")
    one_error(
        command("store", "push", copy, "s3://x/y", "--public"), "--public, --revision: are of hf:OWNER/NAME"
    )
