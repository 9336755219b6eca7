"""The rows of a stream, (step, rank) by (step, rank), in tasks of a few rows; how Ray Data reads the tasks' numbers.

Its own range asks for a CPU to count with, and waits for ever where data workers hold all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import pyarrow as pa
import ray
from ray.data import Dataset, Datasource
from ray.data.block import BlockMetadata
from ray.data.datasource import ReadTask

from pipeline.crashes.marks import WorkMarks

if TYPE_CHECKING:
    from pipeline.loader import BatchSource

ROWS_PER_TASK = 8
"""Fewer tasks cost less scheduling; more rows delay the first step, and what a retry repeats."""
_TASKS_PER_READ = 256  # all reads are listed at the start, their numbers only when the stream comes to them
_NUMBER = "number"
_BYTES_PER_NUMBER = 8


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


def read_task_numbers(num_tasks: int) -> Dataset:
    """Return the numbers of all tasks, each a block of its own; `task_numbers` reads a block."""
    num_reads = -(-num_tasks // _TASKS_PER_READ)
    return ray.data.read_datasource(TaskNumbers(num_tasks), num_cpus=0, override_num_blocks=num_reads)


def task_numbers(block: pa.Table) -> list[int]:
    """Return the task numbers in a block."""
    numbers: list[int] = block[_NUMBER].to_pylist()
    return numbers


class TaskNumbers(Datasource):  # type: ignore[misc]  # Ray publishes no types
    """Ray Data source of the numbers of all tasks, each in a block of its own."""

    def __init__(self, num_tasks: int) -> None:
        super().__init__()
        self._num_tasks = num_tasks

    def estimate_inmemory_data_size(self) -> int:
        """Return bytes."""
        return _BYTES_PER_NUMBER * self._num_tasks

    def get_read_tasks(self, parallelism: int, *args: object, **kwargs: object) -> list[ReadTask]:
        """Return reads of consecutive numbers; `parallelism` is what `read_task_numbers` asks for already."""
        reads = [
            range(first, min(first + _TASKS_PER_READ, self._num_tasks))
            for first in range(0, self._num_tasks, _TASKS_PER_READ)
        ]
        return [
            ReadTask(
                partial(_blocks, numbers),
                BlockMetadata(len(numbers), _BYTES_PER_NUMBER * len(numbers), input_files=None, exec_stats=None),
            )
            for numbers in reads
        ]


def _blocks(numbers: range) -> Iterator[pa.Table]:
    for number in numbers:
        yield pa.table({_NUMBER: pa.array([number], pa.int64())})
