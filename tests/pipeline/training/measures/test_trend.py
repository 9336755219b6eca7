import json

import numpy as np
import pytest

from pipeline.training.measures.trend import LossTrend


def feed(trend: LossTrend, losses: list[float]) -> list[int]:
    """Return the positions of spikes."""
    spikes = []
    for idx, loss in enumerate(losses):
        bound = trend.bound(10.0)
        is_spike = bound is not None and loss > bound
        trend.add(loss, is_spike=is_spike)
        spikes += [idx] * is_spike
    return spikes


def test_trend_finds_spikes_only_and_a_restored_one_finds_the_same() -> None:
    rng = np.random.default_rng(7)
    losses = (3.0 * 0.995 ** np.arange(211) + 0.1 * rng.standard_normal(211)).tolist()
    losses[97], losses[139] = 9.0, 11.0
    whole, first = LossTrend(), LossTrend()
    assert feed(whole, losses) == [97, 139]
    feed(first, losses[:101])
    second = LossTrend(**json.loads(json.dumps(first.to_json())))
    assert feed(second, losses[101:]) == [139 - 101]
    assert second == whole
    assert whole.num_spikes == 2


def test_smoothed_loss_of_a_constant_is_the_constant_from_the_first_step() -> None:
    trend = LossTrend()
    assert trend.smoothed_loss is None
    assert feed(trend, [1.7] * 37) == []
    assert trend.smoothed_loss == pytest.approx(1.7)
