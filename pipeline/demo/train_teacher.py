"""Train the demo teacher, whose result is shipped as ``pipeline/encoders/demo-teacher.safetensors``.

    python -m pipeline.demo.train_teacher --out pipeline/encoders/demo-teacher.safetensors

It learns to tell the tissue types of synthetic slides apart, under the views of the policy ``g2l``; the classifier
is dropped. Slides differ in stain, so what is left is an eye for texture. 300 steps of 32 views take a few minutes on
two cores; half as many give the same held-out accuracy. What the features are like: docs/concepts/demo-teacher.md.
"""

import argparse
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.demo.synthetic_slides import TISSUE_TYPES, label_of_patch, paint_slide
from pipeline.encoders.presets import PRESETS, Preset
from pipeline.encoders.timm_models import create
from pipeline.metrics.knn import knn_predict
from pipeline.views.draw import draw
from pipeline.views.policy import POLICIES
from pipeline.views.render import render
from stores.io.files import replacing

PRESET = PRESETS["demo-teacher"]
POLICY = POLICIES["g2l"]
# apart from the demo's slides, which start at 5000 (`pipeline.demo.synthetic_slides`)
TRAIN_SLIDES, HELD_OUT_SLIDES = range(1000, 1030), range(2000, 2003)
LR, WEIGHT_DECAY, BATCH, WARMUP_STEPS, K = 3e-3, 0.05, 32, 30, 10

Images = npt.NDArray[np.uint8]
Types = npt.NDArray[np.int64]


def pure_patches(slides: Iterable[int]) -> tuple[Images, Types]:
    """Patches of one tissue type, uint8 (n, 256, 256, 3), and their types, of the slides with these seeds."""
    side = POLICY.patch_px
    patches, types = [], []
    for seed in slides:
        pixels, labels = paint_slide(seed)
        for y in range(0, pixels.shape[0] - side + 1, side):
            for x in range(0, pixels.shape[1] - side + 1, side):
                kind = label_of_patch(labels, x, y, side)
                if kind >= 0:
                    patches.append(pixels[y : y + side, x : x + side].copy())
                    types.append(kind)
    return np.stack(patches), np.array(types, np.int64)


def normalise(views: Images, preset: Preset = PRESET) -> Tensor:
    """Views uint8 (B, H, W, 3) as the preset's network takes them: float32 (B, 3, H, W)."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (preset.mean, preset.std))
    return (torch.from_numpy(views).permute(0, 3, 1, 2).float() / 255 - mean) / std


def train(patches: Images, types: Types, steps: int, seed: int) -> nn.Module:
    """Train the backbone of the preset as a classifier and return it without its classifier, in eval mode."""
    torch.manual_seed(seed)
    backbone = create(PRESET)
    classifier = nn.Linear(PRESET.dim, len(TISSUE_TYPES))
    parameters = [*backbone.parameters(), *classifier.parameters()]
    optimiser = torch.optim.AdamW(parameters, LR, weight_decay=WEIGHT_DECAY)
    backbone.train()
    for step, chosen in enumerate(_batches(len(patches), steps, seed)):
        warm = min(1.0, (step + 1) / WARMUP_STEPS)
        for group in optimiser.param_groups:
            group["lr"] = LR * warm * 0.5 * (1 + np.cos(np.pi * step / steps))
        # the step as the view's seed: every occurrence of a patch is another view
        views = [render(patches[i], draw(POLICY, "demo-teacher", i, 0, step + 1), POLICY) for i in chosen]
        logits = classifier(backbone(normalise(np.stack(views))))
        loss = functional.cross_entropy(logits, torch.from_numpy(types[chosen]))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step % 50 == 0 or step == steps - 1:
            print(f"step {step}: loss {loss.item():.3f}", flush=True)
    return backbone.eval()


def _batches(n: int, steps: int, seed: int) -> Iterator[list[int]]:
    rng = np.random.Generator(np.random.Philox(seed))
    order = np.concatenate([rng.permutation(n) for _ in range(steps * BATCH // n + 1)])
    return (order[step * BATCH : (step + 1) * BATCH].tolist() for step in range(steps))


@torch.inference_mode()
def centre_features(backbone: nn.Module, patches: Images) -> npt.NDArray[np.float32]:
    """Features of the centre crops, float32 (n, 1536)."""
    margin = (POLICY.patch_px - POLICY.crop_px) // 2
    crops = patches[:, margin : margin + POLICY.crop_px, margin : margin + POLICY.crop_px]
    return np.concatenate(
        [backbone(normalise(crops[i : i + BATCH])).numpy() for i in range(0, len(crops), BATCH)]
    )


def effective_rank(features: npt.NDArray[Any]) -> float:
    """Exponential of the entropy of the covariance's spectrum (Roy & Vetterli 2007, on squared singular values)."""
    share = np.square(np.linalg.svd(features - features.mean(axis=0), compute_uv=False))
    share = share[share > 0] / share.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


def save(backbone: nn.Module, path: Path) -> None:
    """Write the backbone's state in timm's layout: float16, except for integer counters."""
    state = {
        name: (value.half() if value.is_floating_point() else value).contiguous()
        for name, value in backbone.state_dict().items()
    }
    with replacing(path) as partial:
        safetensors.torch.save_file(state, partial)


def main() -> None:
    """Train, write the weights and print what they are worth on held-out slides."""
    parser = argparse.ArgumentParser(description="Train the demo teacher on synthetic slides.")
    parser.add_argument("--out", type=Path, required=True, help="File to write (.safetensors).")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    patches, types = pure_patches(TRAIN_SLIDES)
    print(f"{len(patches)} patches of {len(TRAIN_SLIDES)} slides", flush=True)
    backbone = train(patches, types, arguments.steps, arguments.seed)
    save(backbone, arguments.out)
    backbone.load_state_dict(safetensors.torch.load_file(arguments.out))  # judge what is shipped: float16
    held_out, asked = pure_patches(HELD_OUT_SLIDES)
    reference, features = centre_features(backbone, patches[::3]), centre_features(backbone, held_out)
    accuracy = float((knn_predict(reference, types[::3], features, K) == asked).mean())
    print(
        f"held-out {K}-NN accuracy {accuracy:.3f} on {len(held_out)} patches of {len(HELD_OUT_SLIDES)} slides"
    )
    print(
        f"effective rank {effective_rank(features):.1f}; {arguments.out}: {arguments.out.stat().st_size} bytes"
    )


if __name__ == "__main__":
    main()
