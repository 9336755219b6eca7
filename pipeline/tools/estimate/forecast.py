"""All estimates of a run for one number of workers, from its plan and its model's configs."""

from __future__ import annotations

from typing import NamedTuple

from model.hub.weights import LlavaModel
from pipeline.config import Recipe
from pipeline.plan.efficiency import PackingReport, measure_packing
from pipeline.plan.plan import Plan
from pipeline.tools.estimate.advice import Change, changes_that_fit
from pipeline.tools.estimate.devices import Device
from pipeline.tools.estimate.memory import MemoryEstimate, estimate_memory
from pipeline.tools.estimate.work import PlannedWork, step_time_s


class Forecast(NamedTuple):
    """A run on W workers."""

    packing: PackingReport
    memory: MemoryEstimate
    device: Device | None
    step_time_s: float | None
    """None where the device's rate is not known."""
    changes: list[Change]
    """What would make it fit, when it does not."""

    @property
    def fits(self) -> bool | None:
        """Whether a rank's peak fits its device; None when the device is not known."""
        return None if self.device is None else self.memory.total <= self.device.usable_bytes


def forecast(
    recipe: Recipe,
    model: LlavaModel,
    plan: Plan,
    work: PlannedWork,
    device: Device | None,
    num_ranks: int,
    *,
    use_gpu: bool,
) -> Forecast:
    """Estimate memory and time of a run on `num_ranks` workers.

    Args:
        recipe: of the run.
        model: its skeleton.
        plan: its plan.
        work: of a mean step of the plan.
        device: what a rank runs on; None leaves time and verdict out.
        num_ranks: number of workers W.
        use_gpu: whether ranks run on GPUs.
    """
    packing = measure_packing(plan, num_ranks)
    memory = estimate_memory(model, recipe, num_ranks, packing.most_tokens, use_gpu=use_gpu)
    time_s = None
    if device is not None and device.peak_flops is not None and recipe.training.precision == "bfloat16":
        time_s = step_time_s(work, device.peak_flops, num_ranks, packing.balance, recipe.training)
    changes: list[Change] = []
    if device is not None and memory.total > device.usable_bytes:
        tokens, usable = packing.most_tokens, device.usable_bytes
        changes = changes_that_fit(model, recipe, num_ranks, tokens, usable, use_gpu=use_gpu)
    return Forecast(packing, memory, device, time_s, changes)
