"""What Ray Train calls at every start of its workers: where the run continues, and with which samples and ranks.

Decided once per start and carried to the workers with their data, so that weights and data cannot come from two
checkpoints. Like `pipeline.stream.ray_stream` this imports torch nowhere.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import ray
from ray.data import Dataset

from pipeline.checkpoint.manifest import CheckpointError
from pipeline.checkpoint.resume import find_position
from pipeline.config import ExperimentConfig
from pipeline.launch.crashes.search import RunData, refused_samples
from pipeline.parallel.worker_log import mark_own_lines
from pipeline.run_folder.place import place_in, working_folder
from pipeline.run_folder.restarts import CrashLoopError, record_start
from pipeline.stream.marks import WorkMarks
from pipeline.stream.ray_stream import StreamStart, build_dataset

if TYPE_CHECKING:
    from pipeline.index.index import ShardIndex
    from pipeline.stream.rank_step import BatchSource


@dataclasses.dataclass(frozen=True)
class RunStart:
    """Decides where workers start; called by Ray Train's controller for every worker group."""

    config: ExperimentConfig
    data: RunData
    attempt: int
    total_steps: int

    def __call__(self) -> StreamStart:
        """Return the start; an error that another start would raise again replaces its origin."""
        mark_own_lines()  # the first of our code that runs in the controller
        try:
            position = find_position(self.config.run_dir, self.config.checkpoint)
        except (CheckpointError, OSError) as error:
            return StreamStart(0, {}, error)
        done = 0 if position is None else position.step
        # With nothing left to train the workers never open the stream; one step keeps Ray's split well-formed.
        return StreamStart(min(done, self.total_steps - 1), refused_samples(self.data), position)

    def record(self, start: StreamStart, num_ranks: int) -> StreamStart:
        """Write down that so many workers start; returns the start, or one whose origin is the error that forbids it.

        Ray Train asks where to start before it knows how many will, and again whenever their number changes.
        """
        if isinstance(start.origin, Exception):
            return start
        done = 0 if start.origin is None else start.origin.step
        try:
            run_dir, most = working_folder(self.data.run_dir), self.config.cluster.max_failures
            record_start(run_dir, self.attempt, done, most, num_ranks)
        except (CrashLoopError, OSError) as error:
            return dataclasses.replace(start, origin=error)
        return start


@dataclasses.dataclass(frozen=True)
class StreamBuilder:
    """Builds the stream of a start for the number of workers it has."""

    config: ExperimentConfig
    source: ray.ObjectRef[BatchSource]
    total_steps: int

    def __call__(self, start: StreamStart, num_ranks: int) -> Dataset:
        """Describe the stream; nothing runs yet."""
        return build_dataset(
            self.source,
            start_step=start.step,
            end_step=self.total_steps,
            num_ranks=num_ranks,
            data_workers=self.config.cluster.data_workers,
            refused=start.refused,
            marks=_stream_marks(self.config.run_dir),
        )


def run_data(run_dir: str, data_fingerprint: str, source: ray.ObjectRef[BatchSource]) -> RunData:
    """Describe the data of a run without carrying its index."""
    return RunData(run_dir, data_fingerprint, _FetchIndex(source), _stream_marks(run_dir))


@dataclasses.dataclass(frozen=True)
class _FetchIndex:
    source: ray.ObjectRef[BatchSource]

    def __call__(self) -> ShardIndex:
        source: BatchSource = ray.get(self.source)
        return source.index


def _stream_marks(run_dir: str) -> WorkMarks:
    """Return where map tasks of a run mark what they work on."""
    return WorkMarks(place_in(run_dir, "working/ray"))
