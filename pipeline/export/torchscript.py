"""TorchScript: one file that torch opens without g2l and timm, in Python, C++ and, through DJL, in QuPath.

What `torch.jit.save` writes is not fit to be given away: beside the code are the paths of the sources on this machine
(``*.debug_pkl``), and the classes in it carry numbers that depend on what the process traced before. `_clean` removes
the first and counts the second from 0, so that the same encoder gives the same bytes.
"""

import io
import re
import zipfile
from importlib.metadata import version
from pathlib import Path

import torch
from torch import nn

from pipeline.export.base import Format, Job, Run, number_list
from pipeline.export.check import Features
from pipeline.export.graph import Views, example, fed, graph_of
from pipeline.export.onnx_file import quiet
from stores.errors import EncoderError
from stores.io.files import first_line, replacing

FILE = "torchscript_model.pt"
"""The name that WSInfer and QuPath look for."""
_COUNTED = re.compile(rb"___torch_mangle_(\d+)")
_LEFT_OUT = re.compile(r"\.debug_pkl$|/traced_inputs(/|\.pkl$)|/\.data/serialization_id$")
_OF_CODE = re.compile(r"/code/|/data\.pkl$|/constants\.pkl$")


def write_traced(module: nn.Module, given: torch.Tensor, path: Path, name: str) -> None:
    """Trace a module and write it to `path`.

    Raises
    ------
    EncoderError
        When it cannot be traced; the message begins with the encoder's `name`.
    """
    try:
        with quiet(), torch.inference_mode():
            # twice: classes that the first one meets for the first time in this process get no number
            for _ in range(2):
                traced = torch.jit.trace(module, (given,), check_trace=False)
            buffer = io.BytesIO()
            torch.jit.save(traced, buffer)
    except RuntimeError as error:
        raise EncoderError(
            f"{name}: cannot be written as TorchScript ({first_line(error)}); choose --format onnx"
        ) from error
    with replacing(path) as partial:
        _clean(buffer, partial)


def _clean(saved: io.BytesIO, path: Path) -> None:
    with zipfile.ZipFile(saved) as archive, zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as out:
        entries = [e for e in archive.infolist() if not _LEFT_OUT.search(e.filename)]
        code = {e.filename: archive.read(e) for e in entries if _OF_CODE.search(e.filename)}
        texts = [*map(str.encode, code), *code.values()]
        found = sorted({int(n) for text in texts for n in _COUNTED.findall(text)})
        numbers = {number: at for at, number in enumerate(found)}

        def counted(text: bytes) -> bytes:
            # in the pickles these names stand in lines of their own, whose length is written nowhere
            return _COUNTED.sub(lambda m: b"___torch_mangle_%d" % numbers[int(m[1])], text)

        for entry in entries:
            content = code.get(entry.filename)
            name = counted(entry.filename.encode()).decode()
            made = zipfile.ZipInfo(name)  # of 1980-01-01
            out.writestr(made, archive.read(entry) if content is None else counted(content))


def run_file(job: Job, path: Path) -> Run:
    """Open a file of TorchScript, as a function of uint8 views."""
    with quiet():
        module = torch.jit.load(str(path), map_location="cpu").eval()

    def run(views: Views) -> Features:
        with quiet(), torch.inference_mode():
            made = module(torch.from_numpy(fed(job.encoder, job.takes, views)))
        found: Features = made.numpy()
        return found

    return run


def _require(job: Job) -> None:
    pass


def _write(job: Job, folder: Path) -> None:
    graph = graph_of(job.encoder, job.takes)
    write_traced(graph, example(job.encoder, job.takes), folder / FILE, job.encoder.name)


def _opened(job: Job, folder: Path) -> Run:
    return run_file(job, folder / FILE)


def _usage(job: Job) -> str:
    side = job.encoder.image_px
    given, comment = (
        (f"torch.zeros(4, {side}, {side}, 3, dtype=torch.uint8)", "RGB; any number of them")
        if job.takes == "uint8"
        else (f"torch.zeros(4, 3, {side}, {side})", "RGB / 255, then Normalize; any number of them")
    )
    constants = (
        ""
        if job.takes == "uint8"
        else f"# mean {number_list(job.encoder.mean)}, std {number_list(job.encoder.std)}\n"
    )
    return f"""```python
import torch

{constants}given = {given}  # {comment}
model = torch.jit.load("{FILE}").eval()
with torch.inference_mode():
    features = model(given)  # float32 (4, {job.encoder.dim})
```
"""


def versions() -> dict[str, str]:
    """Versions of what traced."""
    return {name: version(name) for name in ("torch", "timm")}


TORCHSCRIPT = Format(_require, _write, _opened, _usage, versions)
