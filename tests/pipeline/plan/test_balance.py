"""Ranks get even costs: every sample once, within the token budget, the same at every call, better than even tokens."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from pipeline.plan.balance import pack_by_cost
from pipeline.plan.packing import RankBatches, pack_step
from pipeline.plan.plan import build_plan


def mix(seed: int, num_samples: int) -> tuple[list[int], list[int]]:
    """Return lengths and costs of images in many tiles, videos (many tiles, few tokens) and texts."""
    rng = np.random.default_rng(seed)
    kind = rng.choice(3, num_samples, p=[0.5, 0.2, 0.3])
    text = rng.integers(40, 900, num_samples)
    tiles = np.select([kind == 0, kind == 1], [rng.integers(1, 6, num_samples), rng.integers(8, 33, num_samples)], 0)
    tokens = text + np.select([kind == 0, kind == 1], [576 * tiles, 144 * tiles], 0)
    cost = 20_000 * tokens + 4 * tokens * tokens + 6_000_000 * tiles
    return tokens.tolist(), cost.tolist()


def imbalance(ranks: tuple[RankBatches, ...], costs: list[int]) -> float:
    totals = [sum(costs[idx] for batch in batches for idx in batch) for batches in ranks]
    return max(totals) / (sum(totals) / len(totals)) - 1


@pytest.mark.parametrize("num_ranks", [1, 3, 8])
@pytest.mark.parametrize("seed", range(5))
def test_every_sample_once_within_the_budget_on_aligned_ranks(num_ranks: int, seed: int) -> None:
    tokens, costs = mix(seed, 61)
    ranks = pack_by_cost(tokens, costs, num_ranks, 8192)
    assert sorted(itertools.chain(*(batch for batches in ranks for batch in batches))) == list(range(61))
    assert len({len(batches) for batches in ranks}) == 1
    assert all(sum(tokens[idx] for idx in batch) <= 8192 for batches in ranks for batch in batches)
    assert all(list(batch) == sorted(batch) for batches in ranks for batch in batches)
    assert pack_by_cost(tokens, costs, num_ranks, 8192) == ranks


def test_time_is_level_where_tokens_are_not_enough() -> None:
    by_tokens, by_cost = [], []
    for seed in range(20):
        tokens, costs = mix(seed, 256)
        by_tokens.append(imbalance(pack_step(tokens, 8, 16384), costs))
        by_cost.append(imbalance(pack_by_cost(tokens, costs, 8, 16384), costs))
    assert max(by_cost) < 0.02
    assert np.mean(by_tokens) > 3 * np.mean(by_cost)


def test_sample_beyond_the_budget_is_refused() -> None:
    with pytest.raises(ValueError, match="sample 1 of the step has 9 tokens, above the budget of 8"):
        pack_by_cost([3, 9], [1, 1], 2, 8)


def test_costs_change_the_packing_and_nothing_that_a_resume_checks() -> None:
    tokens, costs = mix(3, 40)
    plan = build_plan(
        np.array(tokens, np.int32), data_fingerprint="d", seed=1, global_batch_size=20, num_epochs=1, max_steps=None,
        micro_batch_tokens=32768,
    )  # fmt: skip
    balanced = type(plan)(**{**plan.__dict__, "costs": np.array(costs, np.int64)})
    assert balanced.fingerprint == plan.fingerprint
    assert balanced.samples(1).tolist() == plan.samples(1).tolist()
    assert balanced.split(1, 4) != plan.split(1, 4)
    ids = [one for rank in balanced.split(1, 4) for batch in rank.micro_batches for one in batch]
    assert sorted(ids) == sorted(plan.samples(1).tolist())
