"""Models of a run on an MLflow server: logged models with their metrics and files, versions in the registry, lineage.

Every call may raise any error of the server or its client; the caller retries, and a repetition changes nothing.
"""

from __future__ import annotations

import logging
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelInput, LoggedModelOutput, LoggedModelStatus, Metric
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.utils.validation import MAX_DATASET_DIGEST_SIZE

from pipeline.tracking.journal import run_link, shown_name
from pipeline.tracking.operations import DATA_TAG, SOURCE_RUN_TAG, LogModel, RegistryEntry, TagModel, UseModel

logger = logging.getLogger(__name__)

BEST_ALIAS = "best"
_SCORE_TAG = "ray_llava.score"
_NO_REGISTRY = ("PERMISSION_DENIED", "FEATURE_DISABLED", "INVALID_PARAMETER_VALUE", "NOT_IMPLEMENTED")
_MADE_FROM_TAG = "ray_llava.made_from"


class RunModels:
    """The models of one run on a server."""

    def __init__(self, tracking_uri: str, experiment_id: str, run_id: str) -> None:
        self._client = MlflowClient(tracking_uri=tracking_uri)
        self._experiment_id, self._run_id = experiment_id, run_id

    def log(self, operation: LogModel, files: Path | None) -> None:
        """Log a model with its metrics and files, and register it if it has an entry."""
        # 1. The model; one whose files are complete is READY and not uploaded again.
        model = self._find(self._experiment_id, self._run_id, operation.name)
        model = model or self._client.create_logged_model(
            self._experiment_id,
            name=operation.name,
            source_run_id=self._run_id,
            tags=operation.tags,
            params=operation.params,
            model_type=operation.model_type,
        )
        # 2. What was measured of it: points that the run has too, which the server keeps once.
        if metrics := _metrics(operation, model.model_id):
            self._client.log_batch(self._run_id, metrics=metrics)
        outputs = self._client.get_run(self._run_id).outputs
        if outputs is None or model.model_id not in {known.model_id for known in outputs.model_outputs}:
            self._client.log_outputs(self._run_id, [LoggedModelOutput(model.model_id, operation.step)])
        # 3. Its files.
        if model.status != LoggedModelStatus.READY:
            if files is not None and files.is_dir():
                self._client.log_model_artifacts(model.model_id, str(files))
            elif files is not None:
                self._client.log_model_artifact(model.model_id, str(files))
            self._client.finalize_logged_model(model.model_id, "READY")
        # 4. The registry, where a version stands for complete files.
        if operation.entry is not None:
            try:
                self._register(model, operation, operation.entry)
            except MlflowException as error:
                if error.error_code not in _NO_REGISTRY:
                    raise
                logger.warning("MLflow: %s is not registered as %r: %s", operation.name, operation.entry.name, error)

    def tag(self, operation: TagModel) -> None:
        """Add tags to a model; one that is not on the server has none to get."""
        if model := self._find(self._experiment_id, self._run_id, operation.name):
            self._client.set_logged_model_tags(model.model_id, operation.tags)

    def use(self, operation: UseModel) -> None:
        """Name a model of another run as an input; nothing if the server does not have it."""
        model = self._find(operation.experiment_id, operation.run_id, operation.name)
        if model is None:
            logger.debug("run %s has no model %r on this server", operation.run_id, operation.name)
            return
        inputs = self._client.get_run(self._run_id).inputs
        if inputs is None or model.model_id not in {known.model_id for known in inputs.model_inputs}:
            self._client.log_inputs(self._run_id, models=[LoggedModelInput(model.model_id)])

    def _find(self, experiment_id: str, run_id: str, name: str) -> LoggedModel | None:
        found = self._client.search_logged_models(
            [experiment_id], f"name = '{name}' AND source_run_id = '{run_id}'", max_results=1
        )
        return found[0] if found else None

    def _register(self, model: LoggedModel, operation: LogModel, entry: RegistryEntry) -> None:
        version = self._version(model, operation, entry)
        if entry.alias is not None:
            newest = self._aliased(entry.name, entry.alias)
            if newest is None or int(newest.version) < int(version.version):
                self._client.set_registered_model_alias(entry.name, entry.alias, version.version)
        if entry.score is not None:
            best = self._aliased(entry.name, BEST_ALIAS)
            if best is None or _is_better(version, best):
                self._client.set_registered_model_alias(entry.name, BEST_ALIAS, version.version)

    def _version(self, model: LoggedModel, operation: LogModel, entry: RegistryEntry) -> ModelVersion:
        """Return the version of a model, created if there is none."""
        versions = self._versions_of(self._run_id)
        if known := [one for one in versions if one.name == entry.name and one.source == model.artifact_location]:
            return known[0]
        stage = {"ray_llava.stage": operation.tags["ray_llava.stage"]}
        try:
            self._client.create_registered_model(entry.name, tags=stage)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        tags = dict(operation.tags)
        if entry.score is not None:
            tags[_SCORE_TAG] = repr(entry.score)
        made_from = ""
        if source_run := tags.get(SOURCE_RUN_TAG):
            if sources := [one for one in self._versions_of(source_run) if one.name != entry.name]:
                tags[_MADE_FROM_TAG] = f"models:/{sources[0].name}/{sources[0].version}"
            made_from = f" Made from {tags.get(_MADE_FROM_TAG, f'run {source_run}')}."
        link = run_link(self._experiment_id, self._run_id)
        return self._client.create_model_version(
            entry.name,
            model.artifact_location,
            self._run_id,
            tags=tags,
            description=f"Step {operation.step} of [run {self._run_id[:8]}]({link}).{made_from}",
            model_id=model.model_id,
        )

    def _versions_of(self, run_id: str) -> list[ModelVersion]:
        """Return the registered versions of a run, newest first."""
        found = self._client.search_model_versions(f"run_id = '{run_id}'")
        return sorted(found, key=lambda version: int(version.version), reverse=True)

    def _aliased(self, name: str, alias: str) -> ModelVersion | None:
        try:
            return self._client.get_model_version_by_alias(name, alias)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):  # the latter: unknown alias
                return None
            raise


def is_unknown_call(error: Exception) -> bool:
    """Tell whether a server does not know what was asked: it is older than MLflow 3."""
    return isinstance(error, MlflowException) and error.error_code == "ENDPOINT_NOT_FOUND"


def _metrics(operation: LogModel, model_id: str) -> list[Metric]:
    if operation.metrics_time_s is None:
        return []
    name, digest = operation.dataset or (None, None)
    digest = digest and digest[:MAX_DATASET_DIGEST_SIZE]
    return [
        Metric(
            shown_name(key),
            value,
            int(operation.metrics_time_s * 1000),
            operation.step - 1,  # steps of metrics count from 0
            model_id=model_id,
            dataset_name=name,
            dataset_digest=digest,
        )
        for key, value in operation.metrics.items()
    ]


def _is_better(version: ModelVersion, best: ModelVersion) -> bool:
    """Tell whether a version takes the place of the best one: lower score on the same data."""
    if version.tags.get(DATA_TAG) != best.tags.get(DATA_TAG) or _SCORE_TAG not in best.tags:
        return False
    return float(version.tags[_SCORE_TAG]) < float(best.tags[_SCORE_TAG])
