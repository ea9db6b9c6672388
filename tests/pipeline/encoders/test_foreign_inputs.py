"""Students and weights that are nearly right are read, or refused in one line: a sample, the same in each run."""

from pathlib import Path
from random import Random

import pytest

from stores.errors import G2LError
from tests.tools.encoder_inputs import TARGETS


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_a_sample_is_read_or_refused_in_one_line(name: str, tmp_path: Path) -> None:
    target = TARGETS[name](tmp_path)
    said: list[str] = []
    for raw in target.seeds:
        target.path.write_bytes(raw)
        target.read()
    for number in range(10):
        random = Random(f"{name} {number}")
        target.path.write_bytes(target.mutate(random.choice(target.seeds), random))
        try:
            target.read()
        except G2LError as error:
            said.append(str(error))
    assert len(said) > 3
    assert [text for text in said if not text.isprintable()] == []
