"""Checks of what a run talks to: the tracking server and the Ray cluster."""

from __future__ import annotations

import http.client
import os
import sqlite3
import tempfile
import urllib.request
from pathlib import Path

from pipeline.config import ClusterConfig, ConfigError, ExperimentConfig
from pipeline.launch.ray_address import check_listens
from pipeline.tools.doctor.finding import Finding
from pipeline.tracking.credentials import without_credentials
from pipeline.tracking.journal import resolve_tracking_uri

_TIMEOUT_S = 3.0
_UNTRIED = ("mysql", "postgresql", "mssql", "databricks")
"""What MLflow writes to besides: databases, such as `mysql+pymysql://`, and a service."""


def check_tracking(config: ExperimentConfig) -> Finding:
    """Look whether the MLflow server answers; a run does not need it, so this never is an error."""
    if not config.tracking.enabled:
        return Finding("MLflow", "ok", "switched off (tracking.enabled)")
    uri = resolve_tracking_uri(config.tracking.uri, os.environ, Path(config.run_dir))
    shown = without_credentials(uri)
    later = "the run goes on without it and sends everything later"
    try:
        if uri.startswith(("http://", "https://")):
            with urllib.request.urlopen(f"{shown.rstrip('/')}/health", timeout=_TIMEOUT_S) as response:
                return Finding("MLflow", "ok", f"{shown} answers with status {response.status}")
        if uri.startswith("sqlite:///"):
            return _try_database(uri, Path(uri.removeprefix("sqlite:///")))
    except (OSError, ValueError, http.client.HTTPException, sqlite3.Error) as error:
        return Finding("MLflow", "warning", f"{shown}: {error}; {later}")
    if uri.startswith(_UNTRIED):
        return Finding("MLflow", "ok", f"{shown}, not tried")
    kinds = f"http(s)://HOST, sqlite:///FILE, {', '.join(_UNTRIED)}, or what an MLflow plugin adds"
    return Finding(
        "MLflow", "warning", f"{shown}: expected {kinds}; correct tracking.uri (or MLFLOW_TRACKING_URI), {later}"
    )


def _try_database(uri: str, path: Path) -> Finding:
    if not path.exists():
        folder = next(parent for parent in path.absolute().parents if parent.exists())
        with tempfile.TemporaryFile(dir=folder):  # raises where nothing can be created
            pass
        return Finding("MLflow", "ok", f"{uri}, will be created")
    with sqlite3.connect(path, timeout=_TIMEOUT_S) as database:
        database.execute("BEGIN IMMEDIATE")
        database.rollback()
    return Finding("MLflow", "ok", f"{uri} can be written")


def check_ray(cluster: ClusterConfig) -> list[Finding]:
    """Look at the nodes of the Ray cluster that the environment names, if it names one."""
    if cluster.launcher != "ray":
        return [Finding("Ray", "ok", "not used (cluster.launcher=local)")]
    if not os.environ.get("RAY_ADDRESS"):
        return [Finding("Ray", "ok", "RAY_ADDRESS is not set: the run starts Ray on this machine")]
    try:
        check_listens(os.environ["RAY_ADDRESS"])
        from pipeline.launch.ray_cluster import describe_nodes  # ray takes seconds to load

        nodes = describe_nodes(cluster)
    except (ConfigError, ConnectionError, RuntimeError) as error:
        return [Finding("Ray", "error", str(error))]
    return [_describe_node(*node) for node in nodes]


def _describe_node(name: str, free_cpus: float, cpus: float, gpus: float) -> Finding:
    detail = f"{free_cpus:g} of {cpus:g} CPUs free, {gpus:g} GPUs"
    if free_cpus < 1:
        return Finding(f"Ray node {name}", "warning", f"{detail}: no preprocessing can run here")
    return Finding(f"Ray node {name}", "ok", detail)
