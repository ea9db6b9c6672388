"""A sample of the campaign: one place of each command on stores, killed, and its disk broken."""

import shutil
from pathlib import Path

import pytest

from tests.tools.made_stores import MadeSlide, make_store
from tests.torture import campaign, compare
from tests.torture.commands import COMMANDS, Kit

pytestmark = pytest.mark.kill
LIGHT = ("seal", "reindex", "card", "export pseudonyms")


class MadeKit(Kit):
    """Stores without slides, in milliseconds."""

    def basis(self) -> None:
        self.get("key")

    def _made_store(self, path: Path, *names: str) -> None:
        make_store(path, [MadeSlide(name, n_seeds=2, pixels=True) for name in names])

    def _store(self, path: Path) -> None:
        self._made_store(path, "a", "b", "c", "d")

    def _part(self, path: Path, *slides: str) -> None:
        self._made_store(path, *slides)


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_commands_on_stores_that_are_struck_and_repeated_give_the_same_bytes(tmp_path: Path) -> None:
    said: list[str] = []
    with campaign.Campaign(tmp_path, LIGHT, seed=1, slots=2, say=said.append, kit=MadeKit) as found:
        found.prepare()
        found.run(60, most=1)
        assert found.failures == []
        assert all(sum(tally.trials.values()) >= 1 for tally in found.tallies.values()), found.table()


def test_every_command_that_writes_is_in_the_campaign() -> None:
    import cli

    assert cli.g2l.commands.keys() - {"plan", "models", "doctor", "demo", "push-student"} == {
        command.argv[0] if command.program == "g2l" else "distill" for command in COMMANDS.values()
    }
    of_stores = cli.g2l.commands["store"].commands  # type: ignore[attr-defined]
    struck = {command.argv[1] for command in COMMANDS.values() if command.argv[0] == "store"}
    assert of_stores.keys() - {"info"} == struck


def test_the_comparison_sees_what_is_left_missing_and_changed(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name / "logs").mkdir(parents=True)
        (tmp_path / name / "same").write_text(f"{tmp_path / name}/x")
        (tmp_path / name / "logs" / "tile.jsonl").write_text(name)
        (tmp_path / name / "summary.json").write_text(
            f'{{"loss": 1, "seconds": {len(list(tmp_path.iterdir()))}}}'
        )
    assert compare.differences(compare.content(tmp_path / "a"), compare.content(tmp_path / "b")) == []
    (tmp_path / "a" / "more").mkdir()
    (tmp_path / "a" / "logs" / ".x.1.partial").touch()
    (tmp_path / "b" / "less").touch()
    (tmp_path / "a" / "same").write_text("other")
    assert compare.differences(compare.content(tmp_path / "a"), compare.content(tmp_path / "b")) == [
        "logs/.x.1.partial: is left over",
        "more/: is left over",
        "less: is missing",
        "same: other bytes",
    ]
