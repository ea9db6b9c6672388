"""A short sample of the fuzzing campaign; ``python -m tests.torture.fuzz`` runs the long one."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.torture import fuzz
from tests.torture.readers import READERS, Target

pytestmark = pytest.mark.slow


_LIKE_OTHERS = {
    *("zarr-group", "zarr-coords", "zarr-stats", "zarr-positions", "zarr-tokens", "zarr-standard"),
    *("slide-ome-tiff-jpeg", "slide-tiff-strips", "slide-zarr-array-2", "slide-zarr-shard"),
    *("chunk-zstd-int8", "seal-digest", "table-patches", "tiles-csv"),
}


@pytest.mark.long
def test_a_sample_of_every_kind_of_reader(tmp_path: Path) -> None:
    chosen = [name for name in READERS if name not in _LIKE_OTHERS]
    arguments = [*chosen, "--inputs", "12", "--seed", "7", "--keep", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.torture.fuzz", *arguments], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(done.stdout.splitlines()) == 1 + len(chosen)


@pytest.mark.parametrize("seed", range(2))
def test_every_reader_accepts_its_seeds(tmp_path: Path, seed: int) -> None:
    for name in list(READERS)[seed::2]:
        folder = tmp_path / name
        folder.mkdir()
        target = READERS[name](folder)
        for raw in target.seeds:
            assert fuzz.one(target, raw) == fuzz.ACCEPTED, name


def test_the_campaign_notices(tmp_path: Path) -> None:
    """In a process of its own, because pytest has threads and files of its own that a fork would share."""
    script = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from stores.errors import G2LError\n"
        "from tests.torture import fuzz, readers\n"
        "def read():\n"
        "    exec((folder / 'input').read_text())\n"
        "def make(given):\n"
        "    global folder\n"
        "    folder = given\n"
        "    bad = [\"raise ValueError('what')\", 'os.kill(os.getpid(), 9)', 'bytearray(1 << 32)']\n"
        "    bad += [\"print('Traceback', file=sys.stderr, flush=True)\", \"raise G2LError(' ')\"]\n"
        "    seeds = ['pass', *bad, \"raise G2LError('no')\", 'pass']\n"
        "    return readers.Target(given / 'input', [s.encode() for s in seeds], read, lambda raw, random: raw)\n"
        "readers.READERS['mine'] = make\n"
        f"result = fuzz.fuzz('mine', 8, 0, Path({str(tmp_path)!r}))\n"
        "assert result.counts == {'accepted': 2, 'refused': 1}, result\n"
        "for number, said in sorted(result.failures.items()):\n"
        "    print(number, said)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    noticed = ("ValueError: what", "the child ended with signal 9", "MemoryError", "printed", "G2LError of")
    for number, (line, said) in enumerate(zip(done.stdout.splitlines(), noticed, strict=True), start=1):
        assert line.startswith(f"{number} {said}")
    assert (tmp_path / "mine-0-1.input").read_bytes() == b"raise ValueError('what')"


def test_an_input_follows_from_seed_and_number(tmp_path: Path) -> None:
    target = Target(
        tmp_path / "x", [b"0123456789" * 10], lambda: None, fuzz.READERS["seal-digest"](tmp_path).mutate
    )
    made = [fuzz.make_input(target, "x", 1, number) for number in range(20)]
    assert made == [fuzz.make_input(target, "x", 1, number) for number in range(20)]
    assert made != [fuzz.make_input(target, "x", 2, number) for number in range(20)]
