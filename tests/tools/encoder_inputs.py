"""Files of students and weights as strangers may send them: nearly right, for the readers of `pipeline.encoders`.

`TARGETS` is in the form that a campaign takes: where an input is written, inputs that are accepted, what reads
them, and what changes them.
"""

import io
import json
import struct
import zipfile
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import torch

from pipeline.encoders.export import export_encoder
from pipeline.encoders.load import load_encoder
from pipeline.encoders.timm_arguments import ARGUMENTS
from stores.format.terms import Fact, Terms

_STUDENT = "vit_tiny_patch16_224?img_size=32&depth=1&embed_dim=12&num_heads=2"
_ODD: tuple[Any, ...] = (
    *(None, True, -1, 0, 3, 0.5, 1e308, -1e308, 1 << 31, 1 << 63, 10**30, "", "x", "a\n---\nb", "\x1b[31m", "\ud800"),
    *("x" * 10_000, [], [1], [[[]]], {}, {"a": 1}, [None] * 3, [1e308] * 3, [0, 0, 0]),
)  # fmt: skip
_ARGUMENTS = (*sorted(ARGUMENTS), "pretrained", "cache_dir", "num_classes", "device", "mlp_layer")
_VALUES: tuple[Any, ...] = (
    *(0, 1, 3, 7, 16, 224, 256, 4096, 65536, 0.5, 1e-5, True, False, "silu", "layernorm", "avg", "token", "", "jax"),
    *([224, 224], [4096, 4096], [1, 1, 1, 1], [16, 32, 64, 128]),
)  # fmt: skip
_ARCHITECTURES = (
    "convnext_atto", "efficientnet_lite0", "eva02_tiny_patch14_224", "mobilenetv3_small_100", "resnet10t",
    "swin_tiny_patch4_window7_224", "test_vit", "vit_tiny_r_s16_p8_224", "hf-hub:a/b", "local-dir:/tmp",
)  # fmt: skip


class Inputs(NamedTuple):
    """A reader, and where it reads its input from."""

    path: Path
    seeds: Sequence[bytes]
    read: Callable[[], object]
    mutate: Callable[[bytes, Random], bytes]


def some_bytes(raw: bytes, random: Random) -> bytes:
    """Bytes set, cut out, doubled or put in, or the end cut off."""
    data = bytearray(raw)
    for _ in range(random.choice((1, 1, 2, 4, 16))):
        at, length = random.randrange(len(data) + 1), random.choice((1, 2, 8, 64))
        match random.randrange(5):
            case 0 if at < len(data):
                data[at] = random.randrange(256)
            case 1:
                data[at : at + length] = random.choice((b"\xff" * 8, b"\0" * 8, b"9999999", b"[", b'"'))
            case 2:
                del data[at : at + length]
            case 3:
                data[at:at] = data[at : at + length]
            case _ if random.random() < 0.3:
                del data[at:]
    return bytes(data)


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every container below `value` with each of its keys."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
    return [(value, key) for key in keys] + [place for key in keys for place in _places(value[key])]


def some_json(raw: bytes, random: Random) -> bytes:
    """JSON with one to three values replaced or taken out; sometimes only bytes are changed."""
    if random.random() < 0.2:
        return some_bytes(raw, random)
    value = json.loads(raw)
    for _ in range(random.choice((1, 1, 2, 3))):
        places = _places(value)
        if not places or random.random() < 0.02:
            value = deepcopy(random.choice(_ODD))
            continue
        container, key = random.choice(places)
        if random.random() < 0.2:
            del container[key]
        else:
            container[key] = deepcopy(random.choice(_ODD))
    return json.dumps(value).encode()


def some_config(raw: bytes, random: Random) -> bytes:
    """The ``config.json`` of a model with other arguments or another architecture, or with any other change."""
    value = json.loads(raw)
    match random.randrange(3):
        case 0:
            for _ in range(random.choice((1, 1, 2, 4))):
                value["model_args"][random.choice(_ARGUMENTS)] = random.choice(_VALUES)
        case 1:
            value |= {"architecture": random.choice(_ARCHITECTURES), "model_args": {}}
        case _:
            return some_json(raw, random)
    return json.dumps(value).encode()


def some_safetensors(raw: bytes, random: Random) -> bytes:
    """A safetensors file with another header, whose length fits mostly, or with other bytes."""
    if random.random() < 0.2:
        return some_bytes(raw, random)
    end = 8 + int.from_bytes(raw[:8], "little")
    header = some_json(raw[8:end], random)
    length = (
        len(header) if random.random() < 0.95 else random.choice((0, 1, len(raw), 1 << 40, (1 << 64) - 1))
    )
    return struct.pack("<Q", length) + header + raw[end:]


def some_archive(raw: bytes, random: Random) -> bytes:
    """An archive of ``torch.save`` with changes in one of its members, or anywhere."""
    if random.random() < 0.3:
        return some_bytes(raw, random)
    sink = io.BytesIO()
    kind = zipfile.ZIP_DEFLATED if random.random() < 0.05 else zipfile.ZIP_STORED
    with zipfile.ZipFile(io.BytesIO(raw)) as old, zipfile.ZipFile(sink, "w", kind) as new:
        members = old.namelist()
        pickled = next(name for name in members if name.endswith("data.pkl"))
        changed = pickled if random.random() < 0.8 else random.choice(members)
        for name in members:
            data = old.read(name)
            new.writestr(name, some_bytes(data, random) if name == changed else data)
    return sink.getvalue()


def _student(
    folder: Path, name: str, mutate: Callable[[bytes, Random], bytes], raw: bytes | None = None
) -> Inputs:
    """One file of a student's folder, as ``--student FOLDER`` and ``--encoder FOLDER`` read it."""
    student = load_encoder(_STUDENT, random_weights=0)
    about = Terms("teacher", Fact("MIT", "its page", "2026-11"), Fact("open"))
    export_encoder(student, folder / "student", {"distilled_from": "teacher"}, [about])
    path = folder / "student" / name
    if raw is not None:
        (folder / "student" / "model.safetensors").unlink()
        path.write_bytes(raw)
    return Inputs(path, [path.read_bytes()], lambda: load_encoder(str(folder / "student")), mutate)


def _torch(folder: Path, archive: bool) -> Inputs:
    """Weights as ``torch.save`` writes them now, in an archive, and as it wrote them before."""
    state = {"model": load_encoder(_STUDENT, random_weights=0).backbone.state_dict(), "epoch": 3}
    sink = io.BytesIO()
    torch.save(state, sink, _use_new_zipfile_serialization=archive)
    return _student(folder, "pytorch_model.bin", some_archive if archive else some_bytes, sink.getvalue())


TARGETS: dict[str, Callable[[Path], Inputs]] = {
    "student-config": partial(_student, name="config.json", mutate=some_config),
    "student-safetensors": partial(_student, name="model.safetensors", mutate=some_safetensors),
    "weights-torch": partial(_torch, archive=True),
    "weights-torch-old": partial(_torch, archive=False),
}
"""By name; each makes its inputs in an empty folder."""
