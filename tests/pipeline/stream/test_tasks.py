"""How a stream is cut into tasks: every rank-step of every step once, in order, for any number of ranks."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.stream.marks import WorkMarks
from pipeline.stream.tasks import ROWS_PER_TASK, StreamTasks


def tasks_of(start_step: int, end_step: int, num_ranks: int) -> StreamTasks:
    return StreamTasks(None, start_step, end_step, num_ranks, {}, WorkMarks(Path("unused")))


@pytest.mark.parametrize("num_ranks", [1, 3, ROWS_PER_TASK, 11])
@pytest.mark.parametrize(("start_step", "end_step"), [(0, 1), (5, 18), (7, 7 + ROWS_PER_TASK)])
def test_places_of_all_tasks_are_every_step_and_rank_once_in_order(
    num_ranks: int, start_step: int, end_step: int
) -> None:
    tasks = tasks_of(start_step, end_step, num_ranks)
    places = [place for number in range(tasks.num_tasks) for place in tasks.places(number)]
    assert places == [(step, rank) for step in range(start_step, end_step) for rank in range(num_ranks)]
    assert len(places) == tasks.num_rows
