import pytest

from pipeline.training.measures.flops import FlopModel
from pipeline.training.measures.metrics import StepCounts
from pipeline.training.measures.speed import SpeedMeter, StepSpeed, verdict

FLOPS = FlopModel(per_token=1_000_000, per_pair=0, per_target=0, per_tile=0)


def step(tokens: float, time_s: float, wait_s: float = 0.0, occupied: float | None = None) -> StepSpeed:
    counts = StepCounts(samples=7, images=5, tokens=tokens)
    return StepSpeed(counts, tokens if occupied is None else occupied, time_s, wait_s)


def test_rates_of_a_step_are_per_second_of_its_whole_time_and_per_device() -> None:
    rates = SpeedMeter(FLOPS, peak_flops=1e9, num_devices=2).rates(step(300.0, 2.0, wait_s=0.5, occupied=400.0))
    assert rates == {
        "perf/samples_per_s": 3.5,
        "perf/images_per_s": 2.5,
        "perf/tokens_per_s": 150.0,
        "perf/model_tflops_per_s": pytest.approx(75e-6),
        "perf/packing_efficiency": 0.75,
        "perf/data_wait_fraction": 0.25,
        "perf/mfu": pytest.approx(0.075),
    }


def test_means_weigh_steps_by_their_time_and_leave_warm_up_out() -> None:
    meter = SpeedMeter(FLOPS, peak_flops=None, num_devices=1)
    for _ in range(2):
        assert "perf_mean/tokens_per_s" not in meter.rates(step(999.0, 50.0, wait_s=40.0))
    meter.rates(step(100.0, 1.0))
    rates = meter.rates(step(200.0, 3.0, wait_s=1.0))
    assert rates["perf_mean/tokens_per_s"] == 75.0
    assert rates["perf_mean/data_wait_fraction"] == 0.25
    assert "perf_mean/mfu" not in rates


def test_verdict_names_the_limit_and_what_to_raise() -> None:
    assert verdict({}, 3) is None
    assert verdict({"perf_mean/data_wait_fraction": 0.0193}, 3) == (
        "compute-bound: 1.9 % of the time was spent waiting for data"
    )
    limit = verdict({"perf_mean/data_wait_fraction": 0.5}, 3)
    assert limit is not None
    assert limit.startswith(
        "data-bound: 50.0 % of the time was spent waiting for data; the devices could train up to 2.00"
    )
    assert "cluster.data_workers (now 3)" in limit
