"""Cutting the samples of one optimizer step over ranks and micro-batches under a token budget: a pure function.

Longest-processing-time scheduling (Graham, "Bounds on Multiprocessing Timing Anomalies", SIAM J. Appl. Math. 1969):
longest sample first, always into the emptiest bin; then full and empty bins exchange samples until they are level.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Final

RankBatches = tuple[tuple[int, ...], ...]
"""Micro-batches of one rank; each is a tuple of indices into the step's samples and may be empty."""

_LEVELLING_ROUNDS: Final = 8
_LEVEL_ENOUGH: Final = 1e-3
"""Bins closer together than this share of their mean load stay as they are; both limits bound the planner's time."""


def pack_step(num_tokens: Sequence[int], num_ranks: int, token_budget: int) -> tuple[RankBatches, ...]:
    """Pack the samples of a step into the fewest micro-batches per rank, with even loads.

    All ranks get the same number of micro-batches (collectives must match), the k-th micro-batches of all ranks have
    about the same load (no rank waits), and within a micro-batch samples keep the order of the step.

    Args:
        num_tokens: fused length of each sample of the step, in tokens.
        num_ranks: number of workers W.
        token_budget: most tokens in a micro-batch.

    Returns:
        For each rank its micro-batches; every index occurs exactly once, surplus micro-batches are empty.

    Raises:
        ValueError: a sample is longer than the budget.
    """
    check_budget(num_tokens, token_budget)
    depth = max(1, -(-sum(num_tokens) // (num_ranks * token_budget)))
    bins = _fill(num_tokens, num_ranks * depth, token_budget)
    while bins is None:
        depth += 1
        bins = _fill(num_tokens, num_ranks * depth, token_budget)
    bins = _level(bins, num_tokens)
    return _deal(bins, num_ranks, num_tokens)


def check_budget(num_tokens: Sequence[int], token_budget: int) -> None:
    """Check that every sample fits a micro-batch.

    Raises:
        ValueError: one is longer than the budget.
    """
    longest = max(num_tokens, default=0)
    if longest > token_budget:
        raise ValueError(
            f"sample {list(num_tokens).index(longest)} of the step has {longest} tokens, above the budget of "
            f"{token_budget} tokens per micro-batch; raise training.micro_batch_tokens or lower data.max_length"
        )


def _fill(num_tokens: Sequence[int], num_bins: int, capacity: int) -> list[list[int]] | None:
    """Put samples, longest first, into the emptiest bin; None when one does not fit anywhere."""
    heap = [(0, bin_idx) for bin_idx in range(num_bins)]
    members: list[list[int]] = [[] for _ in range(num_bins)]
    for sample_idx in sorted(range(len(num_tokens)), key=lambda idx: (-num_tokens[idx], idx)):
        load, bin_idx = heap[0]
        load += num_tokens[sample_idx]
        if load > capacity:
            return None
        heapq.heapreplace(heap, (load, bin_idx))
        members[bin_idx].append(sample_idx)
    return members


def _level(bins: list[list[int]], num_tokens: Sequence[int]) -> list[list[int]]:
    """Bring the loads of bins closer together by exchanges; returns the bins by load, fullest first."""
    loads = [sum(num_tokens[idx] for idx in members) for members in bins]
    enough = max(1.0, _LEVEL_ENOUGH * sum(loads) / len(loads))
    for round_number in range(_LEVELLING_ROUNDS + 1):
        order = sorted(range(len(bins)), key=lambda idx: (-loads[idx], idx))
        bins, loads = [bins[idx] for idx in order], [loads[idx] for idx in order]
        if round_number == _LEVELLING_ROUNDS or loads[0] - loads[-1] <= enough:
            break
        moved = 0
        for full, empty in zip(range(len(bins) // 2), reversed(range(len(bins))), strict=False):
            gap = loads[full] - loads[empty]
            difference = _exchange(bins[full], bins[empty], num_tokens, gap) if gap > enough else 0
            loads[full] -= difference
            loads[empty] += difference
            moved += difference
        if not moved:
            break
    return bins


def _exchange(full: list[int], empty: list[int], num_tokens: Sequence[int], gap: int) -> int:
    """Move a sample from one bin to another, or swap two, whichever levels them best; returns the tokens moved."""
    best, chosen = gap, None
    room = [(-1, 0), *enumerate(num_tokens[idx] for idx in empty)]  # place -1: nothing in exchange
    for place, given in enumerate(full):
        twice = 2 * num_tokens[given]
        for other_place, other in room:
            remaining = abs(gap - twice + 2 * other)
            if remaining < best:
                best, chosen = remaining, (place, other_place)
    if chosen is None:
        return 0
    place, other_place = chosen
    given, returned = full.pop(place), empty.pop(other_place) if other_place >= 0 else None
    empty.append(given)
    if returned is None:
        return num_tokens[given]
    full.append(returned)
    return num_tokens[given] - num_tokens[returned]


def _deal(bins: list[list[int]], num_ranks: int, num_tokens: Sequence[int]) -> tuple[RankBatches, ...]:
    """Give each rank one bin of every layer of about equal bins, the fullest to the rank with the least so far."""
    ranks: list[list[tuple[int, ...]]] = [[] for _ in range(num_ranks)]
    totals = [0] * num_ranks
    for first in range(0, len(bins), num_ranks):
        emptiest_first = sorted(range(num_ranks), key=lambda rank: (totals[rank], rank))
        for rank, members in zip(emptiest_first, bins[first : first + num_ranks], strict=True):
            ranks[rank].append(tuple(sorted(members)))
            totals[rank] += sum(num_tokens[idx] for idx in members)
    return tuple(tuple(batches) for batches in ranks)
