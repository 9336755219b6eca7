"""Checks of what a run talks to: the tracking server and the Ray cluster."""

from __future__ import annotations

import os
import sqlite3
import urllib.error
import urllib.request
from pathlib import Path

from pipeline.config import ClusterConfig, ConfigError, ExperimentConfig
from pipeline.doctor.finding import Finding
from pipeline.training.tracking.journal import resolve_tracking_uri

_TIMEOUT_S = 3.0


def check_tracking(config: ExperimentConfig) -> Finding:
    """Look whether the MLflow server answers; a run does not need it, so this never is an error."""
    if not config.tracking.enabled:
        return Finding("MLflow", "ok", "switched off (tracking.enabled)")
    uri = resolve_tracking_uri(config.tracking.uri, os.environ, Path(config.run_dir))
    later = "the run goes on without it and sends everything later"
    try:
        if uri.startswith(("http://", "https://")):
            with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=_TIMEOUT_S) as response:
                return Finding("MLflow", "ok", f"{uri} answers with status {response.status}")
        if uri.startswith("sqlite:///"):
            return _try_database(uri, Path(uri.removeprefix("sqlite:///")))
    except (OSError, urllib.error.URLError, sqlite3.Error) as error:
        return Finding("MLflow", "warning", f"{uri}: {error}; {later}")
    return Finding("MLflow", "ok", f"{uri}, not tried")


def _try_database(uri: str, path: Path) -> Finding:
    if not path.exists():
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
    from pipeline.training.ray_launch import describe_nodes  # ray takes seconds to load

    try:
        nodes = describe_nodes(cluster)
    except (ConfigError, ConnectionError, RuntimeError) as error:
        return [Finding("Ray", "error", str(error))]
    return [*(_describe_node(*node) for node in nodes), _check_token()]


def _describe_node(name: str, free_cpus: float, cpus: float, gpus: float) -> Finding:
    detail = f"{free_cpus:g} of {cpus:g} CPUs free, {gpus:g} GPUs"
    if free_cpus < 1:
        return Finding(f"Ray node {name}", "warning", f"{detail}: no preprocessing can run here")
    return Finding(f"Ray node {name}", "ok", detail)


def _check_token() -> Finding:
    if os.environ.get("RAY_AUTH_MODE") == "token":
        return Finding("Ray token", "ok", "required (RAY_AUTH_MODE=token)")
    return Finding(
        "Ray token", "warning", "RAY_AUTH_MODE is not `token`: everybody on the cluster's network may run code on it"
    )
