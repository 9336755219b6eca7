"""How Ray Data reads the numbers of tasks."""

from __future__ import annotations

from pipeline.parallel.task_numbers import TaskNumbers, task_numbers


def test_task_numbers_are_read_in_order_one_to_a_block_whatever_the_parallelism() -> None:
    for parallelism in (1, 17):
        reads = TaskNumbers(600).get_read_tasks(parallelism)
        numbers = [task_numbers(block) for read in reads for block in read()]
        assert numbers == [[number] for number in range(600)]
        assert sum(read.metadata.num_rows for read in reads) == 600
