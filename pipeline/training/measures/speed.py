"""How fast a run trains: the rates of each step, and their means once it is warm. Definitions: docs/metrics.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from pipeline.training.measures.flops import FlopModel
from pipeline.training.measures.metrics import StepCounts

WARMUP_STEPS: Final = 2
"""First steps after each start that the means leave out: they compile, allocate and wait for the first data."""
COMPUTE_BOUND_WAIT: Final = 0.02
"""Share of the time that may be spent waiting for data while the device still counts as the limit."""


class StepSpeed(NamedTuple):
    """What one step, or several steps together, took."""

    counts: StepCounts
    """Over all ranks."""
    occupied_tokens: float
    """Ranks x the most tokens that any rank computed in its k-th micro-batch, summed over k, padding included."""
    time_s: float
    wait_s: float
    """Longest wait for data of any rank."""

    def plus(self, other: StepSpeed) -> StepSpeed:
        """Return both together."""
        return StepSpeed(
            self.counts.plus(other.counts),
            self.occupied_tokens + other.occupied_tokens,
            self.time_s + other.time_s,
            self.wait_s + other.wait_s,
        )


class SpeedMeter:
    """Turns counts and times of the steps since a start into rates."""

    def __init__(self, flops: FlopModel, peak_flops: float | None, num_devices: int) -> None:
        """Measure a model.

        Args:
            flops: of the model.
            peak_flops: of one device, FLOP/s; None where it is not known, and MFU is not reported.
            num_devices: ranks.
        """
        self._flops, self._peak_flops, self._num_devices = flops, peak_flops, num_devices
        self._num_steps = 0
        self._warm: StepSpeed | None = None

    def rates(self, step: StepSpeed) -> dict[str, float]:
        """Return the rates of a step as `perf/...` and, after warm-up, those of all warm steps as `perf_mean/...`."""
        self._num_steps += 1
        if self._num_steps > WARMUP_STEPS:
            self._warm = step if self._warm is None else self._warm.plus(step)
        rates = {f"perf/{name}": value for name, value in self._rates(step).items()}
        if self._warm is not None:
            rates |= {f"perf_mean/{name}": value for name, value in self._rates(self._warm).items()}
        return rates

    def _rates(self, speed: StepSpeed) -> dict[str, float]:
        counts, time_s = speed.counts, speed.time_s
        per_device = self._flops.step(counts) / time_s / self._num_devices
        rates = {
            "samples_per_s": counts.samples / time_s,
            "images_per_s": counts.images / time_s,
            "tokens_per_s": counts.tokens / time_s,
            "model_tflops_per_s": per_device / 1e12,
            "packing_efficiency": counts.tokens / max(1.0, speed.occupied_tokens),
            "data_wait_fraction": speed.wait_s / time_s,
        }
        if self._peak_flops is not None:
            rates["mfu"] = per_device / self._peak_flops
        return rates


def verdict(metrics: Mapping[str, float], data_workers: int) -> str | None:
    """Return what limits a run, from the metrics of its last step; None if it was too short."""
    waited = metrics.get("perf_mean/data_wait_fraction")
    if waited is None:
        return None
    share = f"{100 * waited:.1f} % of the time was spent waiting for data"
    if waited < COMPUTE_BOUND_WAIT:
        return f"compute-bound: {share}"
    return (
        f"data-bound: {share}; the devices could train up to {1 / max(1e-3, 1 - waited):.2f} times as fast. Add "
        f"cluster.data_workers (now {data_workers}), or nodes with more CPUs for them"
    )
