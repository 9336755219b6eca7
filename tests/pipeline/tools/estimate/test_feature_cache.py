"""The gain of a feature cache: figures worked by hand, and each of the three verdicts."""

import pytest

from pipeline.tools.estimate.feature_cache import CacheEstimate, describe_cache, estimate_cache
from pipeline.tools.estimate.work import PlannedWork
from pipeline.training.measures.metrics import StepCounts

COUNTS = StepCounts(samples=20.0, tiles=60.0)


def estimate(*, epochs: float = 12.0, tile_bytes: int = 1000, step_time_s: float | None = 2.0) -> CacheEstimate:
    work = PlannedWork(COUNTS, flops_per_step=1000.0, vision_share=0.5, tower_flops=400.0)
    return estimate_cache(
        work,
        is_cached=False,
        tile_bytes=tile_bytes,
        num_samples=700,
        epochs=epochs,
        num_ranks=3,
        step_time_s=step_time_s,
    )


def test_estimate_of_a_long_run_is_worth_it() -> None:
    found = estimate()
    assert found.disk_bytes == 3 * 700 * 1000  # three tiles per sample
    assert found.saved == pytest.approx(0.4)
    assert found.net_saved == pytest.approx(0.3)  # one process fills for 3 x 0.4 of one of twelve epochs
    assert found.read_bytes_per_step == 20_000
    assert found.compute_time_s == pytest.approx(1.2)
    assert found.is_worth_it
    said = describe_cache(found, 600.0)
    assert said.startswith("a feature cache would save about 4 of 10 minutes per epoch and take 0.0021 GB: worth it")


def test_estimate_of_a_single_epoch_is_not_worth_it() -> None:
    found = estimate(epochs=1.0, step_time_s=None)
    assert found.net_saved == 0
    said = describe_cache(found, None)
    assert "40% of the FLOPs of an epoch" in said
    assert "not worth it for this run alone" in said


def test_estimate_of_filling_counts_decoding_where_that_takes_longer_than_the_tower() -> None:
    found = estimate(step_time_s=0.1)  # an epoch takes 3.5 s, its 2100 tiles take 7 s to decode
    assert found.net_saved == pytest.approx(0.4 - 2.0 / 12)
    assert estimate(step_time_s=None).net_saved == pytest.approx(0.4 - 0.4 / 12)


def test_estimate_whose_reading_takes_longer_than_computing_is_not_worth_it() -> None:
    found = estimate(tile_bytes=100_000_000)
    assert found.read_time_s == pytest.approx(2.0)
    assert "takes longer than the rest of the step" in describe_cache(found, 600.0)


def test_estimate_is_the_same_from_a_run_that_has_the_cache() -> None:
    work = PlannedWork(COUNTS, flops_per_step=600.0, vision_share=0.1, tower_flops=400.0)
    found = estimate_cache(
        work, is_cached=True, tile_bytes=1000, num_samples=700, epochs=12.0, num_ranks=3, step_time_s=1.2
    )
    assert found == pytest.approx(estimate())
