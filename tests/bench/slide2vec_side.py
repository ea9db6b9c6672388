"""What slide2vec does in ``bench_embed``, in its own environment; prints seconds and views."""

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

sys.path.append(str(Path(__file__).resolve().parents[2]))
from pipeline.encoders.torchvision_cpu import make_importable

make_importable()


def main() -> None:
    """Arguments: slide, timm model, batch size, worker processes, threads."""
    slide, name, batch_size, workers, threads = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6])
    torch.set_num_threads(threads)
    import slide2vec
    import timm
    from slide2vec.encoders.base import TimmTileEncoder
    from slide2vec.encoders.registry import register_encoder

    dim = timm.create_model(name, pretrained=False, num_classes=0).num_features
    loaded: list[float] = []

    class Encoder(TimmTileEncoder):
        def __init__(self, *, output_variant: str | None = None) -> None:
            super().__init__(name, output_variant=output_variant, pretrained=False)
            loaded.append(time.perf_counter())

        def _dense_patch_size(self) -> tuple[int, int]:
            return 16, 16  # it is asked of CNNs too, and not used here

    register: Any = register_encoder
    register(
        "small",
        encode_dim=dim,
        input_size=224,
        patch_size=16,
        supports_variable_input_size=False,
        supported_spacing_um=0.5,
        precision="fp32",
    )(Encoder)
    with tempfile.TemporaryDirectory() as folder:
        execution = slide2vec.ExecutionOptions(
            output_dir=Path(folder),
            batch_size=batch_size,
            num_workers_per_gpu=workers,
            num_preprocessing_workers=1,
            num_gpus=1,
            precision="fp32",
        )
        model = slide2vec.Model.from_preset("small", device="cpu")
        found = model.embed_slide(slide, execution=execution, spacing_at_level_0=0.5)
        seconds = time.perf_counter() - loaded[-1]
    assert not isinstance(found, list)
    shape = tuple(found.tile_embeddings.shape)
    print(json.dumps({"seconds": seconds, "views": shape[0], "dim": shape[1]}))


if __name__ == "__main__":
    main()
