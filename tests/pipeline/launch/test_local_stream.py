"""Reading on after a data process died, and when its samples are looked into."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from rich.console import Console

from pipeline.config import load_config
from pipeline.launch.crashes import search as crash_search
from pipeline.launch.crashes.search import RunData
from pipeline.launch.local_stream import iterate_despite_deaths
from pipeline.launch.prepare import prepare_source
from pipeline.stream.marks import WorkMarks
from pipeline.stream.rank_step import BatchSource, RankStep, build_rank_step
from tests.integration.conftest import WriteConfig


@pytest.fixture
def source(write_config: WriteConfig) -> BatchSource:
    return prepare_source(load_config(write_config("run")), console=Console(quiet=True))


@pytest.fixture
def examined(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Return the lists of samples that were decoded apart."""
    calls: list[list[int]] = []

    def find_crashers(_config: Path, suspects: list[int]) -> dict[int, str]:
        calls.append(suspects)
        return {}

    monkeypatch.setattr(crash_search, "find_crashers", find_crashers)
    return calls


def read(source: BatchSource, run_dir: Path, stop_requested: Callable[[], bool]) -> list[int]:
    """Return the steps that are read although the process that works on step 2 dies once."""
    marks = WorkMarks(run_dir / "working")
    data = RunData(str(run_dir), source.plan.data_fingerprint, lambda: source.index, marks)
    deaths = iter([True])

    def open_once(start_step: int, _refused: Mapping[int, str]) -> Iterator[RankStep]:
        for step in range(start_step, source.plan.total_steps):
            if step == 2 and next(deaths, False):
                Path(marks.folder).mkdir(parents=True)
                (Path(marks.folder) / "2-0-host-1-1.json").write_text(json.dumps([5, 7]))
                raise RuntimeError("DataLoader worker (pid(s) 1) exited unexpectedly")
            yield build_rank_step(source, source.plan.split(step, 1)[0])

    return [rank_step.step for rank_step in iterate_despite_deaths(open_once, data, 1, stop_requested)]


def test_samples_over_which_a_data_process_died_are_examined_and_reading_goes_on(
    source: BatchSource, tmp_path: Path, examined: list[list[int]]
) -> None:
    assert read(source, tmp_path, lambda: False) == list(range(1, source.plan.total_steps))
    assert examined == [[5, 7]]


def test_death_after_a_stop_request_is_not_looked_into(
    source: BatchSource, tmp_path: Path, examined: list[list[int]]
) -> None:
    assert read(source, tmp_path, lambda: True) == list(range(1, source.plan.total_steps))
    assert examined == []
    assert [path.name for path in (tmp_path / "working").glob("2-*")] == ["2-0-host-1-1.json"]  # the next start sees it
