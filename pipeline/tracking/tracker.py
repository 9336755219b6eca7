"""The driver's side of tracking: write down what to track, and send it from background threads.

No method waits for the server, so a slow, locked or dead one never stops or slows a run.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from pipeline.config import CheckpointConfig, TrackingConfig, load_config
from pipeline.run_folder.lease import hold_run
from pipeline.run_folder.place import shown
from pipeline.tracking.credentials import without_credentials
from pipeline.tracking.journal import RUN_DIR_TAG, Journal, flatten_params, resolve_tracking_uri
from pipeline.tracking.lineage import NOTE_TAG
from pipeline.tracking.operations import (
    AnyOperation,
    FinishRun,
    LogArtifacts,
    LogDataset,
    LogMetrics,
    LogModel,
    OpenRun,
    RunStatus,
    SetTags,
    TagModel,
    UseModel,
)
from pipeline.tracking.recovery import recover_position, recover_state
from pipeline.tracking.send_loop import SendLoop
from pipeline.tracking.sender import Sender

_LONGEST_PAUSE_S = 60.0
_LONGEST_FILE_PAUSE_S = 300.0  # each try may send gigabytes


class RunTracker:
    """One attempt at a run, as the tracking server will show it."""

    def __init__(self, run_dir: Path, sender: Sender | None, interval_s: float = 1.0) -> None:
        """Track into `run_dir`; start sending if there is a sender.

        Args:
            run_dir: Folder of the run, with its journal and its metrics file.
            sender: Sends to the server; None only writes the journal, for `replay` to send later.
            interval_s: Pause between two looks at the files.
        """
        self._run_dir = run_dir.resolve()
        self._journal = Journal(run_dir)
        self._sender = sender
        self._records: SendLoop | None = None
        self._files: SendLoop | None = None
        if sender is not None:
            tell, send_files = self._describe_failure, sender.artifacts.send
            self._records = SendLoop(sender.send, tell, interval_s=interval_s, longest_pause_s=_LONGEST_PAUSE_S)
            self._files = SendLoop(send_files, tell, interval_s=interval_s, longest_pause_s=_LONGEST_FILE_PAUSE_S)

    @property
    def tracking_uri(self) -> str | None:
        """Where the run is sent, without credentials; None if it is not."""
        return without_credentials(self._sender.state.tracking_uri) if self._sender else None

    @property
    def run_id(self) -> str | None:
        """The MLflow run id, once the server has given one."""
        return self._sender.state.run_id if self._sender else None

    @property
    def experiment_id(self) -> str | None:
        """The MLflow experiment id, once known."""
        return self._sender.state.experiment_id if self._sender else None

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Add or replace tags of the run."""
        self._write(SetTags(time_s=time.time(), tags=dict(tags)))

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Log numbers from outside the training loop; the loop's own are read from metrics.jsonl."""
        self._write(LogMetrics(time_s=time.time(), metrics=dict(metrics), step=step))

    def log_dataset(self, *, name: str, digest: str, shards: Sequence[str], num_samples: int, context: str) -> None:
        """Log the data that the run uses.

        Args:
            name: Name shown for the dataset.
            digest: Fingerprint of the index; equal data has an equal digest. MLflow keeps 36 characters.
            shards: Paths or URLs of the shards.
            num_samples: Usable samples in them.
            context: What the data is for, such as `training`.
        """
        self._write(
            LogDataset(
                time_s=time.time(),
                name=name,
                digest=digest,
                shards=tuple(shards),
                num_samples=num_samples,
                context=context,
            )
        )

    def log_artifacts(self, path: str | Path, artifact_path: str | None = None) -> None:
        """Store a file, or the content of a folder, with the run; it must stay in place until it was sent."""
        self._write(LogArtifacts(time_s=time.time(), path=self._in_run_dir(Path(path)), artifact_path=artifact_path))

    def log_model(self, model: LogModel) -> None:
        """Log a model with its metrics; its files, if it has any, must stay in place until they were sent."""
        path = None if model.path is None else self._in_run_dir(Path(model.path))
        self._write(model.model_copy(update={"path": path}))

    def tag_model(self, name: str, tags: Mapping[str, str]) -> None:
        """Add tags to a model logged before."""
        self._write(TagModel(time_s=time.time(), name=name, tags=dict(tags)))

    def use_model(self, experiment_id: str, run_id: str, name: str) -> None:
        """Name a model of another run as what this run starts from."""
        self._write(UseModel(time_s=time.time(), experiment_id=experiment_id, run_id=run_id, name=name))

    def model_names(self) -> set[str]:
        """Return the models logged so far, by every attempt."""
        return {operation.name for operation in self._journal.read() if isinstance(operation, LogModel)}

    def finish(self, status: RunStatus) -> None:
        """Give the run its end and status."""
        self._write(FinishRun(time_s=time.time(), status=status))

    def close(self, timeout_s: float = 30.0) -> int:
        """Wait until everything is sent, at most `timeout_s`; returns how many records and files are not.

        Files wait for the records, of which some name them, never the other way round.
        """
        if self._sender is None or self._records is None or self._files is None:
            return 0
        deadline = time.monotonic() + timeout_s
        self._records.close(timeout_s)
        if not self._records.thread.is_alive():
            self._files.close(max(0.0, deadline - time.monotonic()))
        return self._sender.num_pending()

    def pending_files(self) -> list[str]:
        """Name the files that the server has not, as the run's artifacts will show them."""
        return self._sender.artifacts.names() if self._sender else []

    def _in_run_dir(self, path: Path) -> str:
        """Return a path relative to the run folder, which may be moved before it is sent; absolute if outside."""
        place = path.resolve()
        return str(place.relative_to(self._run_dir) if place.is_relative_to(self._run_dir) else place)

    def _describe_failure(self, error: Exception) -> str:
        reason = without_credentials(str(error))
        return f"MLflow at {self.tracking_uri}: {reason}; training continues, sending will be retried"

    def _write(self, operation: AnyOperation) -> None:
        self._journal.append(operation)
        if self._records is not None:
            self._records.wake()


class TrackedRun(NamedTuple):
    """A run as its tracker must know it."""

    run_dir: Path
    name: str
    stage: str
    tracking: TrackingConfig
    checkpoint: CheckpointConfig
    """Where another note of the MLflow run is."""
    record: Mapping[str, Any]
    """The run's config, as `ExperimentConfig.to_record` returns it; its leaves become the run's params."""
    description: str
    """What a colleague reads on the run's page."""


def open_run(run: TrackedRun, tags: Mapping[str, str], interval_s: float = 1.0) -> RunTracker:
    """Start tracking a run, or continue the one that its folder holds; returns without waiting for the server.

    Tracking that is switched off in the config is still written down, so that `replay` can send it later.

    Args:
        run: The run.
        tags: Facts about this run besides its name and stage, such as its lineage.
        interval_s: Pause between two looks at the metrics file.
    """
    run_dir = run.run_dir
    run_dir.mkdir(parents=True, exist_ok=True)
    journal = Journal(run_dir)
    journal.repair()
    recover_position(run_dir)
    attempt = 1 + sum(isinstance(operation, OpenRun) for operation in journal.read())
    journal.append(
        OpenRun(
            time_s=time.time(),
            attempt=attempt,
            experiment=run.tracking.experiment,
            run_name=run.name,
            params=flatten_params(run.record),
            tags={
                "ray_llava.stage": run.stage,
                RUN_DIR_TAG: shown(run_dir.resolve()),
                **tags,
                NOTE_TAG: "\n\n".join(filter(None, (run.description, tags.get(NOTE_TAG)))),
            },
            config_yaml=yaml.safe_dump(dict(run.record), sort_keys=False),
        )
    )
    if not run.tracking.enabled:
        return RunTracker(run_dir, None)
    recover_state(run_dir, run.checkpoint)
    uri = resolve_tracking_uri(run.tracking.uri, os.environ, run_dir)
    return RunTracker(run_dir, Sender(run_dir, uri), interval_s)


def replay(run_dir: Path, tracking_uri: str | None) -> Sender:
    """Send everything of a run folder that the server lacks; returns the sender with its final state.

    Args:
        run_dir: Folder of the run, which is held during the call.
        tracking_uri: Where to send it; None takes what the run's config, or else the environment, says.

    Raises:
        ValueError: the folder holds no tracked run, or the server refuses it.
        RunHeldError: the run is active and sends by itself.
        ConnectionError: the server did not answer, or failed; or it did not take files, and has all else.
    """
    if not Journal(run_dir).path.is_file():
        raise ValueError(f"{shown(run_dir)}: no tracked run here ({Journal(run_dir).path.name} is missing)")
    from pipeline.tracking.mlflow_run import failures_explained  # takes two seconds

    with hold_run(run_dir):
        if (saved := run_dir / "config.yaml").is_file():
            config = load_config(saved)
            recover_state(run_dir, config.checkpoint)
            tracking_uri = tracking_uri or config.tracking.uri
        recover_position(run_dir)
        sender = Sender(run_dir, resolve_tracking_uri(tracking_uri, os.environ, run_dir))
        with failures_explained(sender.state.tracking_uri):
            sender.send()
            sender.artifacts.send()
    return sender
