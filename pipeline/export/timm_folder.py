"""The folder of a repository on the Hugging Face hub, which timm opens as ``hf-hub:OWNER/NAME``.

The files are those of a run's ``student``. What is compared with the original is timm's model, with the lines that the
card gives for Normalize and pooling.
"""

from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from pipeline.encoders.encoder import Encoder
from pipeline.encoders.export import export_encoder
from pipeline.encoders.picture import shrunk
from pipeline.encoders.torchvision_cpu import make_importable
from pipeline.export.base import Format, Job, Run, number_list
from pipeline.export.check import Features
from pipeline.export.graph import Views, normalised
from stores.errors import OptionError

_POOLINGS = ("forward", "cls", "cls+mean", "cls-average")


def pooled(encoder: Encoder) -> str:
    """Code that makes ``features`` of timm's ``model`` and normalised ``images``."""
    if encoder.pooling == "forward":
        return "features = model(images)"
    if encoder.pooling == "cls-average":
        return f"features = model.forward_features(images)[:, :{encoder.class_tokens}].mean(1)"
    first = "0" if encoder.class_tokens == 1 else f":{encoder.class_tokens}"
    token = f"tokens[:, {first}]{'' if encoder.class_tokens == 1 else '.flatten(1)'}"
    mean = "tokens[:, model.num_prefix_tokens :].mean(1)"
    features = f"torch.cat([{token}, {mean}], dim=-1)" if encoder.pooling == "cls+mean" else token
    return f"tokens = model.forward_features(images)\nfeatures = {features}"


def _require(job: Job) -> None:
    if not job.encoder.preset.arch:
        raise OptionError(
            f"--format hf: {job.encoder.name} was made by a function, which timm cannot call; choose onnx or "
            "torchscript"
        )
    if job.encoder.pooling not in _POOLINGS:
        raise OptionError(
            f"--format hf: timm cannot pool as {job.encoder.name} does ({job.encoder.pooling}); choose onnx or "
            "torchscript"
        )


def _write(job: Job, folder: Path) -> None:
    export_encoder(job.encoder, folder, job.extra)


def _opened(job: Job, folder: Path) -> Run:
    make_importable()
    import timm

    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()

    def run(views: Views) -> Features:
        small = shrunk(torch.from_numpy(views), job.encoder.shrink).numpy()
        images = torch.from_numpy(normalised(small, job.encoder.mean, job.encoder.std))
        names: dict[str, Any] = {"torch": torch, "model": model, "images": images}
        with torch.inference_mode():
            exec(pooled(job.encoder), names)  # what the card says, to the letter
        found: Features = names["features"].numpy()
        return found

    return run


def _usage(job: Job) -> str:
    encoder = job.encoder
    side, by = encoder.image_px, encoder.shrink
    means = (
        ""
        if by == 1
        else f"""squares = views.int().unflatten(2, (-1, {by})).unflatten(1, (-1, {by})).sum((2, 4))
views = (squares + {by * by // 2}) // {by * by}  # means of squares of {by} px: {side // by} px
"""
    )
    where = job.repository or "OWNER/NAME"
    return f"""```python
import timm, torch

model = timm.create_model("hf-hub:{where}", pretrained=True).eval()  # or "local-dir:FOLDER"
mean, std = torch.tensor({number_list(encoder.mean)}), torch.tensor({number_list(encoder.std)})
views = torch.zeros(4, {side}, {side}, 3, dtype=torch.uint8)  # RGB; any number of them
{means}images = ((views / 255 - mean) / std).permute(0, 3, 1, 2)
with torch.inference_mode():
    {pooled(encoder).replace(chr(10), chr(10) + "    ")}  # float32 (4, {encoder.dim})
```
{"" if job.repository is None else _in_other_ways(encoder, job.repository)}"""


def _in_other_ways(encoder: Encoder, repository: str) -> str:
    """How transformers and g2l open the repository; transformers takes timm's models as they are."""
    name, _, branch = repository.partition("@")
    at = f', revision="{branch}"' if branch else ""
    wrapped = pooled(encoder).replace("model.num_prefix_tokens", "model.timm_model.num_prefix_tokens")
    if encoder.pooling == "forward":
        wrapped = "features = model(images).pooler_output"
    else:
        wrapped = wrapped.replace("model.forward_features(images)", "model(images).last_hidden_state")
    return f"""
In transformers, with `images` as above:

```python
from transformers import AutoModel

model = AutoModel.from_pretrained("{name}"{at}).eval()
with torch.inference_mode():
    {wrapped.replace(chr(10), chr(10) + "    ")}
```

`hf-hub:{repository}` is also an encoder of g2l (`g2l embed SLIDES --encoder hf-hub:{repository}`), which takes uint8
views and applies Normalize and pooling itself.
"""


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("torch", "timm", "safetensors")}


HF = Format(_require, _write, _opened, _usage, _versions)
