"""HDF5 files on a disk that fails."""

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.embed.formats.h5 import _Disk, _new_h5

_WRITE = """
import numpy, resource, signal, sys
from pathlib import Path
from pipeline.embed.formats.h5 import _new_h5

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
path = Path(sys.argv[1])
path.touch()
try:
    with _new_h5(path) as file:
        rows = file.create_dataset("features", (0, 64), "f4", maxshape=(None, 64), chunks=(64, 64))
        for start in range(0, 640, 64):
            rows.resize(start + 64, axis=0)
            rows[start:] = numpy.ones((64, 64), "f4")
        file.attrs["about"] = "x" * 30000
except OSError as error:
    sys.exit(f"one line: {error.errno}")
"""


@pytest.mark.parametrize("limit", [3000, 120_000])
def test_a_disk_that_fails_is_an_error_and_no_signal(tmp_path: Path, limit: int) -> None:
    """HDF5 on its own ended with signal 11 after the message, when the process ended."""
    done = subprocess.run(
        [sys.executable, "-c", _WRITE, tmp_path / "a.h5", str(limit)], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (1, "one line: 27\n")


def test_a_disk_takes_what_it_is_given(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    path.touch()
    with _new_h5(path) as file:
        file.create_dataset("features", data=[[1.0, 2.0]])
    whole = path.read_bytes()
    path.write_bytes(b"")
    with _Disk(path) as disk:
        assert disk.write(memoryview(whole)) == len(whole)
        assert disk.failed is None
    assert path.read_bytes() == whole
