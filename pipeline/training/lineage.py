"""Which samples a step was made of, written down for steps that went wrong: numbers not finite, or a loss spike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline.shards.index import ShardIndex
from pipeline.training.session import TrainingSession

NONFINITE_FILE = "nonfinite.jsonl"
SPIKE_FILE = "loss_spikes.jsonl"


def record_step(session: TrainingSession, file_name: str, step: int, numbers: dict[str, float | None]) -> None:
    """Append a line about a step to a file of the run folder, on rank 0.

    A line is `{"step", NUMBERS..., "samples": [{"rank", "micro_batch", "sample_id", "shard", "key"}, ...]}`, in the
    order trained. Pixels and text are not copied: `ray-llava inspect --step` shows them from the shards.
    """
    if not session.workers.is_first:
        return
    line = {"step": step, **numbers, "samples": samples_of_step(session, step)}
    with (Path(session.config.run_dir) / file_name).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def samples_of_step(session: TrainingSession, step: int) -> list[dict[str, Any]]:
    """Return rank, micro-batch, id, shard and key of every sample of a step."""
    return [
        {"rank": plan.rank, "micro_batch": number, **session.describe_sample(sample_id)}
        for plan in session.plan.split(step, session.workers.world_size)
        for number, batch in enumerate(plan.micro_batches)
        for sample_id in batch
    ]


def describe_sample(index: ShardIndex, sample_id: int) -> dict[str, Any]:
    """Return a sample's id, shard and key."""
    shard = index.shards[index.samples["shard"][sample_id].as_py()].url
    return {"sample_id": sample_id, "shard": shard, "key": index.samples["key"][sample_id].as_py()}
