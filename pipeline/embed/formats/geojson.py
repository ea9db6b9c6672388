"""``geojson``: a map of the features of a slide for QuPath, patches in the colours of three principal components.

QuPath reads a FeatureCollection whose features are squares with ``objectType``, ``color`` and ``measurements``
(``qupath.lib.io.QuPathTypeAdapters`` and ``ROITypeAdapters``). It counts from the corner of what was scanned, where the
file says what that is, and so does this; see `pipeline.tile.frames`.
"""

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.embed.formats.base import Format, Parts, Unit, ok_rows, slides_only
from pipeline.embed.parts import feature_matrix
from pipeline.metrics.colours import as_rgb
from stores.format import oblong
from stores.io import files

N_COLOURS = 3


def write_geojson(folder: Path, unit: Unit, parts: Parts) -> list[Path]:
    tables = [ok_rows(part) for part in parts]
    places = np.concatenate(
        [np.stack([t["x_px0"].to_numpy(), t["y_px0"].to_numpy()], axis=1) for t in tables]
    )
    tissue = np.concatenate([t["tissue"].to_numpy() for t in tables])
    space = components(np.concatenate([feature_matrix(t["features"]) for t in tables if len(t)]))
    colours = as_rgb(space)
    width, height = oblong.sides_px0(unit.row)
    path = folder / f"{unit.name}.geojson"
    with files.replacing(path) as partial, partial.open("w", encoding="utf-8") as file:
        about = json.dumps(unit.about, sort_keys=True)
        file.write(f'{{"type":"FeatureCollection","g2l":{about},"features":[')
        rows = zip((places - unit.corner_px0).tolist(), tissue.tolist(), space, colours.tolist(), strict=True)
        for i, ((x, y), share, values, colour) in enumerate(rows):
            measured = {"tissue": round(share, 3)}
            measured |= {f"component {c}": float(f"{value:.4g}") for c, value in enumerate(values, 1)}
            right, bottom = x + width, y + height
            square = [[x, y], [right, y], [right, bottom], [x, bottom], [x, y]]
            feature = {
                "type": "Feature",
                "geometry": {"type": "Polygon", "coordinates": [square]},
                "properties": {"objectType": "tile", "color": colour, "measurements": measured},
            }
            file.write((",\n" if i else "\n") + json.dumps(feature, separators=(",", ":")))
        file.write("\n]}\n")
    return [path]


def components(features: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """The first three principal components of features (n, dim), float64 (n, 3); zeros where there are fewer."""
    from sklearn.decomposition import PCA

    space = np.zeros((len(features), N_COLOURS))
    n = min(N_COLOURS, len(features) - 1, features.shape[1])
    if n and np.ptp(features, axis=0).any():
        # components are eigenvectors of the covariance: a large slide is not copied
        space[:, :n] = PCA(n, svd_solver="covariance_eigh").fit_transform(features.astype(np.float64))
    return space


GEOJSON = Format(slides_only("geojson"), write_geojson)
