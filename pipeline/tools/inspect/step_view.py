"""What exactly was in one global step, per rank and micro-batch: from a loss spike back to the pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.checkpoint.resume import run_storage
from pipeline.checkpoint.verification import readable_manifests
from pipeline.config import CheckpointConfig, ConfigError, check_record_resumable
from pipeline.plan.plan import Plan
from pipeline.tools.inspect.sample_view import Inspected, SampleView, view_sample


class MicroBatchView(NamedTuple):
    """One forward pass of one rank."""

    num_tokens: int
    samples: tuple[SampleView, ...]


class RankView(NamedTuple):
    """What one rank trained on in the step."""

    rank: int
    num_tokens: int
    micro_batches: tuple[MicroBatchView, ...]


class StepView(NamedTuple):
    """One global step."""

    step: int
    total_steps: int
    epoch: int
    ranks: tuple[RankView, ...]
    metrics: dict[str, float]
    """What was logged of the step; empty when it has not been trained."""
    quarantined: dict[int, str]
    """Sample id -> reason, of samples that this step could not use while training."""

    @property
    def samples(self) -> list[SampleView]:
        """All samples, rank by rank."""
        return [sample for rank in self.ranks for batch in rank.micro_batches for sample in batch.samples]


def view_step(data: Inspected, plan: Plan, step: int, num_ranks: int, run_dir: Path) -> StepView:
    """Show the samples of a step as they are cut over `num_ranks` workers.

    Raises:
        ValueError: the step is outside the run.
        OSError: storage failed.
    """
    ranks = []
    for entry in plan.split(step, num_ranks):
        batches = tuple(
            MicroBatchView(int(plan.num_tokens[list(ids)].sum()), tuple(view_sample(data, idx) for idx in ids))
            for ids in entry.micro_batches
        )
        ranks.append(RankView(entry.rank, sum(batch.num_tokens for batch in batches), batches))
    return StepView(
        step=step,
        total_steps=plan.total_steps,
        epoch=int(plan.order.epochs_done(step)),
        ranks=tuple(ranks),
        metrics=_metrics_of(run_dir / "metrics.jsonl", step),
        quarantined=_quarantined_in(run_dir / "quarantine", step),
    )


def check_same_run(run_dir: Path, checkpoint: CheckpointConfig, record: Mapping[str, Any], plan: Plan) -> None:
    """Verify that a plan is that of the run in the config's folder, if there is a run; else the lineage would be wrong.

    Raises:
        ConfigError: the config, or the data behind it, changed since the run was started.
    """
    if (run_dir / "config.yaml").is_file():
        check_record_resumable(run_dir / "config.yaml", record)
    for name, manifest in list(readable_manifests(run_storage(run_dir, checkpoint)).items())[-1:]:
        state = manifest.state
        trained, planned = state["plan_fingerprint"], plan.fingerprint_before(state["step"])
        if trained != planned:
            raise ConfigError(
                f"checkpoint {name} was trained on plan {trained[:12]}, the data now give plan {planned[:12]}: shards, "
                "tokenizer, template or past weights changed since, so the content of its steps cannot be reconstructed"
            )


def _metrics_of(path: Path, step: int) -> dict[str, float]:
    """Return the line that a step left in metrics.jsonl; a half-written last line counts as none."""
    if not path.is_file():
        return {}
    marker = f'{{"step": {step}, '
    with path.open(encoding="utf-8") as file:
        for line in file:
            if line.startswith(marker) and line.endswith("\n"):
                return dict(json.loads(line)["metrics"])
    return {}


def _quarantined_in(folder: Path, step: int) -> dict[int, str]:
    found: dict[int, str] = {}
    for path in sorted(folder.glob("rank-*.jsonl")):
        with path.open(encoding="utf-8") as file:
            entries: list[dict[str, Any]] = [json.loads(line) for line in file if line.endswith("\n")]
        found |= {entry["sample_id"]: entry["reason"] for entry in entries if entry["step"] == step}
    return found
