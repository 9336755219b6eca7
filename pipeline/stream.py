"""The Ray Data stream: executes the plan on any number of machines, in order, and decides nothing.

Each row stands for one (step, rank). A map task builds rank-steps and hands each on as one block, blocks keep their
order, and the number of rows is a multiple of the ranks W: under these conditions `streaming_split(equal=True)` deals
the rows out round-robin. Ray does not promise that, so every rank verifies what it receives (`pipeline.loader.verify`).

torch is imported where it is used: Ray loads this module in half a dozen helper processes that never use it, each of
which would spend seconds on that at every start.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import ray
from ray.data import DataContext, DataIterator, Dataset, ExecutionOptions
from ray.train import DataConfig

from pipeline.crashes.marks import WorkMarks

if TYPE_CHECKING:
    from pipeline.loader import BatchSource, RankStep

_ROWS_PER_TASK = 8  # fewer tasks cost less scheduling; more rows delay the first step and a retry
_MAX_RETRIES = 2  # a map task that keeps killing its worker must end the run, not repeat for ever
_NO_PROGRESS_TIMEOUT_S = 300


@dataclass(frozen=True)
class RankStepBuilder:
    """Map function of the stream: row numbers in, rank-steps out, one per block."""

    source: ray.ObjectRef[BatchSource]
    start_step: int
    num_ranks: int
    refused: Mapping[int, str]
    marks: WorkMarks

    def __call__(self, rows: pa.Table) -> Iterator[pa.Table]:
        """Build the rank-steps of `rows` (column `id`, int64), yielding each as soon as it is ready."""
        _import_loader()
        from pipeline.loader import build_rank_step
        from pipeline.transport import to_row

        source = dataclasses.replace(_fetch(self.source), refused=self.refused, marks=self.marks)
        for row in rows["id"].to_pylist():
            step, rank = divmod(row, self.num_ranks)
            plan = source.plan.split(self.start_step + step, self.num_ranks)[rank]
            yield to_row(build_rank_step(source, plan))


@functools.lru_cache(maxsize=1)
def _import_loader() -> None:
    """Import what building needs; ends this process if that fails, so that Ray runs the task again in another one.

    Ray cancels tasks by an exception at any point, also in the middle of `import torch`, and hands the process to the
    next task. A half imported torch cannot be imported again: every task on that process would fail from then on.
    """
    try:
        import pipeline.loader  # noqa: F401
    except Exception:
        traceback.print_exc()
        os._exit(1)


@functools.lru_cache(maxsize=1)
def _fetch(reference: ray.ObjectRef[BatchSource]) -> BatchSource:
    """Get the source once per process: unpickling a tokenizer costs more than a rank-step."""
    source: BatchSource = ray.get(reference)
    return source


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
        data_workers: most map tasks at a time.
        refused: samples that no task may decode.
        marks: where tasks mark what they work on.
    """
    _configure(DataContext.get_current())
    num_rows = (end_step - start_step) * num_ranks
    rows = ray.data.range(num_rows, override_num_blocks=max(1, -(-num_rows // _ROWS_PER_TASK)))
    builder = RankStepBuilder(source, start_step, num_ranks, refused, marks)
    with warnings.catch_warnings():
        # max_retries has no named parameter yet in Ray 2.60, whose warning asks for named parameters only
        warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")
        return rows.map_batches(
            builder,
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=1,
            concurrency=data_workers,
            max_retries=_MAX_RETRIES,
        )


@dataclasses.dataclass(frozen=True)
class StreamStart:
    """What Ray Train carries in the place of a dataset until it knows how many workers there are."""

    step: int
    """First optimizer step."""
    refused: Mapping[int, str]
    """Samples that must not be decoded."""
    origin: Any
    """What the step was taken from; handed to the workers with their data."""


class PlanIngest(DataConfig):  # type: ignore[misc]  # Ray Train publishes no types
    """Ray Train's ingest of a plan: builds the stream for the number of workers that a start really has.

    The public way to do so is to override `configure`, which Ray Train calls once per start of the worker group.
    """

    def __init__(self, build: Callable[[StreamStart, int], Dataset]) -> None:
        """Build streams with `build(start, number of ranks)`."""
        super().__init__(datasets_to_split="all", execution_options=ExecutionOptions(preserve_order=True))
        self._build = build

    def configure(
        self, datasets: dict[str, StreamStart], world_size: int, *args: Any, **kwargs: Any
    ) -> list[dict[str, DataIterator]]:
        """Return each worker's share of the stream; `origin` of the start travels along as an attribute."""
        streams = {name: self._build(start, world_size) for name, start in datasets.items()}
        shares: list[dict[str, DataIterator]] = super().configure(streams, world_size, *args, **kwargs)
        for share in shares:
            for name, iterator in share.items():
                iterator.origin = datasets[name].origin
        return shares


def iterate_stream(
    shard: DataIterator, source: BatchSource, *, start_step: int, rank: int, num_ranks: int, prefetch_steps: int
) -> Iterator[RankStep]:
    """Yield this rank's steps, each verified against the rank's own plan.

    Raises:
        PlanMismatchError: a row is not the one this rank must train next.
        RuntimeError: the stream ended before the run did.
    """
    from pipeline.loader import verify
    from pipeline.transport import from_row

    batches = shard.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=prefetch_steps)
    rows = (batch.slice(idx, 1) for batch in batches for idx in range(batch.num_rows))
    step = start_step
    for step, row in enumerate(rows, start=start_step):
        yield verify(from_row(row), source.plan.split(step, num_ranks)[rank])
    if step + 1 != source.plan.total_steps:
        raise RuntimeError(
            f"rank {rank}: the data stream ended after step {step}, the run has {source.plan.total_steps} steps; "
            "start the run again, it resumes from its checkpoint"
        )


def _configure(context: DataContext) -> None:
    context.execution_options.preserve_order = True
    context.target_max_block_size = 1  # bytes: every yielded table becomes a block of its own
    context.target_min_block_size = 1
    # A task that runs ahead of its turn may finish all its rows; the default of two would leave workers idle.
    context._max_num_blocks_in_streaming_gen_buffer = 2 * _ROWS_PER_TASK
    context.execution_no_progress_timeout_s = _NO_PROGRESS_TIMEOUT_S
    context.enable_progress_bars = False
    context.print_on_execution_start = False
