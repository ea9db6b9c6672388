"""Inputs that are nearly right: what a reader meets when somebody has tried, or a disk has failed.

Every function takes an input and a random generator, and gives another input; the same generator gives the same one.
"""

import hashlib
import json
import struct
import zlib
from collections.abc import Callable
from random import Random
from typing import Any

import google_crc32c

from stores.format import manifest

Mutate = Callable[[bytes, Random], bytes]
_DEEP = 100
_ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 3.5, -0.0, 1e308, float("nan"), float("inf"), -float("inf")),
    *(1 << 15, 1 << 31, 1 << 63, 1 << 64, 10**30, -(1 << 63), 10**400),
    *(
        "",
        "a",
        "NaN",
        "1e400",
        "\n",
        "a\n---\nb",
        "\x1b[31m",
        "[/b]",
        "../x",
        "/etc/passwd",
        "\u202e",
        "x" * 1000,
    ),
    *([], {}, [[]], [None], {"": None}, {"name": "bytes"}, [0] * 100, ["a"], [1e400], {"a": {"b": [1]}}),
)
_TOKENS = (
    *(
        b"\x00",
        b"\xff",
        b"\xef\xbb\xbf",
        b"\n",
        b"\r",
        b",",
        b'"',
        b"'",
        b"=",
        b":",
        b"- ",
        b"? ",
        b"{",
        b"[",
        b"|",
        b"#",
    ),
    *(
        b"*a",
        b"&a [*a]",
        b"<<: *a",
        b"!!int ''",
        b"!!python/object/apply:os.getcwd []",
        b"2020-13-45",
        b".inf",
        b"1e400",
    ),
    *(
        b"null",
        b"NaN",
        b"-1",
        b"1:1:1:1:1:1:1:1:1",
        b"9" * 5000,
        b"x" * 300_000,
        b"[" * 2000,
        b"\xed\xa0\x80",
        b"slide_id",
    ),
)


def some_bytes(raw: bytes, random: Random) -> bytes:
    """Bits flipped, bytes set, cut out, doubled or put in, or the end cut off: one to eight of these."""
    data = bytearray(raw)
    for _ in range(random.choice((1, 1, 1, 2, 3, 8))):
        at = random.randrange(len(data) + 1)
        length = random.choice((1, 1, 2, 4, 8, 64))
        match random.randrange(7):
            case 0 if at < len(data):
                data[at] ^= 1 << random.randrange(8)
            case 1 if at < len(data):
                data[at] = random.choice((0, 1, 0x7F, 0x80, 0xFF, random.randrange(256)))
            case 2:
                data[at : at + length] = random.choice((0, 1, 1 << 31, (1 << 32) - 1)).to_bytes(4, "little")
            case 3:
                del data[at : at + length]
            case 4:
                data[at:at] = data[at : at + length]
            case 5:
                data[at:at] = random.randbytes(length)
            case _ if random.random() < 0.3:
                del data[at:]
    return bytes(data)


def some_text(raw: bytes, random: Random) -> bytes:
    """As `some_bytes`, and words that mean something to a parser of YAML or CSV."""
    for _ in range(random.choice((1, 1, 2, 4))):
        at = random.randrange(len(raw) + 1)
        raw = raw[:at] + random.choice(_TOKENS) + raw[at:]
    return some_bytes(raw, random) if random.random() < 0.3 else raw


def some_json(raw: bytes, random: Random) -> bytes:
    """JSON with one or a few values, keys or items changed, taken out or put in; sometimes only bytes are changed."""
    if random.random() < 0.2:
        return some_bytes(raw, random)
    value = json.loads(raw)
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        value = _change(value, random)
    text = json.dumps(value)
    if random.random() < 0.02:
        text = text.replace("null", "[" * _DEEP * 20 + "]" * _DEEP * 20, 1)
    return text.encode()


def _change(value: Any, random: Random) -> Any:
    """The value with a change somewhere in it."""
    if not isinstance(value, dict | list) or not value or random.random() < 0.1:
        return _odd(random)
    if isinstance(value, list):
        at = random.randrange(len(value))
        match random.randrange(5):
            case 0:
                return value[:at] + value[at + 1 :]
            case 1:
                return [*value, value[at]]
            case _:
                return [*value[:at], _change(value[at], random), *value[at + 1 :]]
    key = random.choice(list(value))
    match random.randrange(8):
        case 0:
            return {name: item for name, item in value.items() if name != key}
        case 1:
            return value | {random.choice(("x", "", "name", "shape", key + "_")): _odd(random)}
        case _:
            return value | {key: _change(value[key], random)}


def _odd(random: Random) -> Any:
    if random.random() < 0.02:
        value: Any = []
        for _ in range(_DEEP):
            value = [value] if random.random() < 0.5 else {"a": value}
        return value
    return random.choice(_ODD)


def some_recipe(raw: bytes, random: Random) -> bytes:
    """A recipe whose digest fits most of the time, so that what is behind that check is reached."""
    raw = some_json(raw, random)
    try:
        value = json.loads(raw)
        if isinstance(value, dict) and "digest" in value and random.random() < 0.8:
            del value["digest"]
            canonical = json.dumps(value, sort_keys=True, separators=(",", ":"))
            raw = json.dumps(value | {"digest": hashlib.sha256(canonical.encode()).hexdigest()}).encode()
    except (ValueError, RecursionError):
        pass
    return raw


def some_table(raw: bytes, random: Random) -> bytes:
    """A Parquet file with changes, more often in its footer and page headers, whose own checksum fits mostly."""
    data = bytearray(raw)
    footer = len(raw) - 8 - int.from_bytes(raw[-8:-4], "little")
    for _ in range(random.choice((1, 1, 2, 4))):
        part = random.random()
        at = random.randrange(footer, len(data) - 8) if part < 0.6 else random.randrange(4, max(footer, 5))
        match random.randrange(4):
            case 0:
                data[at] ^= 1 << random.randrange(8)
            case 1:
                data[at] = random.choice((0, 1, 0x15, 0x7F, 0x80, 0xFF, random.randrange(256)))
            case 2:  # a number of Thrift with many bytes
                data[at : at + 5] = random.choice(
                    (b"\xff\xff\xff\xff\x0f", b"\xfe\xff\xff\xff\x0f", b"\x80\x80\x80\x80\x08")
                )
            case _:
                data[at : at + 2] = random.randbytes(2)
    if random.random() < 0.1:
        data = bytearray(some_bytes(bytes(data), random))
    return mend_table(bytes(data)) if random.random() < 0.9 else bytes(data)


def mend_table(raw: bytes) -> bytes:
    """A Parquet file with the checksum of what it has become; as it is where it carries none."""
    found = raw.rfind(manifest.CHECKSUM_KEY)
    start = found + len(manifest.CHECKSUM_KEY) + 2
    if found < 0:
        return raw
    blank = raw[:start] + b"0" * 8 + raw[start + 8 :]
    return raw[:start] + f"{zlib.crc32(blank):08x}".encode() + raw[start + 8 :]


def some_chunk(raw: bytes, random: Random) -> bytes:
    """A chunk with changes in its first bytes, where codecs have their headers, or anywhere; its crc32c fits mostly."""
    body = bytearray(raw[:-4])
    match random.randrange(4):
        case 0 if len(body) >= 32:
            at = random.randrange(32)
            body[at] = random.choice((0, 1, 2, 0x7F, 0x80, 0xFF, body[at] ^ 1 << random.randrange(8)))
        case 1 if len(body) >= 32:
            at = random.randrange(8) * 4
            near = int.from_bytes(body[at : at + 4], "little") + random.choice((-4, -1, 1, 4, 1000))
            number = random.choice((0, 1, 16, len(body), len(body) + 1, 1 << 31, (1 << 32) - 1, near))
            body[at : at + 4] = struct.pack("<I", number % (1 << 32))
        case 2:
            del body[random.randrange(len(body) + 1) :]
        case _:
            body = bytearray(some_bytes(bytes(body), random))
    if random.random() < 0.05:
        body += random.randbytes(random.choice((1, 16, 1000)))
    return mend_chunk(bytes(body)) if random.random() < 0.95 else bytes(body) + raw[-4:]


def mend_chunk(body: bytes) -> bytes:
    """A chunk with the crc32c of its body."""
    return body + struct.pack("<I", google_crc32c.value(body))
