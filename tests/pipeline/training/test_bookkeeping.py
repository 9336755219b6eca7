"""Rejected samples: how many a run accepts, and their lists after it has gone back to a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pipeline.config import DataConfig
from pipeline.parallel.ranks import Workers
from pipeline.training.bookkeeping import RejectedBudgetError, check_budget, drop_replayed
from pipeline.training.measures.metrics import Ledger


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


def test_budget_of_rejected_samples_is_one_for_each_epoch_begun() -> None:
    limits = DataConfig(shards=("a.tar",), max_rejected_fraction=0.01)
    for trained, quarantined in ((0, 30), (2970, 30), (2971, 60), (5940, 60)):
        check_budget(Ledger(trained, quarantined), 3000, limits)
    with pytest.raises(RejectedBudgetError, match=r"more than the 30 .* in 1 epoch$"):
        check_budget(Ledger(2969, 31), 3000, limits)
    with pytest.raises(RejectedBudgetError, match=r"more than the 60 .* in 2 epochs$"):
        check_budget(Ledger(2970, 61, {"decoder_crash": 61}), 3000, limits)
