"""How unevenly 8 ranks are loaded in time, packed by tokens and by cost: a simulation of a 7B model on a mixed set.

    python -m benchmarks.data.imbalance

Costs are FLOPs divided by the rate of an H200 (0.5 of 989 TFLOP/s); no device is used.
"""

from __future__ import annotations

import json

import numpy as np

from pipeline.plan.balance import pack_by_cost
from pipeline.plan.packing import RankBatches, pack_step

_RATE = 0.5 * 989e12
_DECODER, _TOWER = 6.7e9, 0.3e9
"""Parameters of a 7B language model and of ViT-L/14."""
_LAYERS, _WIDTH, _PATCHES = 32, 4096, 577
TOKEN_NS = 6 * _DECODER / _RATE * 1e9
PAIR_NS = 6 * _LAYERS * _WIDTH / _RATE * 1e9
TILE_NS = 2 * _TOWER * _PATCHES / _RATE * 1e9
RANKS, BUDGET, STEPS = 8, 16384, 100
BATCHES = (64, 128, 256)
TOWERS = {"frozen": 1, "trained": 3}
"""Forward alone, and with backward."""


def draw(rng: np.random.Generator, batch: int, tower: int) -> tuple[list[int], list[int]]:
    """Return tokens and nanoseconds of a step: half anyres images, a fifth videos, the rest texts."""
    kind = rng.choice(3, batch, p=[0.5, 0.2, 0.3])
    tiles = np.select([kind == 0, kind == 1], [rng.integers(2, 6, batch), rng.integers(8, 33, batch)], 0)
    text = np.minimum(4096, rng.lognormal(5.5, 0.9, batch).astype(np.int64) + 20)
    tokens = text + np.select([kind == 0, kind == 1], [576 * tiles, 144 * tiles], 0)
    costs = np.rint(TOKEN_NS * tokens + PAIR_NS * tokens * tokens + tower * TILE_NS * tiles).astype(np.int64)
    return tokens.tolist(), costs.tolist()


def imbalance(ranks: tuple[RankBatches, ...], costs: list[int]) -> float:
    """Return the time of the slowest rank over the mean, minus 1."""
    totals = [sum(costs[idx] for batch in batches for idx in batch) for batches in ranks]
    return max(totals) / (sum(totals) / len(totals)) - 1


def main() -> None:
    """Print the mean and the largest imbalance of both rules."""
    print(json.dumps({"token_ns": TOKEN_NS, "token_pair_ns": PAIR_NS, "tile_ns": TILE_NS}))
    for tower, factor in TOWERS.items():
        for batch in BATCHES:
            rng = np.random.default_rng(2611)
            found: dict[str, list[float]] = {"tokens": [], "cost": []}
            for _ in range(STEPS):
                tokens, costs = draw(rng, batch, factor)
                found["tokens"].append(imbalance(pack_step(tokens, RANKS, BUDGET), costs))
                found["cost"].append(imbalance(pack_by_cost(tokens, costs, RANKS, BUDGET), costs))
            rows = {rule: f"mean {np.mean(one):.3%}, largest {max(one):.3%}" for rule, one in found.items()}
            print(json.dumps({"tower": tower, "batch": batch, **rows}))


if __name__ == "__main__":
    main()
