"""Which samples a step was made of, written down for steps that went wrong: numbers not finite, or a loss spike."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from pipeline.index.index import ShardIndex
from pipeline.run_folder.files import append_line, read_entries, replace_file
from pipeline.training.session import TrainingSession

NONFINITE_FILE = "nonfinite.jsonl"
SPIKE_FILE = "loss_spikes.jsonl"


def record_step(session: TrainingSession, file_name: str, step: int, numbers: dict[str, float | None]) -> None:
    """Append a line about a step to a file of the run folder, on rank 0.

    A line is `{"step", NUMBERS..., "samples": [{"rank", "micro_batch", "sample_id", "shard", "key"}, ...]}`, in the
    order trained. A number that is not finite, for which JSON has no value, is the string "nan", "inf" or "-inf".
    Pixels and text are not copied: `ray-llava inspect --step` shows them from the shards.
    """
    if not session.workers.is_first:
        return
    written = {name: value if value is None or math.isfinite(value) else str(value) for name, value in numbers.items()}
    line = {"step": step, **written, "samples": samples_of_step(session, step)}
    append_line(session.run_dir / file_name, json.dumps(line, allow_nan=False))


def drop_replayed_records(run_dir: Path, start_step: int) -> None:
    """Remove records of steps that are computed again, which write them again; only for the writer, rank 0."""
    for path in (run_dir / NONFINITE_FILE, run_dir / SPIKE_FILE):
        if path.is_file():
            entries = [entry for entry in read_entries(path, ("step",)) if entry["step"] < start_step]
            replace_file(path, "".join(json.dumps(entry) + "\n" for entry in entries))


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
    shard = index.shard_of(sample_id).url
    return {"sample_id": sample_id, "shard": shard, "key": index.samples["key"][sample_id].as_py()}
