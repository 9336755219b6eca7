"""Do several ranks train like one process, and does a resumed run go on where it stopped.

Whole runs (`rank_runs`) are compared: losses and gradient norms of every step, the gradients of the first, and weights
and optimizer state at the end. In float32 ranks may differ by the order of sums only. In bfloat16, which runs compiled
and with the fastest kernels, gradients may be off those of float32 by what one process is, with some room.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal, get_args

import torch
from torch import Tensor

from benchmarks.ranks.rank_processes import RanksFailedError, run_ranks
from benchmarks.ranks.rank_runs import (
    NUM_STEPS,
    Inputs,
    Precision,
    RunSettings,
    Stage,
    config_of,
    first_gradients,
    fork_run,
    read_checkpoint,
    read_steps,
    train_ranks,
    write_inputs,
)
from benchmarks.step.correctness import relative_error
from pipeline.config import ExperimentConfig, ModelConfig

RESUMED_STEP: Final = 2
_THEN: Final = "-then-"
"""Between the name of a run and what was done with it."""
_SHARDING: Final[dict[Stage, Literal["none", "fsdp"]]] = {"pretrain": "none", "finetune": "fsdp"}
_FIRST_STEP_BOUND: Final = {"float32": 1e-4, "bfloat16": 1e-3}
"""Of loss and gradient norm, relative, as long as weights are equal."""
_GRADIENT_BOUND: Final = 1e-3
"""In float32, norm of the difference over norm."""
_ROOM: Final = 1.5
_LATER_BOUND: Final = {"float32": 2e-3, "bfloat16": 1e-2}
"""Of losses of later steps: AdamW's first steps have the size of the learning rate whatever the gradient, so rounding
that changes the sign of a small one moves a weight by twice the rate."""


def measure_agreement(folder: Path, precisions: Sequence[Precision], *, use_gpu: bool) -> dict[str, Any]:
    """Train on one and on two ranks and compare; then resume, and repeat, the runs of two.

    Runs that do not depend on one another run at the same time where there are GPUs.

    Returns:
        A report by name of the run; of a run that failed, its error.
    """
    written = run_ranks(partial(write_inputs, folder), 1, use_gpu=use_gpu, timeout_s=180.0)
    inputs = Inputs(folder / "runs", ModelConfig(**written["model"]), written["shards"], use_gpu)
    keys = [(stage, precision) for precision in precisions for stage in get_args(Stage)]
    pairs = [(RunSettings(*key, 1), RunSettings(*key, 2, _SHARDING[key[0]])) for key in keys]
    configs = {settings: config_of(settings, inputs) for pair in pairs for settings in pair}
    found = _train_all([(config, settings.num_ranks) for settings, config in configs.items()], at_once=use_gpu)
    later: list[tuple[ExperimentConfig, int]] = []
    for one, two in pairs:
        exact, single, double = (Path(configs[run].run_dir) for run in (one._replace(precision="float32"), one, two))
        if not found.keys() & {path.name for path in (exact, single, double)}:
            found[double.name] = compare_runs(double, single, exact, one.precision)
            later += [(fork_run(configs[one], f"{_THEN}repeated", 0), 1), *_later_runs(two, configs[two])]
    failed = _train_all(later, at_once=use_gpu)
    for config, _ in later:
        run = Path(config.run_dir)
        found[run.name] = failed.get(run.name) or compare_end(run, run.with_name(run.name.split(_THEN)[0]))
    return found


def _train_all(jobs: Sequence[tuple[ExperimentConfig, int]], *, at_once: bool) -> dict[str, Any]:
    """Run all; returns the errors by name of the run folder."""

    def train(job: tuple[ExperimentConfig, int]) -> dict[str, str] | None:
        try:
            train_ranks(*job)
        except (RanksFailedError, torch.OutOfMemoryError) as error:
            return {"failed": str(error)[:2000]}
        return None

    with ThreadPoolExecutor(len(jobs) if at_once and jobs else 1) as threads:
        outcomes = list(threads.map(train, jobs))
    names = [Path(config.run_dir).name for config, _ in jobs]
    return {name: outcome for name, outcome in zip(names, outcomes, strict=True) if outcome is not None}


def _later_runs(settings: RunSettings, config: ExperimentConfig) -> list[tuple[ExperimentConfig, int]]:
    """Return what is run to compare with a finished run of two ranks, and on how many ranks."""
    numbers = (2, 1) if settings.sharding == "fsdp" else (2,)
    resumed = [(fork_run(config, f"{_THEN}resumed-on-{number}", RESUMED_STEP), number) for number in numbers]
    return [*resumed, (fork_run(config, f"{_THEN}repeated", 0), 2)]


def compare_runs(run: Path, one_rank: Path, exact: Path, precision: Precision) -> dict[str, Any]:
    """Return how far a run is from that of one rank, and whether that is within bounds.

    Args:
        run: folder of the run.
        one_rank: folder of the same run on one rank.
        exact: folder of that run in float32, whose gradients are the reference.
        precision: of the first two.
    """
    ours, theirs = read_steps(run), read_steps(one_rank)
    wanted, found, single = (first_gradients(folder) for folder in (exact, run, one_rank))
    errors = {name: relative_error(found[name], wanted[name]) for name in wanted}
    worst = max(errors, key=lambda name: errors[name])
    of_one = relative_error(_flat(single), _flat(wanted))
    gradient_bound = _GRADIENT_BOUND + (_ROOM * of_one if precision == "bfloat16" else 0.0)
    values = {
        "loss of the first step": (_difference(ours, theirs, "train/loss", 1), _FIRST_STEP_BOUND[precision]),
        "gradient norm of the first step": (
            _difference(ours, theirs, "train/grad_norm", 1),
            _FIRST_STEP_BOUND[precision] + (gradient_bound if precision == "bfloat16" else 0.0),
        ),
        "gradients of the first step": (relative_error(_flat(found), _flat(wanted)), gradient_bound),
        "losses of all steps": (_difference(ours, theirs, "train/loss"), _LATER_BOUND[precision]),
    }
    return {
        "passed": all(value <= bound for value, bound in values.values()),
        "differences": {name: {"value": value, "bound": bound} for name, (value, bound) in values.items()},
        "losses": [step["train/loss"] for step in ours.values()],
        "losses_of_one_rank": [step["train/loss"] for step in theirs.values()],
        "gradient_error_of_one_rank": of_one,
        "num_gradients": len(errors),
        "worst_gradient": {"name": worst, "error": errors[worst]},
    }


def compare_end(run: Path, reference: Path) -> dict[str, Any]:
    """Return how far a resumed or repeated run is from the first one, and whether it is equal bit by bit."""
    ours, theirs = read_steps(run), read_steps(reference)
    saved, expected = (read_checkpoint(folder, NUM_STEPS) for folder in (run, reference))
    different = [name for name in expected if not torch.equal(saved[name], expected[name])]
    return {
        "steps": list(ours),
        "losses": [step["train/loss"] for step in ours.values()],
        "loss_difference": _difference(ours, theirs, "train/loss"),
        "bitwise_equal": not different and all(ours[k]["train/loss"] == theirs[k]["train/loss"] for k in ours),
        "tensors": len(expected),
        "tensors_that_differ": len(different),
        "weight_difference": max(
            relative_error(saved[name], expected[name]) for name in expected if name.startswith("model/")
        ),
    }


def _flat(tensors: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([tensors[name].reshape(-1) for name in sorted(tensors)])


def _difference(
    ours: Mapping[int, Mapping[str, float]],
    theirs: Mapping[int, Mapping[str, float]],
    name: str,
    num_steps: int = NUM_STEPS,
) -> float:
    """Return the largest relative difference of a metric over the first steps of `ours`."""
    return max(abs(metrics[name] / theirs[step][name] - 1) for step, metrics in list(ours.items())[:num_steps])
