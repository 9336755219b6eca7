"""What a start of the workers under Ray Train writes down, and which starts it forbids."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pipeline.checkpoint.verification import Position
from pipeline.launch.on_ray.start import RunStart
from pipeline.run_folder.restarts import RESTARTS_FILE, CrashLoopError
from pipeline.stream.ray_stream import StreamStart


def run_start(run_dir: Path) -> RunStart:
    config: Any = SimpleNamespace(cluster=SimpleNamespace(max_failures=1))
    data: Any = SimpleNamespace(run_dir=run_dir)
    return RunStart(config, data, attempt=1, total_steps=9)


def test_start_in_vain_carries_the_error_to_the_workers_and_a_change_of_their_number_is_none(tmp_path: Path) -> None:
    start = StreamStart(4, {}, Position("step-00000004", 4))
    for num_ranks in (2, 3, 4, 4):
        assert run_start(tmp_path).record(start, num_ranks) is start
    refused = [run_start(tmp_path).record(start, 4) for _ in range(2)][-1]
    assert isinstance(refused.origin, CrashLoopError)
    assert refused.step == 4


def test_run_folder_that_cannot_be_written_ends_the_run_by_its_own_error(tmp_path: Path) -> None:
    (tmp_path / RESTARTS_FILE).mkdir()
    refused = run_start(tmp_path).record(StreamStart(0, {}, None), 2)
    assert isinstance(refused.origin, OSError)


def test_start_that_is_an_error_already_is_not_written_down(tmp_path: Path) -> None:
    start = StreamStart(0, {}, OSError("away"))
    assert run_start(tmp_path).record(start, 2) is start
    assert list(tmp_path.iterdir()) == []
