"""Which entry goes into which shard: a pure function of the listing and the settings, so a rerun finds the same shards.

A shuffle permutes blocks (single entries where those can be read one by one, row groups of a table) and the entries
within each block, with the keyed permutation that also orders training.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.plan.order import permute

Ids = npt.NDArray[np.int64]


class ShardLimits(NamedTuple):
    """When a shard is full, whichever comes first."""

    max_samples: int
    max_bytes: int
    """Of members as listed, headers and padding included; one entry that is larger gets a shard of its own."""


def order_entries(blocks: Ids, shuffle_seed: int | None) -> Ids:
    """Return listing positions in the order of writing.

    Args:
        blocks: block number of each entry, ascending, int64 `[N]`.
        shuffle_seed: None keeps the order of the listing.
    """
    if shuffle_seed is None or blocks.size == 0:
        return np.arange(blocks.size, dtype=np.int64)
    _, starts = np.unique(blocks, return_index=True)
    ends = np.append(starts[1:], blocks.size)
    ranks = permute(np.arange(starts.size, dtype=np.int64), int(starts.size), shuffle_seed, 0)
    if starts.size == blocks.size:
        return ranks
    within = (
        starts[block] + permute(np.arange(ends[block] - starts[block]), int(ends[block] - starts[block]), seed, 1)
        for block, seed in ((int(rank), shuffle_seed + int(rank)) for rank in ranks)
    )
    return np.concatenate(list(within)).astype(np.int64)


def cut_shards(sizes: Ids, limits: ShardLimits) -> list[tuple[int, int]]:
    """Return (start, end) of each shard over entries in the order of writing.

    Args:
        sizes: bytes of each entry, int64 `[N]`.
        limits: most entries and bytes in a shard.

    Raises:
        ValueError: a limit below 1.
    """
    if limits.max_samples < 1 or limits.max_bytes < 1:
        raise ValueError(f"shards of {limits.max_samples} samples and {limits.max_bytes} bytes: expected at least 1")
    ends = np.cumsum(sizes)
    cuts: list[tuple[int, int]] = []
    start = 0
    while start < sizes.size:
        filled = int(ends[start] - sizes[start]) + limits.max_bytes
        end = int(np.searchsorted(ends, filled, side="right"))
        end = max(start + 1, min(end, start + limits.max_samples))
        cuts.append((start, end))
        start = end
    return cuts
