"""The lists of rejected samples, after a run has gone back to a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from pipeline.training.bookkeeping import drop_replayed
from pipeline.training.distributed import Workers


def test_steps_that_are_computed_again_leave_no_second_line(tmp_path: Path) -> None:
    for rank in range(3):
        lines = [json.dumps({"step": step, "sample_id": 10 * rank + step}) for step in (2, 4, 5)]
        (tmp_path / f"rank-{rank:05d}.jsonl").write_text("\n".join([*lines, '{"step": 5, "sam']))
    (tmp_path / "index.jsonl").write_text("{}\n")
    for rank in range(2):  # of three before
        drop_replayed(tmp_path, 4, Workers(rank, 2, torch.device("cpu")))
    for rank in range(3):
        lines = (tmp_path / f"rank-{rank:05d}.jsonl").read_text().splitlines()
        assert [json.loads(line) for line in lines] == [{"step": 2, "sample_id": 10 * rank + 2}]
    assert (tmp_path / "index.jsonl").read_text() == "{}\n"
