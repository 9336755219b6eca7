"""The work of a plan: what its steps hold, counted on some of them, and the time that it takes at an assumed rate."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from model.fusion.resolution import ImageView, Resolution
from model.hub.weights import LlavaModel
from pipeline.config import Recipe, TrainingConfig
from pipeline.plan.plan import Plan
from pipeline.tools.inspect.sample_view import Inspected
from pipeline.training.measures.flops import FlopModel
from pipeline.training.measures.metrics import StepCounts

_MAX_STEPS: Final = 64
_UTILISATION: Final = {True: 0.50, False: 0.37}
"""Share of a device's bfloat16 peak that useful tokens get, compiled and not: on one H200 50 to 59 %, and 35 to 43 %
(docs/benchmarks)."""
_FP8_UTILISATION: Final = 0.60
"""The same for compiled FP8 layers: 61 to 77 % in finetuning, 99 % in projector pretraining."""


class PlannedWork(NamedTuple):
    """What a plan asks for."""

    counts: StepCounts
    """Of a mean step, over all ranks."""
    flops_per_step: float
    """Of forward and backward, recomputation included."""
    vision_share: float
    """Part of them in tower and projector."""
    tower_flops: float
    """FLOPs of a frozen tower per step, counted above or, with a feature cache, saved; 0 when it learns."""


def measure_work(data: Inspected, plan: Plan, model: LlavaModel, recipe: Recipe) -> PlannedWork:
    """Count evenly spread steps of a plan; a few thousand samples say their mean to about a percent."""
    steps = np.unique(np.linspace(0, plan.total_steps - 1, min(plan.total_steps, _MAX_STEPS)).astype(np.int64))
    ids = np.concatenate([plan.samples(int(step)) for step in steps])
    lengths = plan.num_tokens[ids].astype(np.float64)
    share = 1.0 / len(steps)
    counts = StepCounts(
        samples=len(ids) * share,
        images=float(data.index.samples["num_images"].to_numpy()[ids].sum()) * share,
        tiles=_count_tiles(data, ids.tolist(), data.encoder.resolution) * share,
        tokens=float(lengths.sum()) * share,
        pairs=float((lengths * (lengths + 1) / 2).sum()) * share,
        targets=float(data.tokens["num_supervised_tokens"].to_numpy()[ids].sum()) * share,
    )
    flops, tower = FlopModel.of(model), model.get_vision_tower()
    tower_flops = flops.tower_per_tile * counts.tiles if tower is not None and tower.frozen else 0.0
    if recipe.data.feature_cache is not None:
        flops = flops.without_tower()
    total = flops.step(counts) + _recomputed(flops, counts, model, recipe.training)
    return PlannedWork(counts, total, flops.per_tile * counts.tiles / total, tower_flops)


def step_time_s(
    work: PlannedWork, peak_flops: float, num_ranks: int, balance: float, training: TrainingConfig
) -> float:
    """Return the estimated time of a step, seconds.

    Args:
        work: of the step.
        peak_flops: bfloat16 peak of one device, FLOP/s.
        num_ranks: number of workers W.
        balance: load of the mean rank / of the busiest.
        training: says how layers run.
    """
    return work.flops_per_step / (peak_flops * utilisation(training) * num_ranks * balance)


def cost_override(model: LlavaModel, recipe: Recipe, flops_per_s: float) -> str:
    """Return `training.cost=...` for this model: nanoseconds at a rate of one device, measured or assumed.

    Only their proportions decide how samples are dealt over ranks, so the rate matters for reading them alone.
    """
    flops = FlopModel.of(model)
    if recipe.data.feature_cache is not None:
        flops = flops.without_tower()
    costs = {"token_ns": flops.per_token, "token_pair_ns": flops.per_pair / 2, "tile_ns": flops.per_tile}
    listed = ", ".join(f"{name}: {1e9 * number / flops_per_s:.4g}" for name, number in costs.items())
    return f"training.cost={{{listed}}}"


def utilisation(training: TrainingConfig) -> float:
    """Return the share of the bfloat16 peak that `step_time_s` assumes."""
    if training.compile and training.linear_precision == "fp8":
        return _FP8_UTILISATION
    return _UTILISATION[training.compile]


def _recomputed(flops: FlopModel, counts: StepCounts, model: LlavaModel, training: TrainingConfig) -> float:
    """Return the FLOPs of a second forward pass through the decoder, where all of it is recomputed."""
    if training.gradient_checkpointing is not True:
        return 0.0
    trains_layers = any(parameter.requires_grad for parameter in model.get_model().layers.parameters())
    passes = 3 if trains_layers else 2  # forward, input gradients and, where they are trained, weight gradients
    return flops.per_token * counts.tokens / passes + flops.per_pair * counts.pairs / 3


def _count_tiles(data: Inspected, ids: list[int], resolution: Resolution) -> int:
    samples = data.index.samples
    total = 0
    for idx in ids:
        if frames := samples["video_frames"][idx].as_py():
            total += data.encoder.num_frames(frames, samples["video_seconds"][idx].as_py())
            continue
        widths, heights = samples["image_widths"][idx].as_py(), samples["image_heights"][idx].as_py()
        views = (ImageView(height, width) for width, height in zip(widths, heights, strict=True))
        total += sum(resolution.tiling(view).num_tiles for view in views)
    return total
