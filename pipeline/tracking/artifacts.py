"""Files of a run on their way to the server: apart from metrics and status, which never wait for a file.

A journal line with files counts as performed once it is noted as pending; it stays so until its files are uploaded.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.tracking.credentials import without_credentials
from pipeline.tracking.journal import RUN_DIR_TAG, Journal, Progress
from pipeline.tracking.operations import AnyOperation, LogArtifacts, LogModel, OpenRun, TagModel, UseModel

if TYPE_CHECKING:
    from pipeline.tracking.mlflow_models import RunModels
    from pipeline.tracking.mlflow_run import MlflowRun

logger = logging.getLogger(__name__)


class ArtifactError(ConnectionError):
    """Files could not be uploaded; the message names them and the first reason."""


class ArtifactSender:
    """Uploads the pending files of one run folder. Used by one thread at a time."""

    def __init__(self, run_dir: Path, journal: Journal, progress: Progress) -> None:
        self._run_dir, self._journal, self._progress = run_dir, journal, progress
        self._absent: set[int] = set()
        """Lines whose files are not there; each process that sends looks for them once."""

    def send(self) -> None:
        """Try to upload every pending file once.

        Raises:
            ArtifactError: some could not be uploaded; the others were.
        """
        run_id = self._progress.state.run_id
        if run_id is None or not self._progress.state.missing_artifacts:
            return
        failures: dict[str, Exception] = {}
        for number, operation in self._pending():
            if number in self._absent or self._progress.state.run_id != run_id:
                continue
            try:
                self._upload(run_id, operation)
                self._progress.remove_artifact(run_id, number)
            except FileNotFoundError as error:
                self._absent.add(number)
                logger.error("%s, line %d: not sent: %s", self._journal.path, number, error)
            except Exception as error:
                failures[artifact_name(operation)] = error
        if failures:
            reason, _, _ = str(next(iter(failures.values()))).strip().partition("\n")
            raise ArtifactError(without_credentials(f"{', '.join(failures)} not uploaded: {reason}"))

    def names(self) -> list[str]:
        """Name what is not uploaded yet, as the run's artifacts will show it."""
        return [artifact_name(operation) for _, operation in self._pending()]

    def _pending(self) -> Iterator[tuple[int, AnyOperation]]:
        pending = set(self._progress.state.missing_artifacts)
        return ((number, entry) for number, entry in self._journal.numbered() if number in pending)

    def _upload(self, run_id: str, operation: AnyOperation) -> None:
        from pipeline.tracking.mlflow_models import RunModels
        from pipeline.tracking.mlflow_run import MlflowRun  # takes two seconds

        uri, experiment_id = self._progress.state.tracking_uri, self._progress.state.experiment_id
        run = MlflowRun(uri, run_id)
        match operation:
            case OpenRun():
                run.log_text(operation.config_yaml, artifact_name(operation))
            case LogArtifacts():
                run.log_files(self._place_of(operation.path), operation.artifact_path)
            case LogModel() | TagModel() | UseModel():
                assert experiment_id is not None  # known since the run is
                self._send_model(RunModels(uri, experiment_id, run_id), run, operation)

    def _send_model(self, models: RunModels, run: MlflowRun, operation: LogModel | TagModel | UseModel) -> None:
        """Log a model, or what is known of it; a server without logged models gets its files as the run's."""
        from pipeline.tracking.mlflow_models import is_unknown_call

        try:
            match operation:
                case LogModel():
                    files = None if operation.path is None else self._place_of(operation.path)
                    models.log(operation, files)
                case TagModel():
                    models.tag(operation)
                case UseModel():
                    models.use(operation)
        except Exception as error:
            if not is_unknown_call(error):
                raise
            if isinstance(operation, LogModel) and operation.path is not None:
                run.log_files(self._place_of(operation.path), operation.name)

    def _place_of(self, path_text: str) -> Path:
        """Return where artifacts are.

        Journals of older versions hold absolute paths; in a run folder that was moved since, they are at the same
        place in it.

        Raises:
            FileNotFoundError: they are nowhere.
        """
        written = Path(path_text)
        openings = (entry for entry in self._journal.read() if isinstance(entry, OpenRun))
        homes = [Path(home) for opening in openings if (home := opening.tags.get(RUN_DIR_TAG))]
        inside = [written.relative_to(home) for home in homes if written.is_relative_to(home)]
        for path in (written, *inside):
            if (self._run_dir / path).exists():  # an absolute path stays unchanged
                return self._run_dir / path
        raise FileNotFoundError(
            f"artifact {self._run_dir / written}: no such file or folder; put it back, then "
            f"`ray-llava mlflow-replay {self._run_dir}` sends it"
        )


def artifact_name(operation: AnyOperation) -> str:
    """Return under what name the run's artifacts will hold the files of an operation."""
    match operation:
        case OpenRun(attempt=attempt):
            return f"config/attempt-{attempt:03}.yaml"
        case LogArtifacts(artifact_path=str(folder)):
            return folder
        case LogArtifacts(path=path):
            return Path(path).name
        case LogModel(name=name) | TagModel(name=name):
            return name
        case UseModel(name=name):
            return f"lineage of {name}"
    raise AssertionError(f"{operation.kind} has no files")
