"""The numbers of tasks as a Ray Data source: what a map over tasks, not over data, begins with.

The counter requests zero CPUs; `ray.data.range` requests one and would deadlock where data workers hold all CPUs.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pyarrow as pa
import ray
from ray.data import Dataset, Datasource
from ray.data.block import BlockMetadata
from ray.data.datasource import ReadTask

_TASKS_PER_READ = 256  # all reads are listed at the start, their numbers only when the stream comes to them
NUMBER = "number"
"""The column that holds them."""
"""The column that holds them."""
_BYTES_PER_NUMBER = 8


def read_task_numbers(num_tasks: int) -> Dataset:
    """Return the numbers of all tasks, each a block of its own; `task_numbers` reads a block."""
    num_reads = -(-num_tasks // _TASKS_PER_READ)
    return ray.data.read_datasource(TaskNumbers(num_tasks), num_cpus=0, override_num_blocks=num_reads)


def task_numbers(block: pa.Table) -> list[int]:
    """Return the task numbers in a block."""
    numbers: list[int] = block[NUMBER].to_pylist()
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
        yield pa.table({NUMBER: pa.array([number], pa.int64())})
