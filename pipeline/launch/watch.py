"""What a person sees of a run: progress on the console and, unless switched off, the run in MLflow."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console

from pipeline.assembly.parts import MODEL_FOLDER, PROJECTOR_FILE, find_projector
from pipeline.config import ExperimentConfig, ModelConfig
from pipeline.index.dataset import SourceFacts
from pipeline.launch.description import describe_run
from pipeline.launch.failure_watch import FailureWatch
from pipeline.launch.model_watch import ModelWatch, log_sources
from pipeline.launch.progress import ProgressReporter
from pipeline.parallel.stop_signals import StopRequestedError
from pipeline.run_folder.metrics_log import METRICS_FILE
from pipeline.run_folder.place import fetch, follow, found_here, working_folder
from pipeline.run_folder.restarts import FAILURES_FILE, RESTARTS_FILE
from pipeline.stream.rank_step import BatchSource
from pipeline.training.measures.profiling import PROFILE_FOLDER

if TYPE_CHECKING:
    from pipeline.tracking import RunTracker, TrackedRun

logger = logging.getLogger(__name__)

_FOLLOWED = (METRICS_FILE, RESTARTS_FILE, FAILURES_FILE)
_SEND_TIMEOUT_S = 60.0
_STOP_SEND_TIMEOUT_S = 10.0  # of the 30 s that clouds and clusters give a process to end


class RunWatch:
    """Follows a run from its files while the context is open; an error that ends the context is the run's end."""

    def __init__(
        self,
        config: ExperimentConfig,
        source: BatchSource,
        rejected: Mapping[str, int],
        sources: Sequence[SourceFacts],
        console: Console,
    ) -> None:
        """Watch a run.

        Args:
            config: the run.
            source: its data and plan.
            rejected: how many samples the index rejects for each reason.
            sources: of the data.
            console: shows progress.
        """
        self._config, self._source, self._rejected, self._console = config, source, rejected, console
        self._sources = sources
        self._tracker: RunTracker | None = None
        self._models: ModelWatch | None = None
        self._shown = ExitStack()

    @property
    def run_id(self) -> str | None:
        """The MLflow run id, once the server has given one."""
        return None if self._tracker is None else self._tracker.run_id

    def __enter__(self) -> Self:
        """Begin with the tracker, whose failure must end the run before it shows progress."""
        config, run_dir = self._config, working_folder(self._config.run_dir)
        if config.tracking.enabled:
            self._tracker = _open_tracker(tracked_run(config), config.model, self._source, self._rejected)
            log_sources(self._tracker, config.name, self._source.index.fingerprint, self._sources)
            self._models = ModelWatch(config, self._source.index.fingerprint, self._tracker)
            self._shown.enter_context(self._models)
        steps = self._source.plan.total_steps
        self._shown.enter_context(
            ProgressReporter(run_dir / METRICS_FILE, name=config.name, total_steps=steps, console=self._console)
        )
        self._shown.enter_context(FailureWatch(run_dir, self._tell_restart))
        follow(run_dir, *_FOLLOWED)
        return self

    def finish(self, output: str) -> None:
        """Give the run its end; `output` is the projector file, or the folder of a model or of adapters."""
        fetch(self._config.run_dir, *_FOLLOWED)
        self._shown.close()
        if self._tracker is None:
            return
        fetch(self._config.run_dir, f"{PROFILE_FOLDER}/")
        traces = working_folder(self._config.run_dir) / PROFILE_FOLDER
        if traces.is_dir():
            self._tracker.log_artifacts(traces, PROFILE_FOLDER)
        if self._config.stage == "pretrain":
            self._tracker.log_artifacts(self._fetched(output), "projector")
        if self._models is not None:
            is_sent = self._config.stage == "pretrain" or self._config.tracking.log_model
            place = self._fetched(output) if is_sent else found_here(output, self._config.run_dir)
            self._models.tell_result(place, is_sent)
        self._tracker.finish("FINISHED")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Say how the run ended, and wait a while for what MLflow has not yet got."""
        with suppress(OSError):
            fetch(self._config.run_dir, *_FOLLOWED)
        self._shown.close()
        if self._tracker is None:
            return
        stopped = isinstance(error, StopRequestedError | KeyboardInterrupt)
        if error is not None:
            with suppress(OSError):  # of a full disk, say; what ended the run is told in any case
                self._tracker.finish("KILLED" if stopped else "FAILED")
        if num_pending := self._tracker.close(_STOP_SEND_TIMEOUT_S if stopped else _SEND_TIMEOUT_S):
            config, tracker = self._config, self._tracker
            self._console.print(
                f"{config.name}: {num_pending} records have not reached MLflow at {tracker.tracking_uri}; they "
                f"are kept in the run folder{_name_files(tracker)}. `ray-llava mlflow-replay {config.run_dir}` sends "
                "them later"
            )

    def _fetched(self, output: str) -> Path:
        fetch(self._config.run_dir, PROJECTOR_FILE if self._config.stage == "pretrain" else f"{MODEL_FOLDER}/")
        return found_here(output, self._config.run_dir)

    def _tell_restart(self, number: int, cause: str) -> None:
        """Say that workers start again, and why."""
        logger.warning("the workers start again (restart %d): %s", number, cause)
        if self._tracker is not None:
            self._tracker.set_tags({"ray_llava.restarts": str(number), "ray_llava.last_restart": cause})


def _open_tracker(run: TrackedRun, parts: ModelConfig, source: BatchSource, rejected: Mapping[str, int]) -> RunTracker:
    from pipeline.tracking import JOURNAL_NAME, open_run  # an untracked run needs no MLflow

    begun = (run.run_dir / JOURNAL_NAME).is_file()
    tracker = open_run(run, _lineage(parts))
    if rejected and not begun:  # once per run, however often it is started
        tracker.log_metrics({f"data/rejected/{reason}": number for reason, number in rejected.items()}, step=0)
    return tracker


def _name_files(tracker: RunTracker) -> str:
    files = tracker.pending_files()
    return f" (files not uploaded: {', '.join(files)})" if files else ""


def tracked_run(config: ExperimentConfig) -> TrackedRun:
    """Return what the tracker of a run must know."""
    from pipeline.tracking import TrackedRun

    return TrackedRun(
        run_dir=working_folder(config.run_dir),
        name=config.name,
        stage=config.stage,
        tracking=config.tracking,
        checkpoint=config.checkpoint,
        record=config.to_record(),
        description=describe_run(config),
    )


def _lineage(parts: ModelConfig) -> dict[str, str]:
    from pipeline.tracking import projector_lineage

    projector = find_projector(parts.pretrain_mm_mlp_adapter)
    return projector_lineage(Path(projector)) if projector else {}
