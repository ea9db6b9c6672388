"""The folder that WSInfer and QuPath's WSInfer extension read: TorchScript and ``config.json``.

Both run classifiers: what the model returns goes through a softmax, always, before it reaches a table. A feature would
be lost by that, but for one thing: a softmax keeps differences. So the first "class" is the constant 0, named
``reference``, and a number of the feature is ``log(feature_i / reference)``. What is compared with the original is what
comes out of that. See ``docs/decisions/0082-what-an-export-is.md``.

The form of the configuration is that of ``model-config.schema.json`` in wsinfer-zoo 0.6.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.export.base import Format, Job, Run
from pipeline.export.check import Features
from pipeline.export.graph import Views, example, graph_of
from pipeline.export.torchscript import FILE, run_file, versions, write_traced
from stores.errors import OptionError
from stores.io.files import write_json

CONFIG = "config.json"
REFERENCE = "reference"


class WithReference(nn.Module):
    """Features (B, dim) to (B, 1 + dim), of which the first number is 0."""

    def __init__(self, graph: nn.Module) -> None:
        super().__init__()
        self.graph = graph

    def forward(self, images: Tensor) -> Tensor:
        features = self.graph(images)
        return torch.cat([torch.zeros_like(features[:, :1]), features], dim=1)


def config(job: Job) -> dict[str, Any]:
    """What ``config.json`` says."""
    encoder = job.encoder
    return {
        "spec_version": "1.0",
        "architecture": encoder.preset.arch.partition(".")[0] or encoder.name,
        "num_classes": encoder.dim + 1,
        "patch_size_pixels": encoder.image_px,
        "spacing_um_px": job.mpp,
        "class_names": [REFERENCE, *(f"feature_{number}" for number in range(encoder.dim))],
        "transform": [
            {"name": "Resize", "arguments": {"size": encoder.image_px}},
            {"name": "ToTensor"},
            {"name": "Normalize", "arguments": {"mean": list(encoder.mean), "std": list(encoder.std)}},
        ],
    }


def _require(job: Job) -> None:
    if job.mpp is None:
        raise OptionError(
            f"--format wsinfer: {job.encoder.name} does not say at which resolution it was trained; give the "
            "micrometres per pixel of its patches as --mpp"
        )


def _write(job: Job, folder: Path) -> None:
    module = WithReference(graph_of(job.encoder, job.takes)).eval()
    write_traced(module, example(job.encoder, job.takes), folder / FILE, job.encoder.name)
    write_json(folder / CONFIG, config(job))


def _opened(job: Job, folder: Path) -> Run:
    model = run_file(job, folder / FILE)

    def run(views: Views) -> Features:
        shares = torch.from_numpy(model(views)).softmax(dim=1).numpy()
        with np.errstate(divide="ignore"):  # a share of 0 is a number that is lost, and shows as not finite
            found: Features = np.log(shares[:, 1:] / shares[:, :1])
        return found

    return run


def _usage(job: Job) -> str:
    dim = job.encoder.dim
    return f"""WSInfer:

```
wsinfer run --wsi-dir SLIDES --results-dir RESULTS --config config.json --model-path {FILE}
```

QuPath: put this folder into the folder of user models of the WSInfer extension; each number becomes a measurement of a
tile.

Both pass what a model returns through a softmax, since they are made for classifiers. This model returns a 0 before its
{dim} numbers, so that they can be read back:

```python
import numpy as np, pandas as pd

table = pd.read_csv("RESULTS/model-outputs-csv/SLIDE.csv")
shares = table.filter(regex="^prob_feature_").to_numpy()
features = np.log(shares / table[["prob_{REFERENCE}"]].to_numpy())  # (patches, {dim})
```
"""


WSINFER = Format(_require, _write, _opened, _usage, versions)
