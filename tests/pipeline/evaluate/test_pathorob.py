"""The presets of PathoROB against its definition, written out."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from pipeline.evaluate.embeddings import Embeddings
from pipeline.evaluate.options import RobustnessOptions
from pipeline.evaluate.pathorob import PRESETS
from pipeline.evaluate.protocols import run_robustness
from stores.errors import EvaluationError, OptionError

N, SLIDES = 360, 36


def patches(seed: int = 0) -> tuple[npt.NDArray[np.float32], dict[str, list[str]]]:
    """Three classes from three centres, four slides of ten patches each; centre and class both show."""
    rng = np.random.default_rng(seed)
    slide = np.arange(N) // 10
    kind, centre = slide % 3, slide // 3 % 3
    x = rng.normal(size=(N, 12)) + rng.normal(size=(SLIDES, 12))[slide] / 2
    x[:, 0] += 2 * kind
    x[:, 1] += 2 * centre
    columns = {
        "slide_id": [f"s{i}" for i in slide],
        "patch_id": [f"p{i % 10}" for i in range(N)],
        "biological_class": [f"b{c}" for c in kind],
        "medical_center": [f"c{c}" for c in centre],
    }
    return x.astype(np.float32), columns


def naive_index(
    x: npt.NDArray[Any],
    kind: npt.NDArray[Any],
    centre: npt.NDArray[Any],
    slide: npt.NDArray[Any],
    subsets: list[npt.NDArray[np.int64]],
    k: int,
) -> float:
    """SO / (SO + OS) summed over subsets: Euclidean neighbours of L2-normalised features, own slide dropped after."""
    so = os = 0
    for rows in subsets:
        unit = x[rows] / np.linalg.norm(x[rows], axis=1, keepdims=True)
        for i, row in enumerate(rows):
            order = np.argsort(np.linalg.norm(unit - unit[i], axis=1), kind="stable")
            near = [rows[j] for j in order if slide[rows[j]] != slide[row]][:k]
            so += sum(kind[j] == kind[row] and centre[j] != centre[row] for j in near)
            os += sum(kind[j] != kind[row] and centre[j] == centre[row] for j in near)
    return so / (so + os)


def index_of(embeddings: Embeddings, **options: Any) -> tuple[float | None, list[str]]:
    result = run_robustness(embeddings, RobustnessOptions(replicates=5, **options))
    (row,) = [row for row in result.rows if row.figure == "robustness_v2"]
    return row.value, result.notes


@pytest.mark.parametrize(("preset", "k"), [("pathorob-camelyon", 11), ("pathorob-tolkach-esca", 46)])
def test_all_samples_at_once(preset: str, k: int) -> None:
    x, columns = patches()
    outside = np.arange(N) % 7 == 0
    columns["subset"] = ["OOD" if out else "ID" for out in outside]
    value, notes = index_of(Embeddings("x", "", x, columns), preset=preset)
    kind, centre, slide = (np.array(columns[n]) for n in ("biological_class", "medical_center", "slide_id"))
    expected = naive_index(x, kind, centre, slide, [np.flatnonzero(~outside)], k)
    assert value == pytest.approx(expected)
    assert f"{int(outside.sum())} samples of subset OOD were left out" in notes
    assert f"PathoROB's protocol: k = {k}, all samples at once; its index is robustness_v2" in notes


def pairs(columns: dict[str, list[str]]) -> tuple[list[str], list[npt.NDArray[np.int64]]]:
    """A metadata file with two classes and two centres in a subset, and the rows of each; patches are in several."""
    lines, parts = ["subset,slide_id,patch_id,biological_class,medical_center"], []
    kind, centre = np.array(columns["biological_class"]), np.array(columns["medical_center"])
    for a, b in (("b0", "b1"), ("b0", "b2")):
        for c, d in (("c0", "c1"), ("c1", "c2")):
            rows = np.flatnonzero(np.isin(kind, [a, b]) & np.isin(centre, [c, d]))
            parts.append(rows)
            lines += [
                f"{a}{b}-{c}{d},{columns['slide_id'][i]},{columns['patch_id'][i]},{kind[i]},{centre[i]}"
                for i in rows
            ]
    return lines, parts


def test_tcga_in_pairs_from_the_metadata_of_the_repository(tmp_path: Path) -> None:
    """A patch in two subsets counts in both, with other neighbours."""
    x, columns = patches()
    lines, parts = pairs(columns)
    table = tmp_path / "tcga_2x2.csv"
    table.write_text("\n".join(lines) + "\n")
    kind, centre, slide = (np.array(columns[n]) for n in ("biological_class", "medical_center", "slide_id"))
    bare = {name: columns[name] for name in ("slide_id", "patch_id")}
    value, _ = index_of(Embeddings("x", "", x, bare), preset="pathorob-tcga", labels=table)
    assert value == pytest.approx(naive_index(x, kind, centre, slide, parts, 61))
    assert value != pytest.approx(naive_index(x, kind, centre, slide, [np.unique(np.concatenate(parts))], 61))
    more = {"slide_id": [*bare["slide_id"], "s98"], "patch_id": [*bare["patch_id"], "p0"]}
    table.write_text("\n".join([*lines, "b0b1-c0c1,s99,p0,b0,c0"]) + "\n")
    again, notes = index_of(
        Embeddings("x", "", np.concatenate([x, x[:1]]), more), preset="pathorob-tcga", labels=table
    )
    assert again == value
    assert "1 samples are not in tcga_2x2.csv and were left out" in notes
    assert (
        f"1 of {len(lines)} rows of tcga_2x2.csv have no embedding: this is no figure of the whole data set"
        in notes
    )


def test_what_a_preset_needs(tmp_path: Path) -> None:
    x, columns = patches()
    whole = Embeddings("x", "", x, columns)
    with pytest.raises(OptionError, match="--preset pathorob-tcga: column subset: x has no such column"):
        index_of(whole, preset="pathorob-tcga")
    table = tmp_path / "meta.csv"
    for text, message in (
        ("slide_id,biological_class\ns0,b0\n", "no column patch_id"),
        ("subset,slide_id,patch_id\nA,s0,p0\nA,s0,p0\n", "line 3: s0, p0, A occurs twice"),
        ("subset,slide_id,patch_id\nA,t0,p0\n", "names none of the samples of x"),
    ):
        table.write_text(text)
        with pytest.raises(OptionError, match=message):
            index_of(whole, preset="pathorob-tcga", labels=table)
    lines, _ = pairs(columns)
    few = [lines[0], *(line for line in lines[1:] if line.split(",")[2] in ("p0", "p1"))]
    table.write_text("\n".join(few) + "\n")
    with pytest.raises(EvaluationError, match="k 61: "):
        index_of(whole, preset="pathorob-tcga", labels=table)


def test_columns_of_other_names_and_the_published_k() -> None:
    x, columns = patches()
    renamed = {
        "label": columns["biological_class"],
        "site": columns["medical_center"],
        "slide_id": columns["slide_id"],
    }
    assert (
        index_of(Embeddings("x", "", x, renamed), preset="pathorob-camelyon")[0]
        == index_of(Embeddings("x", "", x, columns), preset="pathorob-camelyon")[0]
    )
    assert {name: (preset.k, preset.paired) for name, preset in PRESETS.items()} == {
        "pathorob-camelyon": (11, False),
        "pathorob-tcga": (61, True),
        "pathorob-tolkach-esca": (46, False),
    }
