"""Damage to bytes: what storage, crawlers and attackers do to files, drawn from a seeded generator."""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence

_EXTREMES = (0, 1, 127, 128, 255)
_TOKENS = (b"\x00" * 512, b"\xff" * 12, b"\x80" + b"\xff" * 11, b"9" * 12, b"77777777777\x00", b"\x1f\x8b", b"ustar")


def damage(data: bytes, rng: random.Random, others: Sequence[bytes] = ()) -> bytes:
    """Return a copy with one to four defects.

    Args:
        data: an honest file.
        rng: decides everything.
        others: files whose pieces may be spliced in.
    """
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        data = rng.choice(_DEFECTS)(data, rng, others)
    return data


def _set_byte(data: bytes, rng: random.Random, _: Sequence[bytes]) -> bytes:
    if not data:
        return data
    place = rng.randrange(len(data))
    value = rng.choice((rng.randrange(256), rng.choice(_EXTREMES), data[place] ^ (1 << rng.randrange(8))))
    return data[:place] + bytes((value,)) + data[place + 1 :]


def _set_run(data: bytes, rng: random.Random, _: Sequence[bytes]) -> bytes:
    if not data:
        return data
    place, length = rng.randrange(len(data)), rng.choice((2, 4, 8, 12, 100, 512))
    end = min(len(data), place + length)
    fill = rng.choice((bytes(end - place), b"\xff" * (end - place), rng.randbytes(end - place)))
    return data[:place] + fill + data[end:]


def _set_number(data: bytes, rng: random.Random, _: Sequence[bytes]) -> bytes:
    """Overwrite with a number at a limit, in either byte order."""
    if len(data) < 8:
        return data
    place = rng.randrange(len(data) - 7)
    number = rng.choice((0, 1, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 2**60))
    width = rng.choice("HIQ")
    packed = struct.pack(rng.choice("<>") + width, number & (2 ** (8 * struct.calcsize(width)) - 1))
    return data[:place] + packed + data[place + len(packed) :]


def _cut(data: bytes, rng: random.Random, _: Sequence[bytes]) -> bytes:
    end = rng.randrange(len(data) + 1)
    return data[: rng.choice((end, end - end % 512))]


def _remove(data: bytes, rng: random.Random, _: Sequence[bytes]) -> bytes:
    start = rng.randrange(len(data) + 1)
    start = rng.choice((start, start - start % 512))
    return data[:start] + data[start + rng.choice((1, 3, 512, 1024)) :]


def _insert(data: bytes, rng: random.Random, _: Sequence[bytes]) -> bytes:
    place = rng.randrange(len(data) + 1)
    return data[:place] + rng.choice((rng.choice(_TOKENS), rng.randbytes(rng.randrange(1, 40)))) + data[place:]


def _repeat(data: bytes, rng: random.Random, _: Sequence[bytes]) -> bytes:
    start = rng.randrange(len(data) + 1)
    start = rng.choice((start, start - start % 512))
    length = rng.choice((16, 512, 1024, 1536))
    return data[: start + length] + data[start : start + length] + data[start + length :]


def _splice(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    if not others:
        return data
    other = rng.choice(others)
    start, end = rng.randrange(len(data) + 1), rng.randrange(len(other) + 1)
    if rng.random() < 0.5:
        start, end = start - start % 512, end - end % 512
    return data[:start] + other[end:]


_DEFECTS = (_set_byte, _set_byte, _set_run, _set_number, _cut, _remove, _insert, _repeat, _splice)
