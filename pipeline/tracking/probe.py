"""What a run will need of an MLflow server, tried before it: a call with this machine's credentials, and a file.

`/health` answers also where every call is refused, and a server that takes metrics may keep files where only it writes.
"""

import os
import tempfile
import uuid
from pathlib import Path
from typing import NamedTuple

import sqlalchemy
from mlflow import MlflowClient
from mlflow.entities import Experiment
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from pipeline.tracking.credentials import without_credentials
from pipeline.tracking.mlflow_run import EXPERIMENT_TAGS, bound_client_waiting, check_active, quiet_client


class Probed(NamedTuple):
    """What a server answered."""

    is_known: bool
    """Whether it has the experiment already."""
    may_write: bool
    """Whether it takes runs of this user."""
    artifact_root: str
    """Where the files of the experiment's runs go, without credentials."""
    file_error: str | None
    """Why a file could not be stored and removed there; None if it could, or was not tried."""
    tried_file: bool


def has_tables(database_uri: str) -> bool:
    """Tell whether a database has MLflow's tables; MLflow's own client would create them.

    Raises:
        Exception: no driver for it, or it refuses this process.
    """
    engine = sqlalchemy.create_engine(database_uri)
    try:
        return bool(sqlalchemy.inspect(engine).has_table("experiments"))
    finally:
        engine.dispose()


def probe_server(tracking_uri: str, experiment: str) -> Probed:
    """Look an experiment up, and store a small file where its runs will store theirs.

    Raises:
        ValueError: the experiment was deleted.
        Exception: what the server answered to the call, or that it did not.
    """
    bound_client_waiting()
    quiet_client()
    client = MlflowClient(tracking_uri=tracking_uri)
    found = client.get_experiment_by_name(experiment)
    if found is not None:
        check_active(found)
    # an experiment that is still to be created gets a folder next to that of experiment 0, which a new server has
    example = found or _first_experiment(client)
    if example is None:
        return Probed(False, True, "", None, False)
    root = example.artifact_location
    if found is not None and not _may_write(client, found):
        return Probed(True, False, without_credentials(root), None, False)
    error = _try_file(tracking_uri, root)
    if found is None and error is not None and "403" in error:  # experiment 0 is another's
        return Probed(False, True, without_credentials(root), None, False)
    return Probed(found is not None, True, without_credentials(root), error, True)


def _may_write(client: MlflowClient, experiment: Experiment) -> bool:
    """Set a tag to the value it has, which only a user who may write is allowed to do."""
    name, value = next(iter((experiment.tags or EXPERIMENT_TAGS).items()))
    try:
        client.set_experiment_tag(experiment.experiment_id, name, value)
    except MlflowException as error:
        if error.error_code in ("PERMISSION_DENIED", "UNAUTHENTICATED"):
            return False
        raise
    return True


def _first_experiment(client: MlflowClient) -> Experiment | None:
    try:
        return client.get_experiment("0")
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise


def _try_file(tracking_uri: str, root: str) -> str | None:
    name = f"ray-llava-probe-{uuid.uuid4().hex[:12]}"
    try:
        store = get_artifact_repository(root, tracking_uri=tracking_uri)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "probe.txt"
            file.write_text(f"written by ray-llava doctor, process {os.getpid()}\n", encoding="utf-8")
            store.log_artifact(str(file), name)  # type: ignore[no-untyped-call]
        store.delete_artifacts(name)  # type: ignore[no-untyped-call]
    except Exception as error:  # clients of storage services raise many types
        reason, _, _ = str(error).strip().partition("\n")
        return without_credentials(f"{type(error).__name__}: {reason}")
    return None
