"""Reading one sample by its row in the index: one range read, every member verified."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterator, Sequence
from typing import TypedDict

from pipeline.errors import DataError, Reason
from pipeline.index.index import ShardIndex
from pipeline.samples.schema import Sample, parse_sample
from pipeline.shards.storage import read_range, read_ranges


class Member(TypedDict):
    """Where a member is in its shard: a row's entry in the index column `members`."""

    ext: str
    offset: int
    """Bytes."""
    size: int
    """Bytes."""
    crc32: int


def read_sample(index: ShardIndex, sample_id: int, *, verify_crc: bool = True) -> Sample:
    """Read and parse a sample.

    Args:
        index: index that holds it.
        sample_id: row number.
        verify_crc: compare each member's CRC-32 with the index, which finds shards that changed under the same name.

    Raises:
        DataError: the row is rejected in the index, or its bytes are no longer those that were indexed.
        OSError: storage failed.
        IndexError: no such row.
    """
    shard = index.shard_of(sample_id).url
    key = index.samples["key"][sample_id].as_py()
    if reason := index.samples["reason"][sample_id].as_py():
        raise DataError(Reason(reason), index.samples["detail"][sample_id].as_py(), shard=shard, key=key)
    members = index.samples["members"][sample_id].as_py()
    content = read_members(shard, key, members, verify_crc=verify_crc)
    try:
        return parse_sample(key, content, index.checks.policy)
    except DataError as error:
        raise error.at(shard=shard, key=key) from None


def read_members(shard: str, key: str, members: Sequence[Member], *, verify_crc: bool = True) -> dict[str, bytes]:
    """Return member contents by extension with a single read: members of a sample are adjacent in the shard.

    Raises:
        DataError: a CRC-32 differs.
        OSError: storage failed.
    """
    start = min(member["offset"] for member in members)
    end = max(member["offset"] + member["size"] for member in members)
    block = memoryview(read_range(shard, start, end - start))
    content = {}
    for member in members:
        data = bytes(block[member["offset"] - start : member["offset"] - start + member["size"]])
        if verify_crc:
            _verify(member, data, shard, key)
        content[member["ext"]] = data
    return content


def read_annotations(
    shard: str, keys: Sequence[str], members: Sequence[Sequence[Member]]
) -> Iterator[dict[str, bytes] | DataError]:
    """Yield the text members of many samples of one shard in a single pass; images are passed over.

    A sample whose text changed since it was indexed yields the error instead.

    Raises:
        OSError: storage failed.
    """
    wanted = [
        (key, [member for member in row if member["ext"] in ("txt", "json")])
        for key, row in zip(keys, members, strict=True)
    ]
    blocks = read_ranges(shard, ((member["offset"], member["size"]) for _, texts in wanted for member in texts))
    for key, texts in wanted:
        contents = list(itertools.islice(blocks, len(texts)))
        try:
            for member, data in zip(texts, contents, strict=True):
                _verify(member, data, shard, key)
            yield {member["ext"]: data for member, data in zip(texts, contents, strict=True)}
        except DataError as error:
            yield error


def _verify(member: Member, data: bytes, shard: str, key: str) -> None:
    found = zlib.crc32(data)
    if found != member["crc32"]:
        raise DataError(
            Reason.CONTENT_HASH_MISMATCH,
            f"{member['ext']} has CRC-32 {found:08x}, the index says {member['crc32']:08x}",
            shard=shard,
            key=key,
        )
