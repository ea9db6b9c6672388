"""ONNX: one file ``model.onnx``, run with ONNX Runtime.

Torch has two exporters. This is the one that traces: on two CPU cores it takes 1 s for a small ViT and 6 s for ViT-S,
the newer one (``dynamo=True``) 21 s and 59 s, for the same features; and its file is the same, bit for bit, each time.
See ``docs/decisions/0082-what-an-export-is.md``.
"""

import contextlib
import importlib.util
import warnings
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from pipeline.export.base import Format, Job, Run, number_list
from pipeline.export.check import Features
from pipeline.export.graph import Views, example, fed, graph_of
from stores.errors import EncoderError, OptionError
from stores.io.files import first_line, replacing

FILE = "model.onnx"
OPSET = 17
"""The first with an operator for LayerNorm; ONNX Runtime reads it since 1.12 (2022)."""
_MOST_BYTES = 2_000_000_000
"""A file of ONNX is one protobuf message, which holds less than 2 GiB."""
_LEAST_SHARE = 0.5
PACKAGES = ("onnx", "onnxruntime")


def input_name(takes: str) -> str:
    """Name of the graph's input."""
    return "views" if takes == "uint8" else "images"


def _require(job: Job) -> None:
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise OptionError(
            f"--format onnx: needs {' and '.join(missing)}; install it with: pip install 'g2l[onnx]'"
        )
    weights = list(job.encoder.parameters())
    size = sum(p.numel() for p in weights) * (2 if job.dtype == "float16" else 4)
    if size > _MOST_BYTES:
        raise OptionError(
            f"--format onnx: the weights of {job.encoder.name} are {size / 1e9:.1f} GB in this arithmetic, and a file "
            f"of ONNX holds {_MOST_BYTES / 1e9:.0f} GB; choose --dtype float16 or --format torchscript"
        )
    if job.dtype == "int8":
        linear = [m.weight for m in job.encoder.modules() if isinstance(m, torch.nn.Linear)]
        share = sum(w.numel() for w in linear) / max(1, sum(p.numel() for p in weights))
        if share < _LEAST_SHARE:
            raise OptionError(
                f"--dtype int8: rounds the weights of matrix products, which are {share:.0%} of those of "
                f"{job.encoder.name}; it is for transformers: choose float32 or float16"
            )


def _write(job: Job, folder: Path) -> None:
    name = input_name(job.takes)
    try:
        with quiet(), replacing(folder / FILE) as partial:
            torch.onnx.export(
                graph_of(job.encoder, job.takes),
                (example(job.encoder, job.takes),),
                str(partial),
                input_names=[name],
                output_names=["features"],
                dynamic_axes={name: {0: "batch"}, "features": {0: "batch"}},
                opset_version=OPSET,
                dynamo=False,
            )
    except (RuntimeError, torch.onnx.errors.OnnxExporterError) as error:
        raise EncoderError(
            f"{job.encoder.name}: cannot be written as ONNX ({first_line(error)}); choose --format torchscript"
        ) from error
    if job.dtype == "int8":
        _round_to_int8(folder / FILE)


def _round_to_int8(file: Path) -> None:
    """Round the weights of matrix products to 7 bits, by column; activations are rounded to 8 while it runs.

    7 bits, because processors without VNNI add two products of 8 bits in 16 bits, which overflow unnoticed.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = onnx.shape_inference.infer_shapes(onnx.load(file))
    prepared = model.metadata_props.add()  # else a warning asks for what was just done
    prepared.key, prepared.value = "onnx.quant.pre_process", "onnxruntime.quant"
    with quiet(), replacing(file) as partial:
        quantize_dynamic(
            model,
            partial,
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            reduce_range=True,
            weight_type=QuantType.QInt8,
        )
        made = onnx.load(partial)
        del made.metadata_props[:]
        partial.write_bytes(made.SerializeToString(deterministic=True))


def _opened(job: Job, folder: Path) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    try:
        session = onnxruntime.InferenceSession(
            str(folder / FILE), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # errors of ONNX Runtime have no base of their own
        raise EncoderError(
            f"{job.encoder.name}: ONNX Runtime cannot open the export ({first_line(error)})"
        ) from error

    def run(views: Views) -> Features:
        feed: Mapping[str, Any] = {input_name(job.takes): fed(job.encoder, job.takes, views)}
        found: Features = session.run(["features"], feed)[0]
        return found

    return run


def _usage(job: Job) -> str:
    side, name = job.encoder.image_px, input_name(job.takes)
    normalise = (
        ""
        if job.takes == "uint8"
        else f"""mean, std = np.float32({number_list(job.encoder.mean)}), np.float32({number_list(job.encoder.std)})
images = ((views / np.float32(255) - mean) / std).transpose(0, 3, 1, 2)
"""
    )
    return f"""```python
import numpy as np, onnxruntime

views = np.zeros((4, {side}, {side}, 3), np.uint8)  # RGB; any number of them
{normalise}session = onnxruntime.InferenceSession("{FILE}")
features = session.run(["features"], {{"{name}": {name}}})[0]  # float32 (4, {job.encoder.dim})
```
"""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings of torch's tracing: what they warn of is found by the comparison with the original."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("torch", *PACKAGES)}


ONNX = Format(_require, _write, _opened, _usage, _versions)
