"""Cutting the samples of one optimizer step over ranks and micro-batches under a token budget: a pure function.

Longest-processing-time scheduling (Graham, "Bounds on Multiprocessing Timing Anomalies", SIAM J. Appl. Math. 1969):
longest sample first, always into the emptiest bin that is open.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

RankBatches = tuple[tuple[int, ...], ...]
"""Micro-batches of one rank; each is a tuple of indices into the step's samples and may be empty."""


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
    longest = max(num_tokens, default=0)
    if longest > token_budget:
        raise ValueError(
            f"sample {list(num_tokens).index(longest)} of the step has {longest} tokens, above the budget of "
            f"{token_budget} tokens per micro-batch; raise training.micro_batch_tokens or lower data.max_length"
        )
    depth = max(1, -(-sum(num_tokens) // (num_ranks * token_budget)))
    bins = _fill(num_tokens, num_ranks * depth, token_budget)
    while bins is None:
        depth += 1
        bins = _fill(num_tokens, num_ranks * depth, token_budget)
    ranks: list[list[tuple[int, ...]]] = [[] for _ in range(num_ranks)]
    for layer in range(depth):
        # Bins come sorted by load; alternating the direction keeps the totals of the ranks level as well.
        members = bins[layer * num_ranks : (layer + 1) * num_ranks]
        for rank, members_of_bin in enumerate(members if layer % 2 == 0 else reversed(members)):
            ranks[rank].append(tuple(sorted(members_of_bin)))
    return tuple(tuple(batches) for batches in ranks)


def _fill(num_tokens: Sequence[int], num_bins: int, capacity: int) -> list[list[int]] | None:
    """Put samples, longest first, into the emptiest bin; None when one does not fit anywhere."""
    heap = [(0, bin_idx) for bin_idx in range(num_bins)]
    members: list[list[int]] = [[] for _ in range(num_bins)]
    loads = [0] * num_bins
    for sample_idx in sorted(range(len(num_tokens)), key=lambda idx: (-num_tokens[idx], idx)):
        load, bin_idx = heap[0]
        load += num_tokens[sample_idx]
        if load > capacity:
            return None
        heapq.heapreplace(heap, (load, bin_idx))
        members[bin_idx].append(sample_idx)
        loads[bin_idx] = load
    order = sorted(range(num_bins), key=lambda idx: (-loads[idx], idx))
    return [members[idx] for idx in order]
