"""Pairs of 64-bit hashes that differ in few bits, among a hundred million of them, without comparing all with all.

Split into blocks, two hashes that differ in d bits agree in all but d of the blocks. So they are neighbours when sorted
by some choice of the others (Manku, Jain and Sarma, "Detecting near-duplicates for web crawling", WWW 2007).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]
Places = npt.NDArray[np.int64]

_BITS = 64
_FEW = 1_000_000
_MAX_NEIGHBOURS = 64
"""Hashes with the same blocks that one is compared with: more of them are one picture or a defect of the hash."""


class Closeness(NamedTuple):
    """Which hashes count as near, and how they are found."""

    max_bits: int
    num_blocks: int


FEW, MANY = Closeness(6, 8), Closeness(3, 5)
"""Up to a million hashes (28 sorts), and beyond (10 sorts), where chance alone brings more of them close."""


def closeness_for(num_hashes: int) -> Closeness:
    """Return how near hashes are looked for among so many."""
    return FEW if num_hashes <= _FEW else MANY


def near_pairs(hashes: Hashes, closeness: Closeness) -> tuple[Places, Places]:
    """Return the pairs of places whose hashes differ in at most `max_bits` bits, the smaller place first, each once.

    Args:
        hashes: uint64 `[N]`.
        closeness: how near.

    Returns:
        int64 `[K]` twice, in order.
    """
    found = [_neighbours(hashes, mask, closeness.max_bits) for mask in _masks(closeness)]
    lefts, rights = (np.concatenate(column) if column else np.zeros(0, np.int64) for column in zip(*found, strict=True))
    pairs = np.unique(np.stack([np.minimum(lefts, rights), np.maximum(lefts, rights)], axis=1), axis=0)
    return pairs[:, 0], pairs[:, 1]


def _masks(closeness: Closeness) -> Iterator[np.uint64]:
    """Yield the bits to sort by: every choice of the blocks that near hashes may have in common."""
    bounds = np.linspace(0, _BITS, closeness.num_blocks + 1).round().astype(int).tolist()
    blocks = [((1 << end) - 1) ^ ((1 << start) - 1) for start, end in itertools.pairwise(bounds)]
    for chosen in itertools.combinations(blocks, closeness.num_blocks - closeness.max_bits):
        yield np.uint64(sum(chosen))


def _neighbours(hashes: Hashes, mask: np.uint64, max_bits: int) -> tuple[Places, Places]:
    """Return the near pairs among hashes that agree in the bits of a mask."""
    order = np.argsort(hashes & mask, kind="stable")
    ordered = hashes[order]
    keys = ordered & mask
    lefts: list[Places] = [np.zeros(0, np.int64)]
    rights: list[Places] = [np.zeros(0, np.int64)]
    places = np.arange(max(0, len(keys) - 1))
    for step in range(1, min(_MAX_NEIGHBOURS, len(keys) - 1) + 1):
        places = places[places < len(keys) - step]
        places = places[keys[places] == keys[places + step]]  # sorted: without an equal here, there is none further on
        if not len(places):
            break
        near = np.bitwise_count(ordered[places] ^ ordered[places + step]) <= max_bits
        lefts.append(order[places[near]])
        rights.append(order[places[near] + step])
    return np.concatenate(lefts), np.concatenate(rights)
