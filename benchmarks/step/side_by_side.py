"""Both sides on the same weights and the same samples, step by step in turn, in one process; memory in one each.

Time is the host clock around whole optimizer steps; ours includes the packing of its batches, the other side's batches
are padded and normalised before. Memory is the growth of a process's resident set from before the model is built to
its high-water mark after two steps: weights, gradients, moments, activations and the allocator's reserve.
"""

from __future__ import annotations

import multiprocessing
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import torch

from benchmarks.step.baseline import Baseline, StepResult, copy_weights
from benchmarks.step.ours import build_session, samples_of
from benchmarks.step.scenarios import Scenario
from benchmarks.step.shapes import resolution
from benchmarks.step.workloads import MAX_LENGTH, build_rank_step
from pipeline.training.batches import prepare
from pipeline.training.loop import run_step
from pipeline.training.measures.memory import peak_resident_bytes, resident_bytes
from pipeline.training.session import TrainingSession

_CPU: Final = torch.device("cpu")
_LOSS_BOUND: Final = 2e-5
_NORM_BOUND: Final = 1e-3
"""Relative differences that float32 sums in another order may reach."""


class UnequalError(RuntimeError):
    """The two sides computed different things, so their times cannot be compared."""


class OurSide:
    """The training loop's own step."""

    def __init__(self, scenario: Scenario, run_dir: Path) -> None:
        """Build the session and draw the samples of the first step."""
        self.sizes = scenario.sizes()
        self.session: TrainingSession = build_session(scenario, scenario.ours[0], self.sizes, _CPU, run_dir)
        self._rank_step = build_rank_step(self.session.plan, 0, self.sizes, scenario.shape)
        self._resolution = resolution(scenario.shape)

    def step(self) -> StepResult:
        """Pack the samples and run one optimizer step."""
        outcome = run_step(self.session, prepare(self._rank_step, self._resolution, _CPU))
        return StepResult(outcome.loss, outcome.grad_norm)


class TheirSide:
    """`transformers.LlavaForConditionalGeneration` on padded batches."""

    def __init__(self, scenario: Scenario) -> None:
        """Build the model and collate the same samples."""
        sizes, settings = scenario.sizes(), scenario.baselines[0]
        self.baseline = Baseline(scenario, settings, _CPU)
        plan = scenario.plan(sizes, MAX_LENGTH * settings.batch_size)
        self.batches = self.baseline.batches(plan, 0, sizes)

    def step(self) -> StepResult:
        """Run one optimizer step over all batches."""
        return self.baseline.step(self.batches)


class Turn(NamedTuple):
    """One step of one side."""

    time_s: float
    result: StepResult


def compare(scenario: Scenario, num_turns: int, with_memory: bool) -> dict[str, Any]:
    """Time both sides in turn on the same samples and check that they train alike.

    Args:
        scenario: model, stage and samples.
        num_turns: steps of each side.
        with_memory: also run each side in a process of its own to see how much memory it takes.

    Returns:
        Times, useful tokens/s of both, their ratio, and the largest relative differences of loss and gradient norm.

    Raises:
        UnequalError: loss or gradient norm differ by more than float32 rounding.
    """
    with tempfile.TemporaryDirectory() as folder:
        ours = OurSide(scenario, Path(folder))
        theirs = TheirSide(scenario)
        copy_weights(ours.session.model, theirs.baseline.model)
        turns: dict[str, list[Turn]] = {"ours": [], "transformers": []}
        for _ in range(num_turns):
            turns["ours"].append(_timed(ours))
            turns["transformers"].append(_timed(theirs))
    differences = check_equal(turns["ours"], turns["transformers"])
    samples = samples_of(ours.session.plan, 0, ours.sizes, scenario.features_per_image)
    useful = sum(sample.num_tokens for sample in samples)
    computed = sum(batch.input_ids.numel() for batch in theirs.batches)
    times = {side: statistics.median(turn.time_s for turn in taken) for side, taken in turns.items()}
    return {
        "samples": len(samples),
        "images": sum(sample.num_images for sample in samples),
        "useful_tokens": useful,
        "supervised_tokens": sum(sample.num_targets for sample in samples),
        "padded_tokens": computed,
        "step_time_s": times,
        "useful_tokens_per_s": {side: useful / time_s for side, time_s in times.items()},
        "speedup": times["transformers"] / times["ours"],
        "all_step_times_s": {side: [turn.time_s for turn in taken] for side, taken in turns.items()},
        "losses": [turn.result.loss for turn in turns["ours"]],
        **differences,
        **(compare_memory(scenario) if with_memory else {}),
    }


def check_equal(ours: list[Turn], theirs: list[Turn]) -> dict[str, float]:
    """Return the largest relative differences.

    Raises:
        UnequalError: one is above what float32 allows.
    """
    pairs = [(mine.result, other.result) for mine, other in zip(ours, theirs, strict=True)]
    loss = max(abs(mine.loss / other.loss - 1) for mine, other in pairs)
    norm = max(abs(mine.grad_norm / other.grad_norm - 1) for mine, other in pairs)
    if not (loss <= _LOSS_BOUND and norm <= _NORM_BOUND):
        raise UnequalError(
            f"the sides do not train alike: losses differ by {loss:.2g} (allowed {_LOSS_BOUND:.2g}), gradient norms "
            f"by {norm:.2g} (allowed {_NORM_BOUND:.2g}) in {pairs}"
        )
    return {"loss_difference": loss, "grad_norm_difference": norm}


def compare_memory(scenario: Scenario) -> dict[str, Any]:
    """Return the growth of the resident set of two steps of each side, bytes, each in a process of its own."""
    growth = {}
    sides: tuple[Literal["ours", "transformers"], ...] = ("ours", "transformers")
    for side in sides:
        # spawn: a forked child would start with the parent's memory
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            growth[side] = pool.submit(measure_growth, scenario, side, torch.get_num_threads()).result()
    return {"memory_growth_bytes": growth, "memory_share": growth["ours"] / growth["transformers"]}


def measure_growth(scenario: Scenario, side: Literal["ours", "transformers"], num_threads: int) -> int:
    """Build one side, run two steps, and return by how much the process had grown at most, bytes."""
    torch.set_num_threads(num_threads)
    before = resident_bytes()
    with tempfile.TemporaryDirectory() as folder:
        contender = OurSide(scenario, Path(folder)) if side == "ours" else TheirSide(scenario)
        for _ in range(2):  # the optimizer's moments exist from the second step's start only
            contender.step()
    return peak_resident_bytes() - before


def _timed(side: OurSide | TheirSide) -> Turn:
    started = time.perf_counter()
    result = side.step()
    return Turn(time.perf_counter() - started, result)
