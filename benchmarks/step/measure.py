"""Timing optimizer steps: host clock around synchronised steps, warm-up apart, medians, and the rates that follow."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.step.workloads import SampleSize, counts_of
from pipeline.training.measures.flops import FlopModel, peak_of


@dataclass(frozen=True)
class Timing:
    """Measured steps of one contender."""

    step_times_s: tuple[float, ...]
    samples: tuple[tuple[SampleSize, ...], ...]
    """What each step trained on."""
    computed_tokens: tuple[int, ...]
    """Positions that went through the decoder in each step, padding included."""
    losses: tuple[float, ...]
    memory_peak_bytes: int | None
    """Of the rank with the highest."""
    num_devices: int = 1
    """Ranks that computed the steps together."""

    def report(self, flops: FlopModel, device_name: str) -> dict[str, Any]:
        """Return the figures: medians over steps of rates per second, MFU, useful share of tokens, memory.

        Rates are those of all devices together; FLOP/s and MFU are per device.
        """
        per_step = list(zip(self.samples, self.step_times_s, strict=True))
        rates = [flops.step(counts_of(samples)) / time_s / self.num_devices for samples, time_s in per_step]
        peak = peak_of(device_name)
        useful = sum(sample.num_tokens for samples in self.samples for sample in samples)
        return {
            "step_time_s": statistics.median(self.step_times_s),
            "samples_per_s": statistics.median(len(samples) / time_s for samples, time_s in per_step),
            "images_per_s": statistics.median(sum(s.num_images for s in samples) / t for samples, t in per_step),
            "useful_tokens_per_s": statistics.median(sum(s.num_tokens for s in samples) / t for samples, t in per_step),
            "model_tflops_per_s": statistics.median(rates) / 1e12,
            "mfu": None if peak is None else statistics.median(rates) / peak,
            "mfu_of_fp8_peak": None if peak is None else statistics.median(rates) / (2 * peak),
            "useful_share_of_tokens": useful / sum(self.computed_tokens),
            "memory_peak_gib": None if self.memory_peak_bytes is None else self.memory_peak_bytes / 2**30,
            "step_times_s": list(self.step_times_s),
            "losses": list(self.losses),
        }


def time_steps(steps: Sequence[Callable[[], float]], num_warmup: int, device: torch.device) -> tuple[Any, ...]:
    """Run steps one after the other.

    Args:
        steps: each runs an optimizer step and returns its loss.
        num_warmup: leading steps that are run and not counted.
        device: where they compute.

    Returns:
        `(times in seconds, losses, peak of allocated bytes or None)` of the counted steps.
    """
    times, losses = [], []
    for index, step in enumerate(steps):
        if index == num_warmup and device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        synchronize(device)
        started = time.perf_counter()
        loss = step()
        synchronize(device)
        if index >= num_warmup:
            times.append(time.perf_counter() - started)
            losses.append(loss)
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    return tuple(times), tuple(losses), peak


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
