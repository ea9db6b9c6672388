"""Files of tensors from elsewhere take no more memory than their bytes, run nothing, and end in one line."""

import errno
import io
import json
import os
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.encoders.tensor_files import save_torch
from pipeline.encoders.weights import fit, read_checkpoint
from stores.errors import WeightsError


def refused(path: Path) -> str:
    with pytest.raises(WeightsError) as caught:
        read_checkpoint(path)
    assert str(caught.value).isprintable()
    return str(caught.value)


def safetensors_file(folder: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = folder / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def one(dtype: str = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"a": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


@pytest.mark.parametrize(
    ("header", "length", "part"),
    [
        (one(), 2**63, "its header has 9223372036854775808 bytes"),
        (one(), 17 << 20, "its header has 17825792 bytes"),
        (b"[1]", None, "its header is no JSON object"),
        (b"[" * 50_000, None, "is damaged"),
        (one(shape=[2**40]), None, "has the shape [1099511627776]"),
        (one(shape=[3]), None, "is not at [0, 8]"),
        (one(offsets=[0, 80]), None, "is not at [0, 80]"),
        (one(dtype="F999"), None, "F999"),
        (one(shape=[1] * 9), None, "has the shape"),
        (one(shape="ab"), None, "is damaged"),
        ({"a": 1}, None, "is damaged"),
        ({str(i): {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(20_001)}, None, "tensors"),
    ],
)  # fmt: skip
def test_a_header_is_compared_with_its_file(
    header: Any, length: int | None, part: str, tmp_path: Path
) -> None:
    assert part in refused(safetensors_file(tmp_path, header, bytes(8), length))


def test_a_file_without_a_header(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"\0" * 3)
    assert "its header has 3 bytes" in refused(path)


def test_a_sound_header_is_read(tmp_path: Path) -> None:
    found = read_checkpoint(safetensors_file(tmp_path, {"__metadata__": {"format": "pt"}, **one()}, bytes(8)))
    assert found["a"].tolist() == [0, 0]


def saved(folder: Path, value: Any) -> Path:
    torch.save(value, folder / "x.pt")
    return folder / "x.pt"


def test_a_compressed_record_is_refused(tmp_path: Path) -> None:
    """Zeros shrink a thousandfold."""
    source, bomb = saved(tmp_path, {"a": torch.zeros(1 << 20)}), tmp_path / "bomb.pt"
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as new:
        for member in old.infolist():
            new.writestr(member.filename, old.read(member))
    assert bomb.stat().st_size < source.stat().st_size / 100
    assert "is compressed, which torch.save never does" in refused(bomb)


def test_one_number_is_not_a_large_tensor(tmp_path: Path) -> None:
    assert "its tensors say 4000000000000 bytes" in refused(
        saved(tmp_path, {"a": torch.zeros(1).expand(10**6, 10**6)})
    )
    rows = torch.zeros(1 << 18)
    assert "refused" in refused(saved(tmp_path, {str(i): rows for i in range(200)}))
    tied = read_checkpoint(saved(tmp_path, {"a": rows, "b": rows}))  # as heads tie to embeddings
    assert tied["a"].data_ptr() == tied["b"].data_ptr()


@pytest.mark.parametrize("kind", ["complex", "sparse", "meta"])
@pytest.mark.filterwarnings("ignore:Sparse")
def test_only_plain_tensors(kind: str, tmp_path: Path) -> None:
    value = torch.zeros(3, 3, dtype=torch.complex64 if kind == "complex" else None)
    value = value.to("meta") if kind == "meta" else value.to_sparse() if kind == "sparse" else value
    assert "no plain tensor of real numbers" in refused(saved(tmp_path, {"a": value}))


def test_names_in_a_message_are_one_line(tmp_path: Path) -> None:
    path = saved(tmp_path, {"a\n\x1b[31mb": torch.zeros(2)})
    with pytest.raises(WeightsError) as caught:
        fit(read_checkpoint(path), torch.nn.Linear(2, 2), "the file", "an architecture")
    assert "1 unexpected (a ?[31mb)" in str(caught.value)


def test_an_archive_that_zipfile_cannot_place(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 1, 0, 2)  # of two disks
    path.write_bytes(locator + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0, 0, 0, 0, 0))
    assert "is damaged or no torch checkpoint" in refused(path)


def test_a_mapping_that_contains_itself_ends(tmp_path: Path) -> None:
    loop: dict[str, Any] = {}
    loop["model"] = loop
    assert "holds no state dict" in refused(saved(tmp_path, loop))


def test_a_file_of_tensors_has_no_name_of_a_process_in_it(tmp_path: Path) -> None:
    """Two runs of ``embed --format eva`` give the same bytes."""
    save_torch(tmp_path / "a.pt", torch.arange(4))
    with zipfile.ZipFile(tmp_path / "a.pt") as archive:
        assert {name.partition("/")[0] for name in archive.namelist()} == {"archive"}
    assert torch.load(tmp_path / "a.pt", weights_only=True).tolist() == [0, 1, 2, 3]


class FailingDisk(io.BytesIO):
    def write(self, data: Any) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_a_disk_that_fails_under_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pathlib.Path.open", lambda self, mode: FailingDisk())
    with pytest.raises(OSError, match="Input/output error") as caught:
        save_torch(tmp_path / "a.pt", torch.arange(4))
    assert caught.value.errno == errno.EIO
    assert os.listdir(tmp_path) == []
