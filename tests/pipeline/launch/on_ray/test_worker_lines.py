"""Lines of workers: the project's own reach the driver's log once, all others a file of the run folder."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest
from ray._private.ray_logging import global_worker_stdstream_dispatcher as dispatcher

from pipeline.launch.on_ray.worker_lines import LINES_FILE, worker_lines_apart
from pipeline.parallel.worker_log import parse_line

WORKER = """
import logging
from ray._private import worker
from pipeline.parallel.worker_log import mark_own_lines
mark_own_lines()
assert logging.getLogger("pipeline").propagate  # no process of Ray yet
worker.global_worker.set_mode(worker.WORKER_MODE)
mark_own_lines()
mark_own_lines()
logging.getLogger("pipeline.training.snapshot").warning("disk full\\nat %s", "/x")
logging.getLogger("ray.train").warning("of Ray")
"""


@pytest.fixture
def lines_of_a_worker() -> list[str]:
    """What a process that marked its own lines has printed."""
    done = subprocess.run([sys.executable, "-c", WORKER], capture_output=True, text=True, check=True)
    return done.stderr.splitlines()


def test_worker_writes_each_record_as_one_line_that_can_be_read_back(lines_of_a_worker: list[str]) -> None:
    own, other = lines_of_a_worker
    assert parse_line(f"[36m(rank pid=7)[0m {own}") == (30, "pipeline.training.snapshot", "disk full\nat /x")
    assert (parse_line(other), parse_line(own[:-3])) == (None, None)


def test_driver_shows_own_lines_once_and_keeps_the_others_in_a_file(
    tmp_path: Path, lines_of_a_worker: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    def shown(_: object) -> None:
        raise AssertionError("Ray's own handler was called")

    dispatcher.add_handler("ray_print_logs", shown)
    try:
        with caplog.at_level(logging.INFO), worker_lines_apart(str(tmp_path / "run")) as path:
            for pid in (7, 11):  # two ranks that say the same
                lines = [*lines_of_a_worker, "Traceback"]
                dispatcher.emit({"lines": lines, "pid": pid, "ip": "h", "actor_name": "Rank"})
            logging.getLogger("ray").warning("node lost")
        assert [name for name, _ in dispatcher.handlers] == ["ray_print_logs"]
    finally:
        dispatcher.remove_handler("ray_print_logs")
    assert path == tmp_path / "run" / LINES_FILE
    text = path.read_text()
    assert [text.count(word) for word in ("of Ray", "Traceback", "(Rank 11 on h)", "node lost")] == [2, 2, 2, 1]
    assert "disk full" not in text
    own = [record for record in caplog.records if record.name == "pipeline.training.snapshot"]
    assert [(record.levelno, record.getMessage()) for record in own] == [(30, "disk full\nat /x (Rank 7 on h)")]
    assert caplog.text.count(f"prints goes to {path}") + caplog.text.count(f"print goes to {path}") == 1
