"""What LazySlide does in ``bench_embed``, in its own environment; prints views a second."""

import json
import sys
import time
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).resolve().parents[2]))
from pipeline.encoders.torchvision_cpu import make_importable

make_importable()
import timm  # noqa: E402
from torchvision.transforms import v2  # noqa: E402


def main() -> None:
    """Arguments: slide, timm model, batch size, worker processes, threads."""
    slide, name, batch_size, workers, threads = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6])
    torch.set_num_threads(threads)
    import lazyslide as zs

    wsi = zs.open_wsi(slide)
    zs.pp.find_tissues(wsi)
    zs.pp.tile_tissues(wsi, 256, mpp=0.5, slide_mpp=0.5)
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False, num_classes=0).eval()
    transform = v2.Compose(
        [
            v2.ToImage(),
            v2.CenterCrop(224),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    began = time.perf_counter()
    zs.tl.feature_extraction(
        wsi,
        model=model,
        model_name="small",
        transform=transform,
        device="cpu",
        batch_size=batch_size,
        num_workers=workers,
        pbar=False,
    )
    seconds = time.perf_counter() - began
    shape = wsi.tables["small_tiles"].shape
    print(json.dumps({"seconds": seconds, "views": shape[0], "dim": shape[1], "version": zs.__version__}))


if __name__ == "__main__":
    main()
