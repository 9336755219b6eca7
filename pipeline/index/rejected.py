"""What the index and the tokenizer rule out, sample by sample: for reports, for the run folder, and counted."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from model.files.atomic import replacing
from pipeline.index.index import ShardIndex

REJECTED_FILE = "quarantine/index.jsonl"


class RejectedSample(NamedTuple):
    """A sample that cannot be trained on."""

    shard: str
    key: str
    reason: str
    detail: str


def list_rejected(index: ShardIndex, tokens: pa.Table) -> list[RejectedSample]:
    """Return every sample that the data or the tokenizer rules out, in index order."""
    sample_ids = rejected_ids(tokens)
    columns = (index.samples["shard"], index.samples["key"], tokens["reason"], tokens["detail"])
    rows = zip(*(column.take(sample_ids).to_pylist() for column in columns), strict=True)
    return [RejectedSample(index.shards[shard].url, *rest) for shard, *rest in rows]


def rejected_ids(tokens: pa.Table) -> npt.NDArray[np.int64]:
    """Return the ids of the samples that have a reason, in index order."""
    return np.flatnonzero(pc.not_equal(tokens["reason"], "").to_numpy())


def record_rejected(run_dir: Path, index: ShardIndex, tokens: pa.Table) -> dict[str, int]:
    """Write what a run never plans to `quarantine/index.jsonl` of its folder; returns the samples of each reason.

    A line per sample: `{"sample_id", "shard", "key", "reason", "detail"}`. Rewritten at every start.
    """
    rejected = list_rejected(index, tokens)
    path = run_dir / REJECTED_FILE
    if not rejected:
        path.unlink(missing_ok=True)
        return {}
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for sample_id, row in zip(rejected_ids(tokens).tolist(), rejected, strict=True):
            file.write(json.dumps({"sample_id": sample_id, **row._asdict()}) + "\n")
    return dict(Counter(row.reason for row in rejected).most_common())
