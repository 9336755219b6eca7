"""The rows of a stream, (step, rank) by (step, rank), in tasks of a few rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.stream.marks import WorkMarks

if TYPE_CHECKING:
    import ray

    from pipeline.stream.rank_step import BatchSource

ROWS_PER_TASK = 8
"""Fewer tasks cost less scheduling; more rows delay the first step, and what a retry repeats."""


@dataclass(frozen=True)
class StreamTasks:
    """Which rank-steps a stream holds, and what building them needs."""

    source: ray.ObjectRef[BatchSource]
    start_step: int
    end_step: int
    num_ranks: int
    refused: Mapping[int, str]
    """Samples that no process may decode."""
    marks: WorkMarks
    """Where processes mark what they work on."""

    @property
    def num_rows(self) -> int:
        """Rank-steps of the whole stream."""
        return (self.end_step - self.start_step) * self.num_ranks

    @property
    def num_tasks(self) -> int:
        """Tasks of the whole stream."""
        return -(-self.num_rows // ROWS_PER_TASK)

    def places(self, task: int) -> Iterator[tuple[int, int]]:
        """Yield step and rank of each row of a task."""
        first = task * ROWS_PER_TASK
        for row in range(first, min(first + ROWS_PER_TASK, self.num_rows)):
            step, rank = divmod(row, self.num_ranks)
            yield self.start_step + step, rank
