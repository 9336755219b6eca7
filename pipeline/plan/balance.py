"""Cutting a step over ranks so that they take the same time, where samples of equal length do not cost the same.

As `packing`, but the load of a micro-batch is the cost of its samples; its tokens only have to fit the budget. A pure
function: costs are whole numbers, given with the plan.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Final

from pipeline.plan.packing import RankBatches, check_budget

_ROUNDS: Final = 64
_ENOUGH: Final = 2e-3
"""Ranks closer together than this share of their mean cost stay as they are."""


def pack_by_cost(
    num_tokens: Sequence[int], costs: Sequence[int], num_ranks: int, token_budget: int
) -> tuple[RankBatches, ...]:
    """Pack the samples of a step into the fewest micro-batches per rank, with even costs.

    Args:
        num_tokens: fused length of each sample of the step, in tokens.
        costs: what each takes, in any unit, such as nanoseconds.
        num_ranks: number of workers W.
        token_budget: most tokens in a micro-batch.

    Returns:
        as `pack_step`.

    Raises:
        ValueError: a sample is longer than the budget.
    """
    check_budget(num_tokens, token_budget)
    depth = max(1, -(-sum(num_tokens) // (num_ranks * token_budget)))
    while (bins := _fill(num_tokens, costs, num_ranks * depth, token_budget)) is None:
        depth += 1
    # the fullest bins of each layer go to the ranks with the least so far, then ranks exchange samples
    bins.sort(key=lambda members: (-sum(costs[idx] for idx in members), members))
    ranks: list[list[list[int]]] = [[] for _ in range(num_ranks)]
    totals = [0] * num_ranks
    for first in range(0, len(bins), num_ranks):
        emptiest_first = sorted(range(num_ranks), key=lambda rank: (totals[rank], rank))
        for rank, members in zip(emptiest_first, bins[first : first + num_ranks], strict=True):
            ranks[rank].append(members)
            totals[rank] += sum(costs[idx] for idx in members)
    _level(ranks, totals, num_tokens, costs, token_budget)
    return tuple(tuple(tuple(sorted(members)) for members in batches) for batches in ranks)


def _fill(num_tokens: Sequence[int], costs: Sequence[int], num_bins: int, budget: int) -> list[list[int]] | None:
    """Put samples, dearest first, into the cheapest bin that has room; None when one fits nowhere."""
    heap = [(0, number) for number in range(num_bins)]
    members: list[list[int]] = [[] for _ in range(num_bins)]
    used = [0] * num_bins
    for idx in sorted(range(len(costs)), key=lambda idx: (-costs[idx], -num_tokens[idx], idx)):
        full: list[tuple[int, int]] = []
        while heap and used[heap[0][1]] + num_tokens[idx] > budget:
            full.append(heapq.heappop(heap))
        if not heap:
            return None
        load, number = heap[0]
        heapq.heapreplace(heap, (load + costs[idx], number))
        members[number].append(idx)
        used[number] += num_tokens[idx]
        for entry in full:
            heapq.heappush(heap, entry)
    return members


def _level(
    ranks: list[list[list[int]]], totals: list[int], num_tokens: Sequence[int], costs: Sequence[int], budget: int
) -> None:
    """Let the dearest rank give to the cheapest, in place, by moving a sample or exchanging two."""
    enough = _ENOUGH * sum(totals) / len(totals)
    for _ in range(_ROUNDS):
        dear = max(range(len(totals)), key=lambda rank: (totals[rank], -rank))
        cheap = min(range(len(totals)), key=lambda rank: (totals[rank], rank))
        gap = totals[dear] - totals[cheap]
        if gap <= enough:
            return
        step = _best_exchange(ranks[dear], ranks[cheap], num_tokens, costs, budget, gap)
        if step is None:
            return
        source, idx, target, other = step
        source.remove(idx)
        target.append(idx)
        moved = costs[idx]
        if other is not None:
            target.remove(other)
            source.append(other)
            moved -= costs[other]
        totals[dear] -= moved
        totals[cheap] += moved


def _best_exchange(
    dear: list[list[int]],
    cheap: list[list[int]],
    num_tokens: Sequence[int],
    costs: Sequence[int],
    budget: int,
    gap: int,
) -> tuple[list[int], int, list[int], int | None] | None:
    """Return what levels two ranks best: (micro-batch, sample, other micro-batch, sample in exchange)."""
    best, chosen = gap, None
    for source in dear:
        given_room = budget - sum(num_tokens[one] for one in source)
        for target in cheap:
            room = budget - sum(num_tokens[one] for one in target)
            for idx in source:
                for other in (None, *target):
                    back = (0, 0) if other is None else (costs[other], num_tokens[other])
                    left = abs(gap - 2 * (costs[idx] - back[0]))
                    longer = num_tokens[idx] - back[1]
                    if left < best and longer <= room and -longer <= given_room:
                        best, chosen = left, (source, idx, target, other)
    return chosen
