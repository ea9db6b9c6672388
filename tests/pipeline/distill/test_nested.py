"""Prefixes of the embedding that are trained as embeddings of their own."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pipeline.distill import train
from pipeline.distill.heads import standardise
from pipeline.distill.inputs import open_data
from pipeline.distill.losses import log_sum
from pipeline.distill.metrics_log import read_metrics
from pipeline.distill.model import Embedded, Targets
from pipeline.distill.options import DistillOptions
from pipeline.distill.result import Distilled
from pipeline.encoders.load import load_encoder
from pipeline.metrics.cka import linear_cka
from pipeline.metrics.explained import explained_variance
from pipeline.runtime.progress import Silent
from stores.errors import OptionError
from tests.tools.distill import SHORT, made

OPTIONS = replace(SHORT, nested="8,4", steps=4, val_every=2, checkpoint_every=2)


def test_a_term_is_the_mean_over_prefixes_with_projectors_of_their_own(store: Path) -> None:
    model = made(store, OPTIONS)[0].model
    generator = torch.Generator().manual_seed(0)
    features, target = torch.randn(2, 16, 24, generator=generator)
    none = torch.empty(16, 0, 0), torch.empty(16, 0, dtype=torch.int64)
    loss, _ = model.compare(Embedded(features), Targets(target, *none))
    weights = {name: value.detach().numpy() for name, value in model.named_parameters() if "linear" in name}
    expected = []
    for length, name in ((24, "projector"), (4, "nested.4"), (8, "nested.8")):
        linear = features.numpy()[:, :length] @ weights[f"{name}.linear.weight"].T
        projected = torch.from_numpy(linear + weights[f"{name}.linear.bias"])
        expected.append(float(log_sum(standardise(projected), standardise(target))))
    assert float(loss.detach()) == pytest.approx(np.mean(expected), rel=1e-5)


@pytest.mark.slow
def test_figures_and_card_of_each_prefix(store: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    summary = train.distill(store, run, OPTIONS, False, Silent())
    assert list(summary["nested"]) == ["4", "8", "24"]
    last = [record for record in read_metrics(run / "metrics.jsonl") if record["kind"] == "val"][-1]
    assert last["cka_4"] == summary["nested"]["4"]["cka"] != last["cka"] == summary["nested"]["24"]["cka"]
    assert {"explained", "cka", "cosine"} <= summary["nested"]["8"].keys()
    config = json.loads((run / "student/config.json").read_text())
    assert config["g2l"]["extra"]["nested"] == summary["nested"]
    card = (run / "student/README.md").read_text()
    assert "The first 4, 8 numbers were trained" in card
    assert "short = features[:, :4]" in card
    assert f"| 8 | {summary['nested']['8']['explained']:.4f} |" in card
    assert any(
        line.startswith("held out: CKA of the first 4 numbers 0.") for line in Distilled(run, summary).lines()
    )
    projectors = load_file(run / "nested.safetensors")
    assert set(projectors) >= {"4.linear.weight", "8.linear.weight"}
    data = open_data(store, OPTIONS, 1, Silent())
    assert data.held_out is not None
    assert data.fit is not None
    student = load_encoder(str(run / "student"))
    with torch.inference_mode():
        short, fit = (student(torch.from_numpy(batch.views))[:, :4] for batch in (data.held_out, data.fit))
    targets, of_fit = (batch.targets.astype(np.float32) for batch in (data.held_out, data.fit))
    projected = short @ projectors["4.linear.weight"].T + projectors["4.linear.bias"]
    cosine = torch.cosine_similarity(standardise(projected), standardise(torch.from_numpy(targets))).mean()
    figures = summary["nested"]["4"]
    assert figures["cka"] == pytest.approx(linear_cka(short.numpy(), targets), rel=1e-4)
    assert figures["cosine"] == pytest.approx(float(cosine), abs=1e-4)
    expected = explained_variance(fit.numpy(), of_fit, short.numpy(), targets)
    assert figures["explained"] == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"nested": "4,x"}, "--nested 4,x: allowed are different numbers of 2 or more, such as 64,128,256"),
        ({"nested": "4,4"}, "--nested 4,4: allowed are different"),
        ({"nested": ""}, "--nested : allowed are different"),
        ({"nested": "1"}, "--nested 1: allowed are different"),
        ({"nested": "4,24"}, "--nested 4,24: the embedding of timm:.* has 24 numbers; allowed is 2 to 23"),
        (
            {"loss": "koleo,dino", "prototypes": Path("p")},
            "--nested 8,4: --loss koleo,dino has no term of proj",
        ),
    ],
)
def test_prefixes_that_are_none(store: Path, tmp_path: Path, change: dict[str, object], said: str) -> None:
    options: DistillOptions = replace(OPTIONS, **change)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match=said):
        train.distill(store, tmp_path / "run", options, False, Silent())
