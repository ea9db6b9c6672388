"""Options: types, JSON, errors that name the option."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from pipeline.distill.options import DistillOptions
from pipeline.distill.prototypes.options import PrototypeOptions
from pipeline.embed.options import EmbedOptions
from pipeline.evaluate import options as protocols
from pipeline.extract.options import ExtractOptions, PlanOptions
from pipeline.report.options import ReportOptions
from pipeline.runtime.options import ClusterOptions, from_json, not_none, option, to_json, types_of
from pipeline.tile.options import TileOptions
from pipeline.verify.options import VerifyOptions
from stores.errors import OptionError

KINDS = [
    TileOptions,
    ExtractOptions,
    PlanOptions,
    DistillOptions,
    PrototypeOptions,
    EmbedOptions,
    VerifyOptions,
    ReportOptions,
    ClusterOptions,
    *(kind for name, kind in vars(protocols).items() if name.endswith("Options")),
]


@dataclass(frozen=True)
class Sample:
    """One field of each type."""

    n: int = option(1, "Count.")
    x: float = option(0.5, "Number.")
    out: Path | None = option(None, "Path.")
    paths: tuple[Path, ...] = option((), "Paths.")
    ks: tuple[int, ...] = option((), "Integers.")
    flag: bool = option(False, "Flag.")
    name: str | None = option(None, "Text.")
    share: int | Literal["all"] = option(1, "Either.")


@pytest.mark.parametrize("kind", KINDS)
def test_json_gives_the_same_options(kind: type) -> None:
    assert from_json(kind, to_json(kind())) == kind()
    for field in fields(kind):
        text = field.metadata["help"]
        assert text[-1] == "." or field.metadata["choices"], field.name
        assert "so many" not in text


def test_values_become_the_types_of_their_fields() -> None:
    given = {
        "n": np.int64(3),
        "x": "1e-4",
        "out": "a/b",
        "paths": ["a", Path("b")],
        "ks": [1, 2],
        "flag": True,
        "share": "all",
    }
    made = from_json(Sample, given)
    assert made == Sample(3, 1e-4, Path("a/b"), (Path("a"), Path("b")), (1, 2), True, None, "all")
    assert type(made.n) is int
    assert not_none(types_of(Sample)["out"]) is Path
    assert from_json(Sample, {"out": None, "name": None}) == Sample()
    assert from_json(Sample, {"x": 2}).x == 2.0


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"m": 1}, "option 'm': not one of n, x, out"),
        ({"n": 1.5}, "option 'n': 1.5 is not an integer"),
        ({"n": True}, "option 'n': True is not an integer"),
        ({"x": "fast"}, "option 'x': 'fast' is not a number"),
        ({"ks": 5}, "option 'ks': 5 is not a list; an item is an integer"),
        ({"ks": ["a"]}, "option 'ks': 'a' is not an integer"),
        ({"paths": "a"}, "option 'paths': 'a' is not a list; an item is a path"),
        ({"flag": 1}, "option 'flag': 1 is not true or false"),
        ({"out": 3}, "option 'out': 3 is not a path"),
        ({"n": None}, "option 'n': None is not an integer"),
        ({"name": 3}, "option 'name': 3 is not text"),
        ({"share": "some"}, "option 'share': 'some' is not an integer or 'all'"),
    ],
)
def test_a_wrong_value_is_one_line(given: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError) as caught:
        from_json(Sample, given)
    assert str(caught.value).startswith(said)
