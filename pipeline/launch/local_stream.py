"""Reading a rank's steps without Ray, also when preprocessing processes die: reopened at the step that is due.

A process that dies again and again over the same samples is looked into (`crashes`); a death without such a
cause is retried a few times.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

from pipeline.checkpoint.resume import find_position
from pipeline.checkpoint.verification import Position
from pipeline.config import ClusterConfig
from pipeline.launch.crashes.search import RunData, refused_samples
from pipeline.parallel.ranks import Workers
from pipeline.parallel.stop_signals import stop_requests
from pipeline.run_folder.place import place_in
from pipeline.run_folder.restarts import record_start
from pipeline.stream.marks import WorkMarks
from pipeline.stream.rank_step import BatchSource, RankStep, iterate_locally
from pipeline.training.notices import SignalNotices
from pipeline.training.worker import RankJob

logger = logging.getLogger(__name__)

OpenOnce = Callable[[int, Mapping[int, str]], Iterator[RankStep]]
"""Given the first step and the refused samples, yields steps to the end of the run."""

_MAX_REOPENED = 3  # times without a step in between


class RankStream(NamedTuple):
    """The data of a rank without Ray, and where its part of the run begins."""

    open: Callable[[int], Iterator[RankStep]]
    """Given the first step, yields this rank's steps to the end of the run."""
    position: Position | None
    """The checkpoint to continue from, the same on all ranks."""
    notices: SignalNotices


@contextmanager
def open_rank_stream(
    job: RankJob, cluster: ClusterConfig, source: BatchSource, workers: Workers
) -> Iterator[RankStream]:
    """Yield a rank's stream; stop signals become notices meanwhile. All ranks take part.

    Args:
        job: the run.
        cluster: says how many processes read, and how far ahead.
        source: data and plan of the run.
        workers: this rank among the others.
    """
    run_dir = job.run_dir
    marks = WorkMarks(place_in(run_dir, f"working/rank-{workers.rank:05d}"))
    data = RunData(str(run_dir), source.plan.data_fingerprint, lambda: source.index, marks)

    def open_once(start_step: int, refused: Mapping[int, str]) -> Iterator[RankStep]:
        return iterate_locally(
            dataclasses.replace(source, refused=refused, marks=marks),
            start_step=start_step,
            rank=workers.rank,
            num_ranks=workers.world_size,
            num_workers=cluster.data_workers,
            prefetch_steps=cluster.prefetch_steps,
            pin=workers.device.type == "cuda",
        )

    with stop_requests() as requested:

        def open_stream(start_step: int) -> Iterator[RankStep]:
            return iterate_despite_deaths(open_once, data, start_step, requested.is_set)

        position = workers.gather(find_position(run_dir, job.checkpoint) if workers.is_first else None)[0]
        if workers.is_first:
            record_start(
                run_dir, job.attempt, position.step if position else 0, cluster.max_failures, workers.world_size
            )
        yield RankStream(open_stream, position, SignalNotices(requested.is_set))


def iterate_despite_deaths(
    open_once: OpenOnce, data: RunData, start_step: int, stop_requested: Callable[[], bool] = lambda: False
) -> Iterator[RankStep]:
    """Yield this rank's steps from `start_step` on.

    Args:
        open_once: opens the stream.
        data: what is read, for the search after a death.
        start_step: first optimizer step.
        stop_requested: whether the run is to end soon. Then a death is not looked into: the search takes longer than a
            process is given to end, and the next start makes up for it if the samples are to blame.

    Raises:
        RuntimeError: preprocessing processes keep dying, and no sample is to blame.
    """
    step, num_reopened = start_step, 0
    refused = refused_samples(data)
    while True:
        try:
            for rank_step in open_once(step, refused):
                yield rank_step
                step, num_reopened = rank_step.step + 1, 0
            return
        except RuntimeError as error:
            if not _is_death_of_worker(error) or num_reopened == _MAX_REOPENED:
                raise
            logger.warning("step %d: %s; reading on from this step with new processes", step, error)
            num_reopened += 1
            if not stop_requested():
                refused = refused_samples(data, died=True)


def _is_death_of_worker(error: RuntimeError) -> bool:
    """Tell whether torch's DataLoader reports a process that ended by itself; it has no class for that."""
    return "exited unexpectedly" in str(error) or "is killed by signal" in str(error)
