"""Policies are data: identity, files, and one line for every mistake."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.views.policy import POLICIES, Policy, load_policy
from stores.errors import OptionError

G2L = POLICIES["g2l"]
GOLDEN_DIGESTS: dict[str, str] = {
    "g2l": "7d024874ce12a63c20af91558972f5bc829f33aa4c1a7f8c1fa0418cfdae82cc",
    "none": "c067b4701ed692d720a4dd0441e8134897e51c0cf9a1dd2f628003f77083d82a",
    "hed": "e91a8ea893e10dab36a803d69cbb86e66a7c087f7c6a4bcb1ca49edf47cef15f",
}


def test_golden_policy_digests() -> None:
    assert {name: policy.digest() for name, policy in POLICIES.items()} == GOLDEN_DIGESTS


def test_digest_is_of_the_distribution_not_of_name_or_number_type() -> None:
    assert replace(G2L, name="other").digest() == G2L.digest()
    assert Policy("a", hflip_p=1).digest() == Policy("a", hflip_p=1.0).digest()
    digests = {replace(G2L, hflip_p=p).digest() for p in (0.1, 0.2, 0.3)}
    assert len({*digests, *(policy.digest() for policy in POLICIES.values())}) == 6
    assert Policy.from_json(json.loads(json.dumps(G2L.to_json()))) == G2L


def test_load_policy(tmp_path: Path) -> None:
    assert load_policy("g2l") is G2L
    file = tmp_path / "mine.yaml"
    file.write_text("hflip_p: 1\nstain_p: 0.5\nstain: 0.2\ncrop_px: 192\n")
    assert load_policy(str(file)) == Policy("mine", hflip_p=1.0, stain_p=0.5, stain=0.2, crop_px=192)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("rotate_p: 0.5", ["rotate_p", "hflip_p"]),
        ("hflip_p: 1.5", ["hflip_p", "1.5", "from 0 to 1"]),
        ("hflip_p: .nan", ["hflip_p", "nan"]),
        ("hflip_p: true", ["hflip_p", "True"]),
        ("hflip_p: often", ["hflip_p", "often"]),
        ("random_crop: 1", ["random_crop", "true or false"]),
        ("hue: 0.6", ["hue", "0.6", "0.5"]),
        ("crop_px: 300", ["crop_px 300", "patch_px 256"]),
        ("crop_px: 224.0", ["crop_px", "whole number"]),
        ("blur_kernel_px: 8", ["blur_kernel_px 8", "odd"]),
        ("sigma_min: 0", ["sigma_min", "0.01"]),
        ("sigma_min: 3", ["sigma_min 3", "sigma_max 2"]),
        ("name: a b", ["a b"]),
        ("name: 7", ["7"]),
        ("- hflip_p", ["mine.yaml", "hflip_p: 0.5"]),
        ("", ["mine.yaml"]),
        ("a: b: c", ["mine.yaml", "YAML"]),
        ("3: 4", ["3"]),
    ],
)
def test_a_bad_policy_file_is_one_line(tmp_path: Path, text: str, names: list[str]) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(OptionError) as caught:
        load_policy(str(file))
    message = str(caught.value)
    assert "\n" not in message
    for name in names:
        assert name in message


def test_unknown_names_and_missing_fields() -> None:
    with pytest.raises(OptionError, match=r"'g3l' is neither one of g2l, none, hed nor a YAML file"):
        load_policy("g3l")
    with pytest.raises(OptionError, match="without a name"):
        Policy.from_json({"hflip_p": 0.5})
