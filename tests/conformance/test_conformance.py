"""One test, one promise of docs/reference/store-format.md."""

import hashlib
import json
import math
import re
import struct
import zlib
from typing import Any

import google_crc32c
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zarr

from tests.conformance.subject import Subject, block_rows, token_chunk_rows
from tests.tools import stranger

KNOWN = re.compile(
    r"recipe\.json|README\.md|croissant\.json|checksums\.sha256(\.digest)?|options/[a-z-]+\.json|pictures/[^/]+\.png"
    r"|manifest/(slides|index)\.parquet|manifest/patches/[^/]+\.parquet|manifest/views/[^/]+/\d{5}-s\d{4}-\d{4}\.parquet"
    r"|(features|pixels)\.zarr/zarr\.json|features\.zarr/[^/]+/zarr\.json|pixels\.zarr/[^/]+/zarr\.json"
    r"|pixels\.zarr/[^/]+/c(/\d+){4}"
    r"|features\.zarr/[^/]+/(features|coords|stats|scales|standard|tokens|positions|attention)/(zarr\.json|c(/\d+){1,4})"
)
SLIDE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
SLIDES = {
    "slide_id": "string", "file_name": "string", "fingerprint": "string", "vendor": "string", "width_px0": "int32",
    "height_px0": "int32", "mpp": "double", "mpp_source": "string", "patch_px0": "int32", "patch_mpp": "double",
    "patient_id": "string", "split": "string", "status": "string", "reason": "string", "n_patches": "int32",
}  # fmt: skip
VIEWS = {
    "slide_id": "string", "row": "int32", "x_px0": "int32", "y_px0": "int32", "seed": "int16", "split": "string",
    "tissue": "float", "status": "string", "view_crc32": "uint32", "crop_x_px": "int16", "crop_y_px": "int16",
    "hflip": "bool", "vflip": "bool", "jitter": "bool", "brightness": "float", "contrast": "float",
    "saturation": "float", "hue": "float", "order": "int8", "blur": "bool", "sigma": "float", "stain": "bool",
    "stain_h": "float", "stain_e": "float", "stain_d": "float",
}  # fmt: skip
BYTES = {"name": "bytes", "configuration": {"endian": "little"}}


def test_it_consists_of_plain_files_of_known_names(subject: Subject) -> None:
    for path in sorted(subject.path.rglob("*")):
        name = path.relative_to(subject.path).as_posix()
        assert not path.is_symlink(), name
        assert path.is_dir() or path.is_file(), name
        if path.is_file() and not name.endswith(".partial") and not name.startswith("logs/"):
            assert KNOWN.fullmatch(name), name


def test_the_recipe_carries_the_sha256_of_its_canonical_form(subject: Subject) -> None:
    value = dict(subject.recipe)
    digest = value.pop("digest")
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    assert hashlib.sha256(canonical.encode()).hexdigest() == digest
    assert value["schema"] == 1
    optional = {"compact", "tokens", "attention", "declared"}
    assert set(value) - optional == {"schema", "patch", "teacher", "policy", "reader"}


def test_every_parquet_file_carries_a_checksum_of_itself(subject: Subject) -> None:
    for path in sorted(subject.path.glob("manifest/**/*.parquet")):
        assert stranger.parquet_is_whole(path), path.relative_to(subject.path)


def test_slides(subject: Subject) -> None:
    table = pq.ParquetFile(subject.path / "manifest/slides.parquet").read()
    for name, kind in SLIDES.items():
        assert str(table.schema.field(name).type) == kind, name
    ids = table["slide_id"].to_pylist()
    assert ids == sorted(set(ids)), "sorted, each once"
    for row in table.to_pylist():
        assert SLIDE_ID.fullmatch(row["slide_id"]), row["slide_id"]
        assert row["slide_id"] != "zarr.json"
        assert row["status"] in ("ok", "failed", "no_tissue"), row["slide_id"]
        assert row["split"] in ("train", "val", "test"), row["slide_id"]
        assert (row["n_patches"] > 0) == (row["status"] == "ok"), row["slide_id"]


def test_a_patient_is_in_one_split(subject: Subject) -> None:
    splits: dict[str, set[str]] = {}
    for row in subject.slides.values():
        splits.setdefault(row["patient_id"], set()).add(row["split"])
    assert [patient for patient, found in splits.items() if len(found) > 1] == []


def test_patches_and_coords_are_the_same(subject: Subject) -> None:
    for slide_id, row in subject.slides.items():
        patches = pq.ParquetFile(subject.path / f"manifest/patches/{slide_id}.parquet").read()
        assert [str(field.type) for field in patches.schema] == ["int32", "int32", "float"], slide_id
        assert patches.num_rows == row["n_patches"], slide_id
        if slide_id in subject.begun():
            coords = zarr.open_array(subject.path / "features.zarr", path=f"{slide_id}/coords", mode="r")
            assert coords.shape == (patches.num_rows, 2), slide_id
            expected = np.stack([patches["x_px0"].to_numpy(), patches["y_px0"].to_numpy()], axis=1)
            np.testing.assert_array_equal(coords[:], expected, err_msg=slide_id)


def test_commit_records_list_the_rows_that_their_names_say(subject: Subject) -> None:
    for slide_id, slide in subject.slides.items():
        seen: set[tuple[int, int]] = set()
        patches = pq.ParquetFile(subject.path / f"manifest/patches/{slide_id}.parquet").read()
        size = block_rows(slide["n_patches"])
        for record in subject.records(slide_id):
            where = record.path.relative_to(subject.path)
            table = record.read()
            for name, kind in VIEWS.items():
                assert str(table.schema.field(name).type) == kind, f"{where} {name}"
                assert name == "view_crc32" or table[name].null_count == 0, f"{where} {name}"
            rows, seeds = table["row"].to_numpy(), table["seed"].to_numpy()
            places = list(zip(seeds.tolist(), rows.tolist(), strict=True))
            assert places == sorted(set(places)), f"{where}: ordered by seed, then row, each once"
            assert set(seeds.tolist()) == set(record.seeds), where
            assert record.block * size <= rows.min() <= rows.max() < (record.block + 1) * size, where
            assert not seen & set(places), f"{where}: listed by two records"
            seen |= set(places)
            of_seed = [rows[seeds == seed] for seed in record.seeds]
            assert all(np.array_equal(of_seed[0], other) for other in of_seed), f"{where}: other rows by seed"
            assert set(table["slide_id"].to_pylist()) == {slide_id}, where
            assert set(table["split"].to_pylist()) == {slide["split"]}, where
            assert set(table["status"].to_pylist()) <= {"ok", "bad_read"}, where
            bad = pa.compute.equal(table["status"], "bad_read")
            assert table["view_crc32"].is_null().equals(bad), f"{where}: view_crc32 is null where bad_read"
            for name in ("x_px0", "y_px0", "tissue"):
                expected = patches[name].to_numpy()[rows]
                np.testing.assert_array_equal(table[name].to_numpy(), expected, err_msg=str(where))


def test_arrays_have_the_form_of_the_format(subject: Subject) -> None:
    for slide_id in subject.begun():
        n_rows = subject.slides[slide_id]["n_patches"]
        size = block_rows(n_rows)
        n_seeds = subject.array(f"features.zarr/{slide_id}/features")["shape"][0]
        blocks = -(-n_rows // size)
        kind, fill = ("int8", -128) if subject.compact else ("float16", "NaN")
        forms = {
            "features": ([n_seeds, n_rows, subject.dim], [1, size, subject.dim], kind, fill),
            "coords": ([n_rows, 2], [n_rows, 2], "int32", 0),
            "stats": ([n_seeds, blocks, 2, subject.dim], [1, 1, 2, subject.dim], "float64", "NaN"),
        }
        if subject.compact:
            forms["scales"] = ([n_seeds, n_rows], [1, size], "float32", "NaN")
            forms["standard"] = ([2, subject.dim], [2, subject.dim], "float32", "NaN")
        if subject.tokens is not None:
            t, length = subject.tokens["count"], subject.tokens["dim"]
            rows = token_chunk_rows(size, t, length)
            forms["tokens"] = ([n_seeds, n_rows, t, length], [1, rows, t, length], "float16", "NaN")
            forms["positions"] = ([n_seeds, n_rows, t], [1, size, t], "int32", -1)
        if subject.attention is not None:
            patches = subject.attention["grid"] ** 2
            forms["attention"] = ([n_seeds, n_rows, patches], [1, size, patches], "float16", "NaN")
        for name, (shape, chunks, dtype, fill_value) in forms.items():
            found = subject.array(f"features.zarr/{slide_id}/{name}")
            where = f"{slide_id}/{name}"
            assert found["shape"] == shape, where
            codecs, sides = found["codecs"], found["chunk_grid"]["configuration"]["chunk_shape"]
            packed = subject.shards(f"features.zarr/{where}")
            if packed is not None:
                assert len(codecs) == 1, where
                assert all(side % chunk == 0 for side, chunk in zip(sides, chunks, strict=True)), where
                assert packed["index_codecs"] == [BYTES, {"name": "crc32c"}], where
                assert packed["index_location"] == "start", where
                codecs, sides = packed["codecs"], packed["chunk_shape"]
            assert found["chunk_grid"]["name"] == "regular", where
            assert sides == chunks, where
            assert (found["data_type"], found["fill_value"]) == (dtype, fill_value), where
            assert codecs[0]["name"] == "bytes", where
            assert dtype == "int8" or codecs[0] == BYTES, where
            assert codecs[-1] == {"name": "crc32c"}, where
            assert {codec["name"] for codec in codecs[1:-1]} <= {"zstd", "blosc"}, where
            assert len(codecs) <= 3, where


def test_every_chunk_ends_in_its_crc32c(subject: Subject) -> None:
    for path in sorted(subject.path.glob("*.zarr/**/c/**/*")):
        if path.is_file() and path.name.isdigit():
            raw = path.read_bytes()
            where = path.relative_to(subject.path)
            for part in chunks_of(subject, where.as_posix(), raw):
                assert len(part) > 4, where
                assert struct.unpack("<I", part[-4:])[0] == google_crc32c.value(part[:-4]), where


def chunks_of(subject: Subject, file: str, raw: bytes) -> list[bytes]:
    """The chunks in a file: the file itself, or its index and what this lists, which is all that there is."""
    array = "/".join(file.split("/")[: 3 if file.startswith("features.zarr/") else 2])
    packed = subject.shards(array)
    if packed is None:
        return [raw]
    sides = subject.array(array)["chunk_grid"]["configuration"]["chunk_shape"]
    n = math.prod(side // chunk for side, chunk in zip(sides, packed["chunk_shape"], strict=True))
    entries = np.frombuffer(raw[: 16 * n], "<u8").reshape(n, 2).tolist()
    there = [(start, size) for start, size in entries if start != 2**64 - 1]
    ends = [16 * n + 4, *(start + size for start, size in there)]
    assert [start for start, _ in there] == ends[:-1], f"{file}: in order, without gaps"
    assert ends[-1] == len(raw), f"{file}: nothing behind the last chunk"
    return [raw[: 16 * n + 4], *(raw[start : start + size] for start, size in there)]


def test_every_committed_feature_is_there_and_finite(subject: Subject) -> None:
    for slide_id in subject.begun():
        group: Any = zarr.open_group(subject.path / "features.zarr", mode="r")
        size = block_rows(subject.slides[slide_id]["n_patches"])
        for (seed, block), (rows, ok) in subject.committed(slide_id).items():
            span = slice(block * size, (block + 1) * size)
            if subject.compact:
                scale = group[f"{slide_id}/scales"][seed, span]
                values = group[f"{slide_id}/features"][seed, span]
                there = np.isfinite(scale) & (values != -128).all(axis=1)
            else:
                there = np.isfinite(group[f"{slide_id}/features"][seed, span]).all(axis=1)
            wanted = np.zeros(len(there), bool)
            wanted[rows[ok] - span.start] = True
            lost = np.flatnonzero(there != wanted) + span.start
            assert len(lost) == 0, f"slide {slide_id} seed {seed} rows {lost[:10].tolist()}"


def test_every_committed_view_has_its_tokens(subject: Subject) -> None:
    for slide_id in subject.begun() if subject.tokens is not None else ():
        assert subject.tokens is not None
        group: Any = zarr.open_group(subject.path / "features.zarr", mode="r")
        size = block_rows(subject.slides[slide_id]["n_patches"])
        for (seed, block), (rows, ok) in subject.committed(slide_id).items():
            span = slice(block * size, (block + 1) * size)
            where = f"slide {slide_id} seed {seed} block {block}"
            there = np.isfinite(group[f"{slide_id}/tokens"][seed, span]).all(axis=(1, 2))
            wanted = np.zeros(len(there), bool)
            wanted[rows[ok] - span.start] = True
            assert (there == wanted).all(), where
            places = group[f"{slide_id}/positions"][seed, span][wanted]
            assert (np.diff(places, axis=1) > 0).all(), f"{where}: ascending"
            assert places.min(initial=0) >= 0, where
            assert places.max(initial=0) < subject.tokens["grid"] ** 2, where


def test_every_committed_view_has_its_attention(subject: Subject) -> None:
    for slide_id in subject.begun() if subject.attention is not None else ():
        group: Any = zarr.open_group(subject.path / "features.zarr", mode="r")
        size = block_rows(subject.slides[slide_id]["n_patches"])
        for (seed, block), (rows, ok) in subject.committed(slide_id).items():
            span = slice(block * size, (block + 1) * size)
            where = f"slide {slide_id} seed {seed} block {block}"
            values = group[f"{slide_id}/attention"][seed, span].astype(np.float32)
            wanted = np.zeros(len(values), bool)
            wanted[rows[ok] - span.start] = True
            assert (np.isfinite(values).all(axis=1) == wanted).all(), where
            assert values[wanted].min(initial=0) >= 0, where
            assert values[wanted].sum(axis=1).max(initial=0) <= 1.01, where


def test_statistics_are_mean_and_variance_of_the_ok_rows(subject: Subject) -> None:
    if subject.compact:
        return  # those of the original, which is not here
    for slide_id in subject.begun():
        group: Any = zarr.open_group(subject.path / "features.zarr", mode="r")
        size = block_rows(subject.slides[slide_id]["n_patches"])
        for (seed, block), (rows, ok) in subject.committed(slide_id).items():
            values = group[f"{slide_id}/features"][seed, block * size : (block + 1) * size].astype(np.float64)
            chosen = values[rows[ok] - block * size]
            if len(chosen):
                found = group[f"{slide_id}/stats"][seed, block]
                where = f"slide {slide_id} seed {seed} block {block}"
                np.testing.assert_allclose(found[0], chosen.mean(axis=0), rtol=1e-6, atol=1e-9, err_msg=where)
                np.testing.assert_allclose(found[1], chosen.var(axis=0), rtol=1e-6, atol=1e-9, err_msg=where)


def test_pixels_make_the_views_that_the_checksums_say(subject: Subject) -> None:
    """Four patches of each block; policies with stain jitter are beyond this reader."""
    side = subject.recipe["patch"]["size_px"]
    for slide_id in subject.begun():
        if not (subject.path / "pixels.zarr" / slide_id).exists():
            continue
        array = zarr.open_array(subject.path / "pixels.zarr", path=slide_id, mode="r")
        n_rows = subject.slides[slide_id]["n_patches"]
        assert (array.shape, str(array.dtype)) == ((n_rows, side, side, 3), "uint8"), slide_id
        assert array.chunks[0] == min(32, n_rows), slide_id
        for record in subject.records(slide_id):
            views = [v for v in record.read().to_pylist() if v["status"] == "ok" and not v["stain"]]
            for row in sorted({v["row"] for v in views})[:: max(1, len(views) // (4 * len(record.seeds)))]:
                patch = array[row]
                for view in (v for v in views if v["row"] == row):
                    made = np.ascontiguousarray(stranger.render(patch, view, subject.recipe["policy"]))
                    where = f"slide {slide_id} seed {view['seed']} row {row}"
                    assert zlib.crc32(made.tobytes()) == view["view_crc32"], where


def test_the_seal_covers_every_file(subject: Subject) -> None:
    sealed = subject.path / "checksums.sha256"
    if not sealed.exists():
        assert not (subject.path / "checksums.sha256.digest").exists()
        return
    digest = (subject.path / "checksums.sha256.digest").read_text().split()[0]
    assert digest == hashlib.sha256(sealed.read_bytes()).hexdigest()
    pairs = (line.split("  ", 1) for line in sealed.read_text().splitlines())
    listed = {name: sha256 for sha256, name in pairs}
    names = {p.relative_to(subject.path).as_posix() for p in subject.path.rglob("*") if p.is_file()}
    names = {name for name in names if not name.startswith("logs/")}
    assert set(listed) == names - {"checksums.sha256", "checksums.sha256.digest"}
    for name, sha256 in listed.items():
        assert hashlib.sha256((subject.path / name).read_bytes()).hexdigest() == sha256, name
