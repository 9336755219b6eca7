"""An inspection of a config's data: index, tokens and plan as training would see them, without training's refusals.

Data that training refuses (too many rejected samples, a defective shard) is what people want to look at.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from pipeline.config import CheckpointConfig
from pipeline.plan.efficiency import measure_packing
from pipeline.plan.plan import Plan
from pipeline.tools.inspect.histograms import count_reasons
from pipeline.tools.inspect.locate import find_sample
from pipeline.tools.inspect.page import Overview, RunLabel, describe_data
from pipeline.tools.inspect.sample_view import Inspected, SampleView, view_sample
from pipeline.tools.inspect.step_view import StepView, check_same_run, view_step

_REJECTED_PER_REASON = 2
_MAX_REJECTED = 40


class Inspection(NamedTuple):
    """What is looked at, and how it would be cut over workers."""

    run: RunLabel
    run_dir: Path
    checkpoint: CheckpointConfig
    record: Mapping[str, Any]
    """The run's config, as `ExperimentConfig.to_record` returns it."""
    data: Inspected
    plan: Plan | None
    num_ranks: int
    no_plan: str = ""
    """Why there is no plan, such as a source without a usable sample."""

    def overview(self, num_samples: int) -> Overview:
        """Describe the data set, with its first `num_samples` samples in training order and some rejected ones.

        Raises:
            OSError: storage failed.
        """
        packing = None if self.plan is None else measure_packing(self.plan, self.num_ranks)
        overview = describe_data(self.data, packing, 0 if self.plan is None else self.plan.total_steps)
        return overview._replace(
            samples=tuple(view_sample(self.data, idx) for idx in self._first_samples(num_samples)),
            rejected=tuple(view_sample(self.data, idx) for idx in _examples(self.data.tokens)),
        )

    def sample(self, name: str) -> SampleView:
        """Show the sample `SHARD:INDEX`, rejected or not.

        Raises:
            ValueError: there is none.
            OSError: storage failed.
        """
        return view_sample(self.data, find_sample(self.data.index, name))

    def step(self, step: int) -> StepView:
        """Show a global step.

        Raises:
            ValueError: it is outside the run, or there is no plan.
            ConfigError: the run in the config's folder was trained on other data.
            OSError: storage failed.
        """
        if self.plan is None:
            raise ValueError(f"there are no steps: {self.no_plan}")
        check_same_run(self.run_dir, self.checkpoint, self.record, self.plan)
        return view_step(self.data, self.plan, step, self.num_ranks, self.run_dir)

    def _first_samples(self, num_samples: int) -> list[int]:
        ids: list[int] = []
        if self.plan is not None:
            num_steps = min(self.plan.total_steps, -(-num_samples // self.plan.global_batch_size))
            for step in range(num_steps):
                ids += self.plan.samples(step).tolist()
        return ids[:num_samples]


def _examples(tokens: pa.Table) -> list[int]:
    """Return the first rejected samples of each reason."""
    reasons = np.asarray(tokens["reason"].to_numpy())
    found = [np.flatnonzero(reasons == reason)[:_REJECTED_PER_REASON].tolist() for reason in count_reasons(tokens)]
    return [idx for rows in found for idx in rows][:_MAX_REJECTED]
