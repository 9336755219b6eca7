"""Which shards are no longer those that an index was built from, as far as size and modification time tell."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.index.index import ShardIndex
from pipeline.shards.storage import ShardStat, find_shards


def describe_changes(index: ShardIndex, shard_urls: Sequence[str]) -> list[str]:
    """Describe how the shards differ from their index; empty when the index is up to date.

    Looks at sizes and times only: bytes changed behind both are found by the CRC-32 of every member when it is read.

    Raises:
        OSError: storage failed.
    """
    known = {shard.url: ShardStat(shard.size_bytes, shard.version) for shard in index.shards}
    present = set(shard_urls)
    changes = [f"{url}: new" for url in shard_urls if url not in known]
    changes += [f"{url}: no longer among the shards" for url in known if url not in present]
    kept = [url for url in shard_urls if url in known]
    for url, now in zip(kept, find_shards(kept), strict=True):
        if change := _compare(known[url], now):
            changes.append(f"{url}: {change}")
    if not changes and list(known) != list(shard_urls):
        changes.append("the same shards in another order")
    return changes


def _compare(known: ShardStat, now: ShardStat | None) -> str:
    if now is None:
        return "missing"
    if now.size_bytes != known.size_bytes:
        return f"{now.size_bytes} bytes, {known.size_bytes} when it was indexed"
    return "written again since it was indexed" if now.version != known.version else ""
