"""Files of tensors that may come from another lab, judged before memory is taken.

The libraries refuse what would run code. What they do not judge is how much a small file may ask for: a header of
100 MB with millions of empty tensors, a compressed record that grows a thousandfold, thousands of tensors that
are all the same four bytes.
"""

import argparse
import json
import math
import re
import struct
import sys
import warnings
import zipfile
from pathlib import Path

import torch
from torch import Tensor

from pipeline.encoders.hub import brief
from stores.errors import WeightsError
from stores.io.files import replacing
from stores.io.foreign import open_regular

_MAX_HEADER = 16 << 20
_MAX_TENSORS = 20_000
_MAX_SHARED = 64 << 20
_ITEM_BITS = {
    **dict.fromkeys(("F64", "I64", "U64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("BOOL", "I8", "U8", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F8_E8M0"), 8),
}
_Shape = list[int]


def require_safetensors(file: Path) -> None:
    """Compare the header of a safetensors file with the file's size; the tensors are not read.

    Raises
    ------
    WeightsError
        The header is longer than the file or than 16 MB, no JSON, or lists tensors that the file does not hold.
    """
    _shapes(file)


def count_numbers(file: Path, inside: Path) -> int:
    """How many numbers the tensors of a safetensors file have, by its header; the tensors are not read.

    Parameters
    ----------
    inside
        The folder from elsewhere that holds the file: no link below it is followed.

    Raises
    ------
    CorruptStore, WeightsError
        The file is no regular one; or as `require_safetensors`.
    """
    open_regular(file, sys.maxsize, inside=inside).close()
    return sum(math.prod(shape) for shape in _shapes(file))


def _shapes(file: Path) -> list[_Shape]:
    """The shapes of all tensors, which the file is long enough to hold."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if length > min(size - 8, _MAX_HEADER):
            raise _damaged(file, f"its header has {length} bytes, the file {size}")
        header = stream.read(length)
    try:
        found = json.loads(header)
        if not isinstance(found, dict):
            raise ValueError("its header is no JSON object")
        found.pop("__metadata__", None)
        if len(found) > _MAX_TENSORS:
            raise ValueError(f"{len(found)} tensors")
        for name, about in found.items():
            _require_tensor(name, about["dtype"], about["shape"], about["data_offsets"], size - 8 - length)
        return [about["shape"] for about in found.values()]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise _damaged(file, brief(error)) from error


def _require_tensor(name: str, dtype: str, shape: _Shape, offsets: _Shape, size: int) -> None:
    if not all(type(side) is int and 0 <= side <= max(size, 1) for side in shape) or len(shape) > 8:
        raise ValueError(f"tensor {name!r:.80} has the shape {shape!r:.80}")
    start, end = offsets
    if not 0 <= start <= end <= size or 8 * (end - start) != math.prod(shape) * _ITEM_BITS[dtype]:
        raise ValueError(f"tensor {name!r:.80} of shape {shape!r:.80} is not at {offsets!r:.80}")


def load_torch(file: Path, mapped: bool = True) -> object:
    """What ``torch.save`` wrote: tensors, containers and plain values. Nothing in it runs.

    Parameters
    ----------
    mapped : bool
        Map the tensors from the file, where that is possible, in place of reading them.

    Raises
    ------
    WeightsError
        The file is damaged, needs objects unpickled, or asks for more memory than its bytes.
    """
    try:
        archive = zipfile.is_zipfile(file)
        if archive:
            _require_stored(file)
        # timm and DINO keep their command line in the checkpoint; a Namespace is inert
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            # of damaged files, several lines each; what is wrong with them is an error
            warnings.simplefilter("ignore")
            return torch.load(file, map_location="cpu", weights_only=True, mmap=mapped and archive)
    except Exception as error:  # damage surfaces as any of a dozen types, from pickle, zipfile and torch
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))
        if refused:
            raise WeightsError(
                f"{file} needs Python objects unpickled ({refused[1]}), which could run any code: refused; "
                "save its state_dict as .safetensors"
            ) from error
        raise WeightsError(f"{file} is damaged or no torch checkpoint ({brief(error)})") from error


def save_torch(path: Path, value: object) -> None:
    """Write a file with ``torch.save``, atomically.

    It is given an open file. Given a path, torch would put the name of the temporary file, with the number of this
    process, into the archive, and would not say which error of the system stopped it.

    Raises
    ------
    DiskFull, OSError
        As `replacing`.
    """
    with replacing(path) as partial, partial.open("wb") as file:
        torch.save(value, file)


def _require_stored(file: Path) -> None:
    """Raise ValueError when a member of an archive is compressed: ``torch.save`` never does that."""
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
                raise ValueError(f"{member.filename!r:.80} is compressed, which torch.save never does")


def require_own_memory(tensors: dict[str, Tensor], file: Path) -> None:
    """Raise WeightsError unless the tensors are plain and take about the memory that they say.

    Tensors may share memory, as tied weights do; but a file of a few bytes can also spread one number over any shape,
    or list it any number of times.
    """
    memory: dict[int, int] = {}
    said = 0
    for name, value in tensors.items():
        plain = type(value) in (Tensor, torch.nn.Parameter) and value.layout == torch.strided
        if not plain or value.device.type != "cpu" or value.is_quantized or value.is_complex():
            raise WeightsError(f"{file}: {name!r:.80} is no plain tensor of real numbers")
        storage = value.untyped_storage()
        memory[storage.data_ptr()] = storage.nbytes()
        said += value.numel() * value.element_size()
    if said > 2 * sum(memory.values()) + _MAX_SHARED:
        raise WeightsError(f"{file}: its tensors say {said} bytes and have {sum(memory.values())}: refused")


def _damaged(file: Path, reason: str) -> WeightsError:
    return WeightsError(f"{file} is damaged or no safetensors file ({reason})")
