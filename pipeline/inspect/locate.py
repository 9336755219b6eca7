"""Finding the sample that a person names as SHARD:INDEX."""

from __future__ import annotations

from pathlib import PurePosixPath

import numpy as np
import pyarrow.compute as pc

from pipeline.shards.index import ShardIndex


def find_sample(index: ShardIndex, name: str) -> int:
    """Return the row of `SHARD:INDEX`.

    SHARD is the shard's number in the list, its file name or its URL; INDEX the sample's number in the shard or its
    key.

    Raises:
        ValueError: no such shard or sample, or a file name that several shards share; says what there is.
    """
    shard_name, separator, place = name.rpartition(":")
    if not separator:
        raise ValueError(f"sample {name!r}: expected SHARD:INDEX, such as train-000.tar:17 or 0:17")
    shard = _find_shard(index, shard_name)
    first, end = np.searchsorted(index.samples["shard"].to_numpy(), [shard, shard + 1]).tolist()
    if place.isdecimal() and int(place) < end - first:
        return int(first) + int(place)
    offset = pc.index(index.samples["key"].slice(first, end - first), place).as_py()
    if offset < 0:
        url = index.shards[shard].url
        raise ValueError(f"sample {name!r}: {url} holds samples 0 to {end - first - 1}, none with the key {place!r}")
    return int(first) + int(offset)


def _find_shard(index: ShardIndex, name: str) -> int:
    if name.isdecimal() and int(name) < len(index.shards):
        return int(name)
    urls = [shard.url for shard in index.shards]
    if name in urls:
        return urls.index(name)
    matches = [number for number, url in enumerate(urls) if PurePosixPath(url).name == name]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise ValueError(f"shard {name!r}: {len(matches)} shards have this file name; write its number or whole URL")
    listed = ", ".join(PurePosixPath(url).name for url in urls[:5]) + (", ..." if len(urls) > 5 else "")
    raise ValueError(f"shard {name!r}: not among the {len(urls)} shards of the index (0 to {len(urls) - 1}: {listed})")
