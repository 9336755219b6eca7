"""Ranks as processes: what they return, and that none is left when one fails or hangs."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import pytest
import torch

from benchmarks.ranks import rank_processes
from benchmarks.ranks.exchange import measure_collectives
from benchmarks.ranks.rank_processes import RanksFailedError, run_ranks
from benchmarks.ranks.weak_scaling import WEAK_SCALING, RankCase, compare_cases, measure_case
from pipeline.parallel.ranks import Workers


def collect(case: RankCase, workers: Workers) -> dict[str, Any]:
    torch.set_num_threads(1)
    return {
        "ranks": workers.gather(workers.rank),
        "collectives": measure_collectives(workers, unit_numel=101, bucket_numel=13),
        "steps": measure_case(case, workers),
    }


def fail_on_the_last(workers: Workers) -> None:
    if workers.rank == workers.world_size - 1:
        raise ValueError("the last one fails")
    workers.barrier()


def sleep(_: Workers) -> None:
    time.sleep(600)


def test_two_ranks_train_sharded_and_rank_0_returns_the_figures() -> None:
    one, two = WEAK_SCALING["tiny"][1]
    assert (one.num_ranks, two.num_ranks, two.sharding) == (1, 2, "fsdp")
    found = run_ranks(partial(collect, two), 2, use_gpu=False, timeout_s=120.0)
    assert found["ranks"] == [0, 1]
    assert [each["bytes"] for each in found["collectives"].values()] == [100.0, 200.0, 52.0]
    alone, steps = measure_case(one, Workers(0, 1, torch.device("cpu"))), found["steps"]
    assert (steps["num_ranks"], steps["global_batch_size"]) == (2, 2 * one.scenario.global_batch_size)
    assert steps["useful_tokens_per_s_per_gpu"] == steps["useful_tokens_per_s"] / 2
    assert steps["useful_share_of_tokens"] == alone["useful_share_of_tokens"] == 1.0
    assert compare_cases(alone, steps)["efficiency"] > 0
    assert steps["losses"][0] == pytest.approx(alone["losses"][0], rel=0.05)  # near the logarithm of the vocabulary


def test_rank_that_fails_ends_the_others_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_processes, "_GRACE_S", 0.5)
    with pytest.raises(RanksFailedError, match="ValueError: the last one fails"):
        run_ranks(fail_on_the_last, 2, use_gpu=False, timeout_s=120.0)


def test_rank_that_hangs_is_killed_when_the_time_is_up() -> None:
    started = time.monotonic()
    with pytest.raises(RanksFailedError, match=r"not finished after 1 s; exit codes \[-9\]"):
        run_ranks(sleep, 1, use_gpu=False, timeout_s=1.0)
    assert time.monotonic() - started < 60
