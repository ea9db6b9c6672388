"""``store seal``: whatever changes afterwards is named."""

import hashlib
import random
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.extract.extract import extract
from pipeline.runtime.progress import Silent
from pipeline.tile.options import TileOptions
from pipeline.verify.options import VerifyOptions
from pipeline.verify.verify import seal_store
from stores.errors import CorruptStore, OptionError, StoreError
from stores.info import store_info
from stores.remote.objects import Objects
from stores.remote.transfer import pull, push
from stores.verify.structure import verify_structure
from tests.tools.settings import TEACHER
from tests.tools.verify import look, names_of, structure


@pytest.fixture
def sealed(copy: Path) -> Path:
    seal_store(copy, False, Silent())
    return copy


def test_what_a_kill_left_does_not_block_a_seal(copy: Path) -> None:
    """Folders, in which earlier versions repaired a store, and files; whoever writes sweeps them."""
    left = copy / "pixels.zarr" / "tmpab_1cd2e.partial"
    left.mkdir(parents=True)
    (left / "zarr.json").touch()
    (copy / "manifest" / ".slides.parquet.1.partial").touch()
    assert verify_structure(copy).findings == []
    seal_store(copy, False, Silent())
    assert not left.exists()
    assert "partial" not in (copy / "checksums.sha256").read_text()


def test_sha256sum_agrees(sealed: Path) -> None:
    for name in ("checksums.sha256", "checksums.sha256.digest"):
        done = subprocess.run(
            ["sha256sum", "-c", "--quiet", name], cwd=sealed, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    lines = (sealed / "checksums.sha256").read_text().splitlines()
    assert [line[66:] for line in lines] == [n for n in names_of(sealed) if not n.startswith("checksums")]
    digest = hashlib.sha256((sealed / "checksums.sha256").read_bytes()).hexdigest()
    assert (sealed / "checksums.sha256.digest").read_text().split()[0] == digest
    result = verify_structure(sealed)
    assert result.sealed
    assert result.findings == []
    again = seal_store(sealed, False, Silent())
    assert (again.digest, again.files) == (digest, len(lines))


@pytest.mark.slow
def test_after_sealing_every_change_of_any_file_is_named(sealed: Path) -> None:
    choose = random.Random(7)
    for name in names_of(sealed):
        whole = (sealed / name).read_bytes()
        damaged = bytearray(whole)
        damaged[choose.randrange(len(whole))] ^= 1 << choose.randrange(8)
        (sealed / name).write_bytes(damaged)
        found = [f for f in structure(sealed) if f.kind == "seal"]
        assert any(name in str(f) for f in found), name
        (sealed / name).unlink()
        assert any(name in str(f) for f in structure(sealed)), name
        (sealed / name).write_bytes(whole)
    (sealed / "manifest/extra.txt").touch()
    assert any(
        str(f) == "manifest/extra.txt: is not in the seal: added afterwards" for f in structure(sealed)
    )


def test_a_damaged_store_is_not_sealed_unless_asked(copy: Path) -> None:
    (copy / "features.zarr/b/features/c/1/0/0").unlink()
    with pytest.raises(StoreError, match=r"not sealed, 1 thing is wrong: slide b seed 1 .* --as-it-is"):
        seal_store(copy, False, Silent())
    assert not (copy / "checksums.sha256").exists()
    seal_store(copy, True, Silent())
    assert {f.kind for f in structure(copy)} == {"features"}


@pytest.mark.parametrize("text", ["nonsense\n", "", "00  a\n", f"{'0' * 64}  a\n{'0' * 64}  a\n"])
def test_a_forged_list_of_checksums(sealed: Path, text: str) -> None:
    (sealed / "checksums.sha256").write_text(text)
    assert any("does not fit checksums.sha256.digest" in str(f) for f in structure(sealed))
    digest = hashlib.sha256(text.encode()).hexdigest()
    (sealed / "checksums.sha256.digest").write_text(f"{digest}  checksums.sha256\n")
    assert [f for f in structure(sealed) if f.kind == "seal"]


def test_names_that_do_not_fit_a_line_are_refused(copy: Path) -> None:
    (copy / "a\nb").touch()
    with pytest.raises(StoreError, match="a name with control characters"):
        seal_store(copy, True, Silent())


def test_a_sealed_store_is_not_changed(sealed: Path, slides: Path, tile_options: TileOptions) -> None:
    with pytest.raises(OptionError, match="is sealed"):
        extract([slides], sealed, replace(TEACHER, seeds=4), tile_options, Silent())


def seals(store: Path, digest: str) -> list[str]:
    return [str(f) for f in look(store, VerifyOptions(threads=1, digest=digest)).findings]


def test_a_seal_that_was_removed_or_renewed_is_noticed_by_its_digest(sealed: Path) -> None:
    digest = (sealed / "checksums.sha256.digest").read_text().split()[0]
    assert seals(sealed, digest) == []
    assert store_info(sealed)["seal_digest"] == digest
    (sealed / "pictures/a.png").write_bytes(b"another")
    renewed = seal_store(sealed, False, Silent()).digest
    assert structure(sealed) == []
    assert seals(sealed, digest) == [
        f"checksums.sha256: has the digest {renewed}, the one that was given is {digest}: another store, or "
        "sealed again"
    ]
    for name in ("checksums.sha256", "checksums.sha256.digest"):
        (sealed / name).unlink()
    assert structure(sealed) == []
    assert seals(sealed, digest) == [
        f"checksums.sha256: is missing: the store is not sealed, the digest that was given is {digest}"
    ]
    assert store_info(sealed)["seal_digest"] is None


def test_a_pulled_store_carries_the_seal_that_was_asked_for(sealed: Path, tmp_path: Path) -> None:
    digest = (sealed / "checksums.sha256.digest").read_text().split()[0]
    push(sealed, Objects(f"file://{tmp_path}/there"))
    with pytest.raises(CorruptStore, match=f"has the digest {digest}, the one that was given is {'0' * 64}"):
        pull(Objects(f"file://{tmp_path}/there"), tmp_path / "other", digest="0" * 64)
    assert not (tmp_path / "other").exists()
    pull(Objects(f"file://{tmp_path}/there"), tmp_path / "same", digest=digest)
    with pytest.raises(OptionError, match="--digest 'x': allowed are 64 hex digits"):
        seals(sealed, "x")
