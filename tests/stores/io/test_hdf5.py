"""HDF5 from elsewhere: a chunk is unpacked up to its size and no further."""

import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from stores.io.hdf5 import require_bounded, require_plain
from tests.tools.bombs import UNPACKED, write_bomb

VALUES = np.random.default_rng(0).normal(size=(300, 96)).astype(np.float32)


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"fletcher32": True},
        {"compression": "gzip"},
        {"compression": "gzip", "shuffle": True, "fletcher32": True, "chunks": (7, 10)},
        {"compression": "lzf", "shuffle": True},
    ],
)
def test_what_h5py_writes_passes(tmp_path: Path, how: dict[str, Any]) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        # whole numbers of 62 random bits: gzip makes them larger, and HDF5 leaves it out for such a chunk
        large = np.random.default_rng(1).integers(0, 1 << 62, VALUES.shape)
        for name, values in (("a", VALUES), ("b", large), ("c", VALUES[:0])):
            found = file.create_dataset(name, data=values, **(how if len(values) else {}))
            require_plain(found)
            for start, stop in ((0, len(values)), (13, 14), (0, 0)):
                require_bounded(found, start, stop)


def test_a_chunk_that_was_never_written(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        found = file.create_dataset("a", (30, 8), "f4", chunks=(10, 8), compression="gzip")
        found[20:] = VALUES[:10, :8]
        require_bounded(found, 0, 30)


@pytest.mark.parametrize("how", [{}, {"shuffle": True}])
def test_a_bomb_takes_no_memory(tmp_path: Path, how: dict[str, Any]) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        found = write_bomb(file, "a", VALUES.round(), **how)
        require_plain(found)
        tracemalloc.start()
        with pytest.raises(ValueError, match=r"the chunk at \(0, 0\) does not unpack to 115200 bytes"):
            require_bounded(found, 0, 1)
        assert tracemalloc.get_traced_memory()[1] < UNPACKED / 16
        tracemalloc.stop()
        found[:] = VALUES
        require_bounded(found, 0, 300)


@pytest.mark.parametrize(
    ("raw", "match"),
    [
        (zlib.compress(VALUES.tobytes())[:-1000], "does not unpack to 115200 bytes"),
        (zlib.compress(VALUES.tobytes()[4:]), "does not unpack to 115200 bytes"),
        (b"no stream", "does not unpack to 115200 bytes"),
        (zlib.compress(VALUES.tobytes()) + bytes(1 << 17), "has .* bytes, and 115200 when it is unpacked"),
    ],
)
def test_a_chunk_of_another_size(tmp_path: Path, raw: bytes, match: str) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        found = file.create_dataset("a", VALUES.shape, "f4", chunks=VALUES.shape, compression="gzip")
        found.id.write_direct_chunk((0, 0), raw)
        with pytest.raises(ValueError, match=match):
            require_bounded(found, 0, 1)


def test_filters_twice_in_another_order_or_unknown(tmp_path: Path) -> None:
    """Deflated twice, a chunk is small after one unpacking, and HDF5 does the other."""
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for name, filters in (("a", (1, 1)), ("b", (3, 1)), ("c", (1, 32000)), ("d", (1, 6))):
            plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            plan.set_chunk((10, 8))
            for number in filters:
                plan.set_filter(number, h5py.h5z.FLAG_OPTIONAL, (4,) if number == 1 else ())
            h5py.h5d.create(
                file.id, name.encode(), h5py.h5t.IEEE_F32LE, h5py.h5s.create_simple((30, 8)), plan
            )
            with pytest.raises(ValueError, match=rf"compressed by HDF5 filter {filters[1]} in .*gzip"):
                require_plain(file[name])
        large = file.create_dataset(
            "l", (1 << 12, 1 << 10), "f4", chunks=(1 << 12, 1 << 10), compression="lzf"
        )
        with pytest.raises(ValueError, match=r"in chunks of \(4096, 1024\); at most 4 MiB are read"):
            require_plain(large)
