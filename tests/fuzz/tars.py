"""Mutated shards: whatever the bytes, the index ends with good samples and counted reasons, and nothing is missing."""

from __future__ import annotations

import functools
import itertools
import json
import random
import tarfile
import tempfile
from pathlib import Path

from pipeline.errors import Reason
from pipeline.index.read import Member, read_members
from pipeline.index.scan import Checks, ShardScan, index_shard
from pipeline.samples.image import ImageLimits
from pipeline.samples.schema import parse_sample
from pipeline.shards.storage import stat_shard
from tests.fuzz.mutate import damage
from tests.pipeline.shards.archives import BLOCK, caption_files, instruction_files, tar_bytes

_CHECKS = Checks(limits=ImageLimits(max_pixels=1_000_000))
_LATER = {Reason.MEMBERS_NOT_CONTIGUOUS.value}
"""What a later, damaged sample may turn an intact one into: its key came back with other files."""


@functools.cache
def _archives() -> list[bytes]:
    mixed = [*caption_files("a/c0"), *instruction_files("i1", 2), *instruction_files("i2", 0), *caption_files("c3")]
    long = [("n" * 130 + ".txt", b"x"), *caption_files("l" * 120), *caption_files("c1", "\u00e9" * 400)]
    formats = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
    return [tar_bytes(mixed, one) for one in formats] + [tar_bytes(long, one) for one in formats[1:]]


@functools.cache
def _honest(number: int) -> list[tuple[str, str, int]]:
    """Return (key, reason, end of the first file) of every sample of an undamaged archive."""
    rows = _scan(_archives()[number]).samples.to_pylist()
    return [(r["key"], r["reason"], _end(r["members"][0])) for r in rows]


def _end(member: Member) -> int:
    """Return where the padding of a file ends."""
    end = member["offset"] + member["size"]
    return end + -end % BLOCK


def run_case(rng: random.Random) -> str:
    """Mutate one archive, index it, and return what became of it.

    Raises:
        AssertionError: a sample is lost, or accepted although it cannot be read.
    """
    archives = _archives()
    number = rng.randrange(len(archives))
    data = damage(archives[number], rng, archives)
    scan = _scan(data)
    rows = scan.samples.to_pylist()
    assert all(row["reason"] == "" or Reason(row["reason"]) for row in rows)
    assert rows or scan.defect is not None, "an archive without samples and without a defect"
    _check_intact_part(number, data, rows)
    good = [row for row in rows if not row["reason"]]
    if good:
        _check_readable(rng.choice(good), data)
    return "samples" if scan.defect is None else scan.defect.reason.value


def _check_intact_part(number: int, data: bytes, rows: list[dict[str, object]]) -> None:
    """Every sample before the first changed byte is in the index, with the verdict it has in the honest archive."""
    original = _archives()[number]
    pairs = zip(original, data, strict=False)
    same = next((idx for idx, (a, b) in enumerate(pairs) if a != b), min(len(original), len(data)))
    honest = _honest(number)
    # a sample is known to be complete when the first file of the next one has been read
    complete = [one for one, after in itertools.pairwise(honest) if after[2] <= same]
    found = [(row["key"], row["reason"]) for row in rows]
    for (key, reason, _), row in zip(complete, found, strict=False):
        assert row[0] == key, "a sample of the intact part has another key"
        assert row[1] == reason or row[1] in _LATER, f"a sample of the intact part became {row[1]}"
    assert len(found) >= len(complete), f"{len(complete)} intact samples, {len(found)} in the index"


def _check_readable(row: dict[str, object], data: bytes) -> None:
    members: list[Member] = row["members"]  # type: ignore[assignment]
    path = _write(data)
    parse_sample(str(row["key"]), read_members(str(path), str(row["key"]), members))
    json.dumps(row, default=bytes.hex)  # keys of any bytes can be written into reports; digests are bytes


def _scan(data: bytes) -> ShardScan:
    path = str(_write(data))
    return index_shard(path, stat_shard(path), _CHECKS)


def _write(data: bytes) -> Path:
    path = _folder() / "shard.tar"
    path.write_bytes(data)
    return path


@functools.cache
def _folder() -> Path:
    """One folder per process, in memory where there is such a place: a case writes its archive once or twice."""
    memory = Path("/dev/shm")
    return Path(tempfile.mkdtemp(prefix="fuzz-", dir=memory if memory.is_dir() else None))
