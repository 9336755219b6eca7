"""The Ray Data stream: executes the plan on any number of machines, in order, and decides nothing.

Each row stands for one (step, rank). A map task builds a few consecutive ones and hands each on as one block, blocks
keep their order, and the number of rows is a multiple of the ranks W: under these conditions
`streaming_split(equal=True)` deals the rows out round-robin. Ray does not promise that, so every rank verifies what it
receives (`pipeline.stream.rank_step.verify`).

torch is imported where it is used: Ray loads this module in half a dozen helper processes that never use it, each of
which would spend seconds on that at every start.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext, DataIterator, Dataset, ExecutionOptions
from ray.train import DataConfig

from pipeline.errors import TransientError
from pipeline.parallel.task_numbers import read_task_numbers, task_numbers
from pipeline.parallel.worker_log import mark_own_lines
from pipeline.stream.marks import WorkMarks
from pipeline.stream.tasks import ROWS_PER_TASK, StreamTasks

if TYPE_CHECKING:
    from pipeline.stream.rank_step import BatchSource, RankStep

# Ray Data looks for finished tasks ten times a second: without a task waiting at each worker, workers would idle.
_TASKS_IN_FLIGHT = 3
_MAX_RETRIES = 2  # a map task that keeps killing its worker must end the run, not be retried endlessly
_NO_PROGRESS_TIMEOUT_S = 300


class RankStepBuilder:
    """Map function of the stream, alive in each data worker: task numbers in, rank-steps out, one per block."""

    def __init__(self, tasks: StreamTasks) -> None:
        import pipeline.stream.rank_step  # noqa: F401  # seconds of imports, before the first task instead of in it

        mark_own_lines()
        source: BatchSource = ray.get(tasks.source)
        self._source = dataclasses.replace(source, refused=tasks.refused, marks=tasks.marks)
        self._tasks = tasks

    def __call__(self, numbers: pa.Table) -> Iterator[pa.Table]:
        """Build the rank-steps of tasks, yielding each as soon as it is ready."""
        from pipeline.stream.rank_step import build_rank_step
        from pipeline.stream.transport import to_row

        for number in task_numbers(numbers):
            for step, rank in self._tasks.places(number):
                plan = self._source.plan.split(step, self._tasks.num_ranks)[rank]
                yield to_row(build_rank_step(self._source, plan))


def build_dataset(
    source: ray.ObjectRef[BatchSource],
    *,
    start_step: int,
    end_step: int,
    num_ranks: int,
    data_workers: int,
    refused: Mapping[int, str],
    marks: WorkMarks,
) -> Dataset:
    """Describe the stream of all rank-steps from `start_step` to `end_step`; nothing runs yet.

    Args:
        source: plan, index and encoder in Ray's object store.
        start_step: first optimizer step, taken from the checkpoint that the weights come from.
        end_step: optimizer steps of the run.
        num_ranks: number of training workers W.
        data_workers: most processes that build rank-steps.
        refused: samples that no process may decode.
        marks: where they mark what they work on.
    """
    _configure(DataContext.get_current())
    tasks = StreamTasks(source, start_step, end_step, num_ranks, refused, marks)
    with warnings.catch_warnings():
        # max_task_retries has no named parameter in Ray 2.60, whose warning asks for named parameters only
        warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")
        return read_task_numbers(tasks.num_tasks).map_batches(
            RankStepBuilder,
            fn_constructor_args=(tasks,),
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=1,
            compute=ActorPoolStrategy(
                min_size=1,  # a cluster with fewer free CPUs than asked for still trains
                max_size=data_workers,
                initial_size=data_workers,
                max_tasks_in_flight_per_actor=_TASKS_IN_FLIGHT,
            ),
            max_task_retries=_MAX_RETRIES,
        )


@dataclasses.dataclass(frozen=True)
class NoStream:
    """What a worker gets instead of its share when the start is an error."""

    origin: Exception


@dataclasses.dataclass(frozen=True)
class StreamStart:
    """What Ray Train carries instead of a dataset until it knows the number of workers."""

    step: int
    """First optimizer step."""
    refused: Mapping[int, str]
    """Samples that must not be decoded."""
    origin: Any
    """What the step was taken from, or the error that ends the run; handed to the workers with their data."""


class PlanIngest(DataConfig):  # type: ignore[misc]  # Ray Train publishes no types
    """Ray Train's ingest of a plan: builds the stream for the number of workers that a start really has.

    The public way to do so is to override `configure`, which Ray Train calls once per start of the worker group.
    """

    def __init__(
        self, build: Callable[[StreamStart, int], Dataset], record: Callable[[StreamStart, int], StreamStart]
    ) -> None:
        """Let `record(start, number of ranks)` have its say about each start, and build streams with `build`."""
        super().__init__(datasets_to_split="all", execution_options=ExecutionOptions(preserve_order=True))
        self._build, self._record = build, record

    def configure(
        self, datasets: dict[str, StreamStart], world_size: int, *args: Any, **kwargs: Any
    ) -> list[dict[str, DataIterator | NoStream]]:
        """Return each worker's share of the stream; `origin` of the start travels along as an attribute."""
        datasets = {name: self._record(start, world_size) for name, start in datasets.items()}
        errors = {name: start.origin for name, start in datasets.items() if isinstance(start.origin, Exception)}
        if errors:  # building the stream may be what fails at every start
            return [{name: NoStream(error) for name, error in errors.items()} for _ in range(world_size)]
        streams = {name: self._build(start, world_size) for name, start in datasets.items()}
        shares: list[dict[str, DataIterator]] = super().configure(streams, world_size, *args, **kwargs)
        for share in shares:
            for name, iterator in share.items():
                iterator.origin = datasets[name].origin
        return [{**share} for share in shares]


def iterate_stream(
    shard: DataIterator, source: BatchSource, *, start_step: int, rank: int, num_ranks: int, prefetch_steps: int
) -> Iterator[RankStep]:
    """Yield this rank's steps, each verified against the rank's own plan.

    Raises:
        PlanMismatchError: a row is not the one this rank must train next.
        TransientError: the stream ended before the run did.
    """
    from pipeline.stream.rank_step import verify
    from pipeline.stream.transport import from_row

    batches = shard.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=prefetch_steps)
    rows = (batch.slice(idx, 1) for batch in batches for idx in range(batch.num_rows))
    step = start_step
    for row in rows:
        yield verify(from_row(row), source.plan.split(step, num_ranks)[rank])
        step += 1
    if step != source.plan.total_steps:
        raise TransientError(
            f"rank {rank}: the data stream ended before step {step}, the run has {source.plan.total_steps} steps; "
            "start the run again, it resumes from its checkpoint"
        )


def _configure(context: DataContext) -> None:
    context.execution_options.preserve_order = True
    context.target_max_block_size = 1  # bytes: every yielded table becomes a block of its own
    context.target_min_block_size = 1
    # A task that runs ahead of its turn may finish all its rows; the default of two would make workers wait.
    context._max_num_blocks_in_streaming_gen_buffer = 2 * ROWS_PER_TASK
    # A worker that waits costs less than one that has to be started again.
    context.autoscaling_config.actor_pool_util_downscaling_threshold = 0.0
    context.execution_no_progress_timeout_s = _NO_PROGRESS_TIMEOUT_S
    context.enable_progress_bars = False
    context.print_on_execution_start = False
