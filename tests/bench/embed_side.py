"""What ``g2l embed`` does in ``bench_embed``, in a process of its own; prints seconds and views."""

import json
import sys
from pathlib import Path

from pipeline.embed.embed import embed
from pipeline.embed.options import EmbedOptions
from pipeline.runtime.progress import Silent
from pipeline.tile.options import TileOptions


def main() -> None:
    """Arguments: slide, timm model, batch size, folder of the result."""
    slide, name, batch_size, out = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), Path(sys.argv[4])
    options = EmbedOptions(encoder=f"timm:{name}", random_weights=0, batch_size=batch_size, device="cpu")
    tiling = TileOptions(slide_mpp=(f"{slide.stem}=0.5",))
    result = embed([slide], out, options, tiling, Silent())
    print(json.dumps({"seconds": result.seconds, "views": result.views}))


if __name__ == "__main__":
    main()
