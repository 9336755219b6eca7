"""Finding the sample that a person names as SHARD:INDEX."""

from __future__ import annotations

from collections import Counter
from pathlib import PurePosixPath

import numpy as np
import pyarrow.compute as pc

from pipeline.index.index import ShardIndex


def find_sample(index: ShardIndex, name: str) -> int:
    """Return the row of `SHARD:INDEX`.

    SHARD is the shard's number in the list, its file name or its URL; INDEX the sample's number in the shard or its
    key. Numbers are written without leading zeros: `000000003` is a key.

    Raises:
        ValueError: no such shard or sample, or a file name that several shards share; lists what there is.
    """
    shard_name, separator, place = name.rpartition(":")
    if not separator:
        raise ValueError(f"sample {name!r}: expected SHARD:INDEX, such as train-000.tar:17 or 0:17")
    shard = _find_shard(index, shard_name)
    first, end = np.searchsorted(index.samples["shard"].to_numpy(), [shard, shard + 1]).tolist()
    if _is_number_below(place, end - first):
        return int(first) + int(place)
    offset = pc.index(index.samples["key"].slice(first, end - first), place).as_py()
    if offset < 0:
        url = index.shards[shard].url
        raise ValueError(f"sample {name!r}: {url} holds samples 0 to {end - first - 1}, none with the key {place!r}")
    return int(first) + int(offset)


def short_names(index: ShardIndex) -> dict[str, str]:
    """Return what `find_sample` takes for the shard of each URL: its file name, or its number where several share that.

    Sources of a mix often name their shards alike.
    """
    names = [PurePosixPath(shard.url).name for shard in index.shards]
    shared = {name for name, number in Counter(names).items() if number > 1}
    return {
        shard.url: str(number) if name in shared else name
        for number, (shard, name) in enumerate(zip(index.shards, names, strict=True))
    }


def _is_number_below(text: str, end: int) -> bool:
    return text.isdecimal() and text == str(int(text)) and int(text) < end


def _find_shard(index: ShardIndex, name: str) -> int:
    if _is_number_below(name, len(index.shards)):
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
