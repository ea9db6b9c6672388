"""A short sample of the fuzzing campaign; ``python -m tests.torture.fuzz`` runs the long one."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.torture import fuzz
from tests.torture.readers import READERS, Target

pytestmark = pytest.mark.slow


def test_a_sample_of_every_reader(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.torture.fuzz",
            "--inputs",
            "40",
            "--seed",
            "7",
            "--keep",
            str(tmp_path),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(done.stdout.splitlines()) == 1 + len(READERS)


@pytest.mark.parametrize("seed", range(2))
def test_every_reader_accepts_its_seeds(tmp_path: Path, seed: int) -> None:
    for name in list(READERS)[seed::2]:
        folder = tmp_path / name
        folder.mkdir()
        target = READERS[name](folder)
        for raw in target.seeds:
            assert fuzz.one(target, raw) == fuzz.ACCEPTED, name


@pytest.mark.parametrize(
    ("read", "said"),
    [
        ("raise ValueError('what')", "ValueError: what"),
        ("os.kill(os.getpid(), 9)", "signal 9"),
        ("bytearray(1 << 32)", "MemoryError"),
        ("print('Traceback', file=sys.stderr, flush=True)", "printed"),
        ("raise G2LError(' ')", "G2LError of"),
    ],
)
def test_the_campaign_notices(tmp_path: Path, read: str, said: str) -> None:
    """In a process of its own, because pytest has threads and files of its own that a fork would share."""
    script = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from stores.errors import G2LError\n"
        "from tests.torture import fuzz, readers\n"
        "def read():\n"
        "    if (folder / 'input').read_bytes() == b'bad':\n"
        f"        {read}\n"
        "def make(given):\n"
        "    global folder\n"
        "    folder = given\n"
        "    return readers.Target(given / 'input', [b'good', b'bad', b'good'], read, lambda raw, random: raw)\n"
        "readers.READERS['mine'] = make\n"
        f"result = fuzz.fuzz('mine', 3, 0, Path({str(tmp_path)!r}))\n"
        "assert result.counts == {'accepted': 2}, result\n"
        "print(result.failures)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert said in done.stdout
    assert (tmp_path / "mine-0-1.input").read_bytes() == b"bad"


def test_an_input_follows_from_seed_and_number(tmp_path: Path) -> None:
    target = Target(
        tmp_path / "x", [b"0123456789" * 10], lambda: None, fuzz.READERS["seal-digest"](tmp_path).mutate
    )
    made = [fuzz.make_input(target, "x", 1, number) for number in range(20)]
    assert made == [fuzz.make_input(target, "x", 1, number) for number in range(20)]
    assert made != [fuzz.make_input(target, "x", 2, number) for number in range(20)]
