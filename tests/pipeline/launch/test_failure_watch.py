"""What is told when workers start again: the first cause, its rank, and where the traceback is."""

from __future__ import annotations

from pathlib import Path

from pipeline.launch.failure_watch import FailureWatch
from pipeline.run_folder.restarts import record_failure, record_start


def fail(run_dir: Path, rank: int, step: int, text: str) -> None:
    try:
        raise RuntimeError(text)
    except RuntimeError as error:
        record_failure(run_dir, 2, rank=rank, step=step, error=error)


def test_watch_tells_each_restart_with_the_first_failure_of_the_start_before(tmp_path: Path) -> None:
    record_start(tmp_path, attempt=1, step=0, max_restarts=5)  # of an earlier launcher
    told: list[tuple[int, str]] = []
    with FailureWatch(tmp_path, lambda number, cause: told.append((number, cause))):
        record_start(tmp_path, attempt=2, step=0, max_restarts=5, num_ranks=3)
        fail(tmp_path, 2, 7, "CUDA error: the cause")
        fail(tmp_path, 0, 7, "Connection closed by peer, which follows from it")
        record_start(tmp_path, attempt=2, step=5, max_restarts=5, num_ranks=3)
        record_start(tmp_path, attempt=2, step=5, max_restarts=5, num_ranks=3)
        record_start(tmp_path, attempt=2, step=5, max_restarts=5, num_ranks=2)
    file = tmp_path / "tracebacks" / "start-0002-rank-00002.txt"
    assert told == [
        (1, f"rank 2 at step 7: RuntimeError: CUDA error: the cause (traceback in {file})"),
        (2, "ended from outside: out of memory, lost node, signal"),
        (3, "the number of workers changed from 3 to 2"),
    ]
    assert "raise RuntimeError(text)" in file.read_text()
