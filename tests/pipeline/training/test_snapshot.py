"""Which error of a failed write the user sees, whichever rank had it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from pipeline.checkpoint.store import CheckpointStore, MissingShareError, SaveJob
from pipeline.config import CheckpointConfig, ModelConfig
from pipeline.parallel.ranks import Workers
from pipeline.training.session import TrainingSession
from pipeline.training.snapshot import CheckpointWriteError, SavedRun, Snapshots

RUN = SavedRun(1, CheckpointConfig(), is_sharded=False, model=ModelConfig(language_model="lm"), record={})
FULL = OSError(28, "No space left on device")
MISSING = MissingShareError("rank 1 did not write its share")
REMOVED = FileNotFoundError(2, "No such file or directory")


@dataclass(frozen=True)
class Threads(Workers):
    """Ranks that are threads."""

    values: list[Any] | None = None
    met: threading.Barrier | None = None

    def gather(self, value: Any) -> list[Any]:
        assert self.values is not None
        assert self.met is not None
        self.values[self.rank] = value
        self.met.wait()
        return self.values


def fail_with(error: Exception | None) -> Callable[[], None]:
    def job() -> None:
        if error is not None:
            raise error

    return job


def finish_on_ranks(folder: Path, errors: list[Exception | None]) -> list[Exception | None]:
    """Finish a write that ends like this on each rank; returns what each of them is told."""
    told: list[Exception | None] = [None] * len(errors)
    values, met = [None] * len(errors), threading.Barrier(len(errors))

    def finish(rank: int) -> None:
        workers = Threads(rank, len(errors), torch.device("cpu"), values=values, met=met)
        snapshots = Snapshots(CheckpointStore(folder, keep_last=1), run=RUN)
        snapshots._writer.start(fail_with(errors[rank]))
        try:
            snapshots.finish(cast(TrainingSession, SimpleNamespace(workers=workers)))
        except CheckpointWriteError as error:
            told[rank] = error

    threads = [threading.Thread(target=finish, args=(rank,)) for rank in range(len(errors))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return told


@pytest.mark.parametrize(
    ("errors", "shown"),
    [
        ([None, FULL, None], f"rank 1: {FULL}"),
        ([MISSING, FULL, None], f"rank 1: {FULL}"),
        ([MISSING, None, REMOVED], f"rank 0: {MISSING}"),
        ([FULL, None, REMOVED], f"rank 0: {FULL}"),
        ([None, AssertionError(), FULL], "rank 1: AssertionError"),
    ],
)
def test_every_rank_is_told_the_cause_and_where_it_was_met(
    tmp_path: Path, errors: list[Exception | None], shown: str
) -> None:
    told = finish_on_ranks(tmp_path, errors)
    assert [str(error).partition(". ")[0] for error in told] == [f"checkpoint not written: {shown}"] * 3
    assert [error and error.__cause__ for error in told] == errors


def test_finished_writes_are_no_error(tmp_path: Path) -> None:
    assert finish_on_ranks(tmp_path, [None, None]) == [None, None]


def test_write_that_fails_while_the_run_fails_is_named_in_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("where the folder should be")
    store = CheckpointStore(tmp_path / "file", keep_last=1)
    snapshots = Snapshots(store, run=RUN)
    snapshots._writer.start(partial(store.write, SaveJob(3, {}, {})))
    with caplog.at_level(logging.WARNING):
        snapshots.abandon(timeout_s=600.0)
    assert f"checkpoint not written: [Errno 20] Not a directory: '{tmp_path}/file/" in caplog.text


def test_failed_write_does_not_take_the_place_of_the_error_that_ends_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    snapshots = Snapshots(CheckpointStore(tmp_path, keep_last=1), run=RUN, start_step=5)
    snapshots._writer.start(fail_with(FULL))
    workers = Workers(0, 1, torch.device("cpu"))
    with caplog.at_level(logging.WARNING):
        snapshots.keep(cast(TrainingSession, SimpleNamespace(workers=workers)), 5)
    assert "No space left on device" in caplog.text
