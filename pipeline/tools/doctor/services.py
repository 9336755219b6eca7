"""Checks of what a run talks to: the tracking server and the Ray cluster."""

from __future__ import annotations

import http.client
import os
import socket
import sqlite3
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

from pipeline.config import ClusterConfig, ConfigError, TrackingConfig
from pipeline.launch.on_ray.address import check_listens
from pipeline.run_folder.place import working_folder
from pipeline.tools.doctor.finding import Finding
from pipeline.tracking.credentials import without_credentials
from pipeline.tracking.journal import resolve_tracking_uri

_TIMEOUT_S = 3.0
_PORTS = {"http": 80, "https": 443}
_DATABASE_PORTS = {"postgresql": 5432, "mysql": 3306}
"""Database servers that MLflow's client writes to directly, such as `mysql+pymysql://`."""
_UNTRIED = ("mssql", "databricks")
"""What MLflow writes to besides: a database that is often addressed through ODBC, and a service."""


def check_tracking(tracking: TrackingConfig, run_dir: str | Path) -> Finding:
    """Try what a run asks of its MLflow server; a run does not need it, so this never is an error."""
    if not tracking.enabled:
        return Finding("MLflow", "ok", "switched off (tracking.enabled)")
    uri = resolve_tracking_uri(tracking.uri, os.environ, working_folder(run_dir))
    shown = without_credentials(uri)
    later = "the run works without it and sends everything later"
    try:
        if uri.startswith("sqlite:///"):
            return _try_database(uri, Path(uri.removeprefix("sqlite:///")), tracking.experiment)
        if uri.startswith(("http://", "https://")):
            check_answers(uri)
            return _probe(uri, tracking.experiment, f"{shown} answers")
        if uri.split("://")[0].split("+")[0] in _DATABASE_PORTS:
            return _try_database_server(uri, tracking.experiment)
    except (OSError, ValueError, http.client.HTTPException, sqlite3.Error) as error:
        return Finding("MLflow", "warning", without_credentials(f"{shown}: {error}; {later}"))
    if uri.startswith(_UNTRIED):
        return Finding("MLflow", "ok", f"{shown}, not tried")
    kinds = f"http(s)://HOST, sqlite:///FILE, {', '.join((*_DATABASE_PORTS, *_UNTRIED))}, or what an MLflow plugin adds"
    return Finding(
        "MLflow", "warning", f"{shown}: expected {kinds}; correct tracking.uri (or MLFLOW_TRACKING_URI), {later}"
    )


def check_answers(uri: str) -> None:
    """Make sure within seconds that something listens at an http(s) address, which MLflow's client tries for minutes.

    Raises:
        OSError: nothing does.
        ValueError: not an address.
    """
    parts = urlsplit(uri)
    if not parts.hostname:
        raise ValueError("expected http(s)://HOST")
    with socket.create_connection((parts.hostname, parts.port or _PORTS[parts.scheme]), timeout=_TIMEOUT_S):
        pass


def _probe(uri: str, experiment: str, works: str) -> Finding:
    """Do what a run does: a call with the credentials of this process, and a file stored and removed."""
    from pipeline.tracking.probe import probe_server  # takes seconds to load

    shown = without_credentials(uri)
    try:
        probed = probe_server(uri, experiment)
    except Exception as error:  # MLflow's client raises many types
        reason, _, _ = str(error).strip().partition("\n")
        return Finding(
            "MLflow",
            "warning",
            without_credentials(f"{shown} answers, but refuses this process: {reason}. {_hint(reason)}"),
        )
    if not probed.may_write:
        return Finding(
            "MLflow",
            "warning",
            f"{works}, but this user may not write to experiment {experiment!r}: ask its owner for permission EDIT, or "
            "set tracking.experiment to another name; the run works without it and sends everything later",
        )
    if probed.file_error is not None:
        return Finding(
            "MLflow",
            "warning",
            f"{works}, but no file can be stored at {probed.artifact_root}: {probed.file_error}. Metrics will arrive, "
            "files (config, projector, model) will not: give this machine access to that place, or start the server "
            "with --serve-artifacts",
        )
    new = "" if probed.is_known else f"; experiment {experiment!r} will be created"
    files = " and files" if probed.tried_file else ""
    return Finding("MLflow", "ok", f"{works}, takes calls{files}{new}")


def _hint(reason: str) -> str:
    if "deleted" in reason:
        return "The run keeps everything until then"
    if "certificate" in reason.lower():
        return (
            "Set MLFLOW_TRACKING_SERVER_CERT_PATH to a file with the certificate of the authority that signed the "
            "server's; the run works without it and sends everything later"
        )
    if "404" in reason:
        return (
            "MLflow is not at this path: a proxy may add one, as in https://HOST/mlflow (tracking.uri); the run works "
            "without it and sends everything later"
        )
    return (
        "Look at MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, MLFLOW_TRACKING_TOKEN, or the server's "
        "--allowed-hosts; the run works without it and sends everything later"
    )


def _try_database(uri: str, path: Path, experiment: str) -> Finding:
    if not path.exists():
        folder = next(parent for parent in path.absolute().parents if parent.exists())
        with tempfile.TemporaryFile(dir=folder):  # raises where nothing can be created
            pass
        return Finding("MLflow", "ok", f"{uri}, will be created")
    with sqlite3.connect(path, timeout=_TIMEOUT_S) as database:
        database.execute("BEGIN IMMEDIATE")
        has_experiments = database.execute("SELECT 1 FROM sqlite_master WHERE name = 'experiments'").fetchone()
        database.rollback()
    if has_experiments is None:
        return Finding("MLflow", "ok", f"{uri} can be written")
    return _probe(uri, experiment, f"{uri} can be written")


def _try_database_server(uri: str, experiment: str) -> Finding:
    """Log in to a database that runs write to directly, and try it if it has MLflow's tables."""
    from pipeline.tracking.probe import has_tables  # takes seconds to load

    parts, shown = urlsplit(uri), without_credentials(uri)
    default = _DATABASE_PORTS[parts.scheme.split("+")[0]]
    with socket.create_connection((parts.hostname or "localhost", parts.port or default), timeout=_TIMEOUT_S):
        pass
    try:
        is_set_up = has_tables(uri)
    except ModuleNotFoundError as error:
        return Finding("MLflow", "warning", f"{shown}: the driver {error.name!r} is missing; install it with pip")
    except Exception as error:  # drivers raise their own types
        reason, _, _ = str(error).strip().partition("\n")
        return Finding("MLflow", "warning", without_credentials(f"{shown} refuses this process: {reason}"))
    if not is_set_up:
        return Finding("MLflow", "ok", f"{shown} answers; the first run sets it up")
    return _probe(uri, experiment, f"{shown} answers")


def check_ray(cluster: ClusterConfig) -> list[Finding]:
    """Look at the nodes of the Ray cluster that the environment names, if it names one."""
    if cluster.launcher != "ray":
        return [Finding("Ray", "ok", "not used (cluster.launcher=local)")]
    if not os.environ.get("RAY_ADDRESS"):
        return [Finding("Ray", "ok", "RAY_ADDRESS is not set: the run starts Ray on this machine")]
    try:
        check_listens(os.environ["RAY_ADDRESS"])
        from pipeline.launch.on_ray.cluster import describe_nodes  # ray takes seconds to load

        nodes = describe_nodes(cluster)
    except (ConfigError, ConnectionError, RuntimeError) as error:
        return [Finding("Ray", "error", str(error))]
    return [_describe_node(*node) for node in nodes]


def _describe_node(name: str, free_cpus: float, cpus: float, gpus: float) -> Finding:
    detail = f"{free_cpus:g} of {cpus:g} CPUs free, {gpus:g} GPUs"
    if free_cpus < 1:
        return Finding(f"Ray node {name}", "warning", f"{detail}: no preprocessing can run here")
    return Finding(f"Ray node {name}", "ok", detail)
