"""Compact copies of a store, to be merged with the original."""

import shutil
from pathlib import Path

import numpy as np
from zarr.codecs import ZstdCodec

from stores.format import arrays, features, int8, layout, manifest
from tests.tools import zarr_arrays
from tests.tools.made_stores import DIM


def quantised(store: Path, out: Path, codec: str = "int8") -> Path:
    """A compact copy: int8 values, or the same float16 in other chunks of bytes."""
    shutil.copytree(store, out)
    for row in manifest.read_slides(store):
        if row["status"] != "ok":
            continue
        slide = features.open_features(store, row["slide_id"])
        name = layout.feature_array(row["slide_id"], "features")
        shutil.rmtree(out / name)
        shape, chunks = slide.spec.shape, slide.spec.chunks
        whole = np.asarray(arrays.open_checked(store, name, 3, "float16")[:])
        if codec != "int8":
            array = zarr_arrays.create(out, name, shape, chunks, "float16", np.nan, ZstdCodec(level=1))
            array[:] = whole
            continue
        standard = np.stack([np.nanmean(whole, (0, 1)), np.nanstd(whole, (0, 1)) + 1]).astype(np.float32)
        values = zarr_arrays.create(out, name, shape, chunks, "int8", int8.ABSENT)
        of_slide = {leaf: layout.feature_array(row["slide_id"], leaf) for leaf in ("scales", "standard")}
        scales = zarr_arrays.create(out, of_slide["scales"], shape[:2], chunks[:2], "float32", np.nan)
        zarr_arrays.create(out, of_slide["standard"], (2, DIM), (2, DIM), "float32", 0)[:] = standard
        for seed in range(shape[0]):
            values[seed], scales[seed] = int8.quantise(whole[seed], standard)
    return out
