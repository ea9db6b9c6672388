"""YAML that people write."""

from pathlib import Path

import pytest
import yaml

from pipeline.runtime.yaml_file import read_yaml
from stores.errors import OptionError


def test_names_and_values(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("a: 1\nb: [x, {c: 2.5}]\n")
    assert read_yaml(path, "a.yaml") == {"a": 1, "b": ["x", {"c": 2.5}]}
    path.write_text("# nothing\n")
    assert read_yaml(path, "a.yaml") == {}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: &a [x]\nb: [*a, *a]", "aliases"),
        ("a: &a [*a]", "aliases"),
        ("a: &a {x: 1}\nb: {<<: [*a, *a]}", "aliases"),
        ("3: 4", "3 is not a name"),
        ("a: {3: 4}", "3 is not a name"),
        ("? [a]\n: b", "not readable"),
        ("- a", "expected lines such as 'name: value'"),
        ("k", "expected lines"),
        ("a: 2020-13-45", "not readable"),
        ("a: !!int ''", "not readable"),
        ("a: !!python/object/apply:os.getcwd []", "not readable"),
        ("a: " + "[" * 2000, "not readable"),
        ("a: " + "[" * 100 + "]" * 100, "expected lines"),
        ("a: \x00", "not readable"),
        ("a: " + "x" * (5 << 20), "larger than"),
    ],
    ids=range(15),
)
def test_anything_else_is_one_line(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(OptionError, match=said) as caught:
        read_yaml(path, "a.yaml")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("word", ["off", "on", "no", "yes", "n", "Y"])
def test_a_word_is_no_boolean(tmp_path: Path, word: str) -> None:
    path = tmp_path / "options.yaml"
    path.write_text(f"early_stop: {word}\npixels: true\n")
    assert read_yaml(path, "options") == {"early_stop": word, "pixels": True}
    assert yaml.safe_load("a: yes") == {"a": True}  # other readers in the process keep their rules
