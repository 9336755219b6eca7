"""Taking a snapshot of a run and writing it in the background: what a checkpoint contains, and when it counts."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pipeline.checkpoint.background import BackgroundWriter
from pipeline.checkpoint.base_weights import digest_weights
from pipeline.checkpoint.state import HostCopies
from pipeline.checkpoint.store import CheckpointStore, MissingShareError, SaveJob, new_token
from pipeline.checkpoint.tensor_file import whole
from pipeline.config import BestMetric, CheckpointConfig, ModelConfig
from pipeline.run_folder.fault_points import reached
from pipeline.training.session import TrainingSession

logger = logging.getLogger(__name__)


class CheckpointWriteError(OSError):
    """A checkpoint could not be written; the one before it is intact."""


@dataclass(frozen=True)
class SavedRun:
    """What a checkpoint says of its run, besides what each step changes."""

    attempt: int
    """Number under which the launcher holds the run folder."""
    checkpoint: CheckpointConfig
    is_sharded: bool
    """Whether each rank holds a share of the weights."""
    model: ModelConfig
    record: Mapping[str, Any]
    """The run's config, as `ExperimentConfig.to_record` returns it."""
    best: BestMetric | None = None
    """What decides which checkpoints are the best; None for the smoothed training loss."""

    def writes_own_shards(self, world_size: int) -> bool:
        """Whether each rank writes what it holds."""
        return self.is_sharded and world_size > 1 and self.checkpoint.layout == "sharded"

    @property
    def facts(self) -> dict[str, Any]:
        """The part of a manifest's facts that is the same at every step, unless weight files change."""
        digest = hashlib.sha256(json.dumps(self.record, sort_keys=True).encode()).hexdigest()
        weights = digest_weights(self.model)
        facts = {"attempt": self.attempt, "weights": weights, "config": self.record, "config_sha256": digest}
        return facts | ({} if self.best is None else {"score_metric": self.best.name, "score_mode": self.best.mode})


class Snapshots:
    """Copies the run to host memory and writes the copy in the background, one at a time.

    The error of a write surfaces on every rank at the next snapshot, or in `finish`.
    """

    def __init__(self, store: CheckpointStore, run: SavedRun, start_step: int = 0) -> None:
        self._store, self._run, self._newest_step = store, run, start_step
        self._copies, self._writer = HostCopies(), BackgroundWriter()
        self._stall_s = 0.0

    def times(self) -> dict[str, float]:
        """Return, as metrics, how long training waited for the last snapshot and how long the last write took."""
        if not self._stall_s:
            return {}
        return {"perf/checkpoint_stall_s": self._stall_s, "perf/checkpoint_write_s": self._writer.last_duration_s}

    def is_due(self, next_step: int) -> bool:
        """Whether the steps before this one end with a checkpoint."""
        return next_step % self._run.checkpoint.every_steps == 0

    def save(self, session: TrainingSession, next_step: int) -> None:
        """Take a snapshot and start writing it; all ranks take part.

        Raises:
            LedgerError: samples planned and samples accounted for differ.
            CheckpointWriteError: the checkpoint before this one could not be written.
        """
        started = time.perf_counter()
        session.ledger.check(session.plan.num_planned(next_step), session.plan.planned_by_source(next_step))
        self.finish(session)
        workers = session.workers
        own_shards = self._run.writes_own_shards(workers.world_size)
        groups = self._copies.take(session.model, session.optimizer, own_shards=own_shards, is_first=workers.is_first)
        shares = workers.gather((random_state(workers.device), new_token(self._run.attempt)))
        if workers.is_first:
            groups["random"] = {
                f"{name}.{rank}": whole(state) for rank, (own, _) in enumerate(shares) for name, state in own.items()
            }
        if workers.is_first or own_shards:
            job = SaveJob(
                step=next_step,
                groups=groups,
                state=self._run.facts | _facts(session, next_step) if workers.is_first else {},
                score=self._score(session, next_step),
                token=shares[0][1],
                rank=workers.rank,
                num_writers=workers.world_size if own_shards else 1,
            )
            reached("checkpoint.snapshot_taken")
            self._writer.start(partial(self._store.write, job))
        self._newest_step = next_step
        self._stall_s = time.perf_counter() - started

    def _score(self, session: TrainingSession, next_step: int) -> float | None:
        """Return what retention compares: the deciding metric if it was measured here, or the training loss."""
        if self._run.best is None:
            return session.trend.smoothed_loss
        newest, step = session.best.newest, session.best.newest_step
        return self._run.best.rank(newest) if newest is not None and step == next_step else None

    def keep(self, session: TrainingSession, next_step: int) -> None:
        """Save what is newer than the last snapshot, and wait until it is durable; for a run that ends by an error.

        A failed write is only a warning here, so that it does not hide the error.

        Raises:
            LedgerError: samples planned and samples accounted for differ.
        """
        try:
            if next_step > self._newest_step:
                self.save(session, next_step)
            self.finish(session)
        except CheckpointWriteError as error:
            logger.warning("%s", error)

    def finish(self, session: TrainingSession) -> None:
        """Wait until the last snapshot is durable; all ranks take part.

        Raises:
            CheckpointWriteError: it could not be written.
        """
        own = self._writer.finish()
        failures = session.workers.gather(None if own is None else _describe(own, session.workers.rank))
        first = _first_cause([failure for failure in failures if failure is not None])
        if first is not None:
            raise CheckpointWriteError(
                f"checkpoint not written: {first}. The checkpoint before it is intact; make room or repair the "
                f"storage at {self._store.storage.location}, then start the same command again"
            ) from own

    def abandon(self, timeout_s: float) -> None:
        """Give a write in flight some seconds to end, without other ranks; for a run that is failing."""
        self._store.hurry()
        error = self._writer.finish(timeout_s)
        if error is not None:
            logger.warning("checkpoint not written: %s; the checkpoint before it is intact", error)


def random_state(device: torch.device) -> dict[str, Tensor]:
    """Return this process's generator states."""
    states = {"cpu": torch.get_rng_state()}
    return states | {"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else states


class _Failure(NamedTuple):
    """Why a rank's share of a checkpoint was not written."""

    text: str
    is_cause: bool
    """False if it may be a consequence of another rank's error."""


def _describe(error: Exception, rank: int) -> _Failure:
    # a file is missing on a rank whose place was removed, since rank 0 had given the checkpoint up
    follows = isinstance(error, MissingShareError | FileNotFoundError)
    return _Failure(f"rank {rank}: {str(error) or type(error).__name__}", not follows)


def _first_cause(failures: list[_Failure]) -> str | None:
    """Return the failure to show: of the lowest rank whose own it is, else of the lowest rank."""
    return min(failures, key=lambda failure: not failure.is_cause).text if failures else None


def _facts(session: TrainingSession, next_step: int) -> dict[str, Any]:
    return {
        "world_size": session.workers.world_size,
        "plan_fingerprint": session.plan.fingerprint_before(next_step),
        "data_fingerprint": session.plan.data_fingerprint,
        "mlflow": _tracked_run(session.run_dir),
        "ledger": session.ledger.to_json(),
        "trend": session.trend.to_json(),
        "best": session.best.to_json(),
    }


def _tracked_run(run_dir: Path) -> dict[str, Any]:
    """Return which MLflow run this is, as far as the launching process has written it down."""
    try:
        known = json.loads((run_dir / "mlflow.json").read_text())
    except (OSError, json.JSONDecodeError):
        return {}
    return {name: known.get(name) for name in ("run_key", "run_id", "experiment_id", "tracking_uri")}
