"""A seeded random order of N samples that needs no memory: a keyed permutation, evaluated only where asked.

Generalised Feistel network with cycle walking (Black and Rogaway, "Ciphers with Arbitrary Finite Domains",
CT-RSA 2002). The golden values in the tests pin the algorithm: changing it would reorder every running experiment.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_ROUNDS = 6
_GOLDEN_GAMMA = 0x9E3779B97F4A7C15
_MASK_64 = (1 << 64) - 1


def permute(positions: npt.NDArray[np.int64], num_items: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """Map positions of an epoch's order to item indices.

    Args:
        positions: int64 `[K]`, each in `[0, num_items)`.
        num_items: size N of the permuted domain.
        seed: run seed.
        epoch: epoch number; each one has an independent order.

    Returns:
        int64 `[K]`; over all N positions every item occurs exactly once.
    """
    if positions.size and not (int(positions.min()) >= 0 and int(positions.max()) < num_items):
        raise ValueError(f"positions must be in [0, {num_items}), found {positions.min()}..{positions.max()}")
    half_bits = max(1, (max(num_items - 1, 1).bit_length() + 1) // 2)
    keys = _round_keys(seed, epoch)
    values = positions.astype(np.uint64)
    pending = np.ones(values.shape, dtype=bool)
    while pending.any():  # the domain is padded to 4**half_bits <= 4 N, so about 4 walks at most on average
        values[pending] = _encrypt(values[pending], half_bits, keys)
        pending = values >= np.uint64(num_items)
    return values.astype(np.int64)


def _encrypt(values: npt.NDArray[np.uint64], half_bits: int, keys: list[int]) -> npt.NDArray[np.uint64]:
    mask, shift = np.uint64((1 << half_bits) - 1), np.uint64(half_bits)
    left, right = values >> shift, values & mask
    for key in keys:
        left, right = right, left ^ (_mix(right ^ np.uint64(key)) & mask)
    return (left << shift) | right


def _mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Scramble 64-bit words (finaliser of SplitMix64, Steele, Lea and Flood, OOPSLA 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _round_keys(seed: int, epoch: int) -> list[int]:
    state = np.array([seed & _MASK_64], dtype=np.uint64)
    state = _mix(state + np.uint64(_GOLDEN_GAMMA)) ^ _mix(np.array([epoch], dtype=np.uint64) + np.uint64(1))
    offsets = np.array([(_GOLDEN_GAMMA * (round_idx + 1)) & _MASK_64 for round_idx in range(_ROUNDS)], dtype=np.uint64)
    return [int(key) for key in _mix(state + offsets)]
