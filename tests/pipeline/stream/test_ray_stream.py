"""What a stream does at its edges: a start that is an error, and an end that comes too early."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.stream import rank_step, transport
from pipeline.stream.ray_stream import PlanIngest, StreamStart, iterate_stream


def test_start_that_is_an_error_reaches_every_worker_and_builds_no_stream() -> None:
    error = RuntimeError("starting again is in vain")

    def build(_: StreamStart, num_ranks: int) -> Any:
        raise AssertionError(f"a stream for {num_ranks} ranks was built")

    def record(start: StreamStart, num_ranks: int) -> StreamStart:
        return dataclasses.replace(start, origin=error) if num_ranks == 2 else start

    shares = PlanIngest(build, record).configure({"train": StreamStart(3, {}, None)}, 2)
    assert [share["train"].origin for share in shares] == [error, error]


class Rows:
    """An iterator of a worker's share with so many rows."""

    def __init__(self, number: int) -> None:
        self._number = number

    def iter_batches(self, **_: Any) -> Iterator[Any]:
        batch = SimpleNamespace(num_rows=1, slice=lambda *_: None)
        return iter([batch] * self._number)


@pytest.mark.parametrize("delivered", [0, 2])
def test_stream_that_ends_early_is_an_error_that_says_where(monkeypatch: pytest.MonkeyPatch, delivered: int) -> None:
    monkeypatch.setattr(transport, "from_row", lambda row: row)
    monkeypatch.setattr(rank_step, "verify", lambda row, _plan: row)
    source: Any = SimpleNamespace(plan=SimpleNamespace(total_steps=7, split=lambda *_: [None]))
    start = 6 - delivered
    share: Any = Rows(delivered)
    steps = iterate_stream(share, source, start_step=start, rank=0, num_ranks=1, prefetch_steps=1)
    with pytest.raises(RuntimeError, match="ended before step 6, the run has 7 steps"):
        list(steps)
