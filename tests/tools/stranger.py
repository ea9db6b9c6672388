"""A reader by somebody who has the documents and not the code: NumPy, Zarr, pyarrow and the standard library alone.

Written from docs/reference/store-format.md and docs/concepts/views.md. ``python tests/tools/stranger.py STORE``
reads every committed feature, makes every view again from its stored parameters and the stored pixels, and
prints what it found.
"""

import hashlib
import itertools
import json
import math
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import zarr

ONE, HALF = 1 << 16, 1 << 15
ORDERS = list(itertools.permutations(("brightness", "contrast", "saturation", "hue")))


def look_up(x: Any, table: list[int]) -> Any:
    return np.clip(np.array(table), 0, 255).astype(np.uint8)[x]


def brightness(x: Any, f: int) -> Any:
    return look_up(x, [(f * level + HALF) // ONE for level in range(256)])


def contrast(x: Any, f: int) -> Any:
    n = x.shape[0] * x.shape[1]
    red, green, blue = (int(x[..., c].sum(dtype=np.int64)) for c in range(3))
    mean = (19595 * red + 38470 * green + 7471 * blue + n // 2) // n
    return look_up(x, [(ONE * f * level + (ONE - f) * mean + (1 << 31)) // (1 << 32) for level in range(256)])


def saturation(x: Any, f: int) -> Any:
    wide = x.astype(np.int64)
    grey = (19595 * wide[..., 0] + 38470 * wide[..., 1] + 7471 * wide[..., 2] + HALF) // ONE
    return np.clip((f * wide + ((ONE - f) * grey)[..., None] + HALF) // ONE, 0, 255).astype(np.uint8)


def hue(x: Any, turns: int) -> Any:
    r, g, b = (x[..., c].astype(np.int64) for c in range(3))
    high, low = x.max(axis=-1).astype(np.int64), x.min(axis=-1).astype(np.int64)
    c = high - low
    p = np.where(r == high, g - b, np.where(g == high, 2 * c + b - r, r - g - 2 * c))
    p = p + (6 * turns * c + HALF) // ONE
    p = np.where(p > 3 * c, p - 6 * c, p)
    p = np.where(p < -3 * c, p + 6 * c, p)
    channels = []
    for corner in (0 * c, 2 * c, -2 * c):
        way = np.abs(p - corner)
        way = np.minimum(way, 6 * c - way)
        channels.append(low + np.clip(2 * c - way, 0, c))
    return np.stack(channels, axis=-1).astype(np.uint8)


def blur(x: Any, width: int, sigma: float) -> Any:
    middle = width // 2
    bell = [math.exp(-((i - middle) ** 2) / (2 * sigma**2)) for i in range(width)]
    total, carried, ends = sum(bell), 0.0, []
    for i in range(middle):
        wanted = bell[i] / total * 256 + carried
        ends.append(round(wanted))
        carried = wanted - ends[-1]
    weights = [*ends, 256 - 2 * sum(ends), *ends[::-1]]
    wide = np.pad(x.astype(np.int64), ((middle, middle), (middle, middle), (0, 0)), mode="reflect")
    rows: Any = sum(w * wide[:, i : i + x.shape[1]] for i, w in enumerate(weights))
    both: Any = sum(w * rows[i : i + x.shape[0]] for i, w in enumerate(weights))
    return ((both + (1 << 15)) >> 16).astype(np.uint8)


def render(patch: Any, view: dict[str, Any], policy: dict[str, Any]) -> Any:
    assert not view["stain"]
    x, y, side = view["crop_x_px"], view["crop_y_px"], policy["crop_px"]
    image = patch[y : y + side, x : x + side]
    image = image[:, ::-1] if view["hflip"] else image
    image = image[::-1] if view["vflip"] else image
    if view["jitter"]:
        for name in ORDERS[view["order"]]:
            operation = {
                "brightness": brightness,
                "contrast": contrast,
                "saturation": saturation,
                "hue": hue,
            }[name]
            image = operation(image, round(view[name] * ONE))
    return blur(image, policy["blur_kernel_px"], view["sigma"]) if view["blur"] else image


def decode(group: Any, slide_id: str, seed: int) -> Any:
    """Features of a seed, float16 (row, dim), of a plain store or a compact copy."""
    values = group[f"{slide_id}/features"][seed]
    if values.dtype != np.int8:
        return values
    mean, std = group[f"{slide_id}/standard"][:]
    scale = group[f"{slide_id}/scales"][seed]
    std = np.where(std > 0, std, np.float32(1))
    wide = mean + std * (scale[:, None] * values.astype(np.float32))
    wide[(values == -128).any(axis=1)] = np.nan
    return wide.astype(np.float16)


def parquet_is_whole(path: Path) -> bool:
    raw = path.read_bytes()
    at = raw.rfind(b"g2l_crc32") + len(b"g2l_crc32") + 2
    return raw[at : at + 8] == b"%08x" % zlib.crc32(raw[:at] + b"0" * 8 + raw[at + 8 :])


def main(store: Path) -> dict[str, Any]:
    about = json.loads((store / "recipe.json").read_text())
    digest = about.pop("digest")
    canonical = json.dumps(about, sort_keys=True, separators=(",", ":")).encode()
    found: dict[str, Any] = {
        "digest": digest == hashlib.sha256(canonical).hexdigest(),
        "views": 0,
        "wrong": [],
        "sums": {},
    }
    found["parquet"] = all(parquet_is_whole(path) for path in store.glob("manifest/**/*.parquet"))
    group = zarr.open_group(store / "features.zarr", mode="r")
    pixels: Any = (
        zarr.open_group(store / "pixels.zarr", mode="r") if (store / "pixels.zarr").exists() else None
    )
    for row in pq.read_table(store / "manifest/slides.parquet").to_pylist():
        if row["status"] != "ok":
            continue
        slide_id = row["slide_id"]
        patches = pixels[slide_id][:] if pixels is not None else None
        for path in sorted((store / "manifest/views" / slide_id).glob("*.parquet")):
            for view in pq.ParquetFile(path).read().to_pylist():
                if view["status"] != "ok":
                    continue
                seed = view["seed"]
                key = f"{slide_id} {seed}"
                if key not in found["sums"]:
                    features = decode(group, slide_id, seed)
                    found["sums"][key] = hashlib.sha256(features.tobytes()).hexdigest()
                assert np.isfinite(features[view["row"]]).all()
                found["views"] += 1
                if patches is not None:
                    made = render(patches[view["row"]], view, about["policy"])
                    if zlib.crc32(np.ascontiguousarray(made).tobytes()) != view["view_crc32"]:
                        found["wrong"].append([slide_id, seed, view["row"]])
    found["foreign"] = sorted({"pipeline", "stores", "cv2", "torch", "openslide"} & set(sys.modules))
    return found


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
