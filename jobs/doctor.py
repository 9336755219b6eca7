"""`ray-llava doctor`: what would stop or slow a run, before it starts."""

import logging
import os
from collections.abc import Callable, Mapping
from functools import partial

import typer
from rich.table import Table
from rich.text import Text

from jobs.config_source import ConfigOption, OverridesArgument, read_config
from jobs.console import output_console
from jobs.failures import classify
from jobs.ray_job import check_requires_token
from pipeline.config import ExperimentConfig
from pipeline.tools.doctor.finding import Finding

logger = logging.getLogger(__name__)

_STYLES = {"ok": "green", "warning": "yellow", "error": "bold red"}
_DASHBOARD_PORT = 8265


def run(config: ConfigOption, overrides: OverridesArgument = None) -> None:
    """Check what a run needs: disk, file system, checkpoints, data, model, Ray, MLflow. Same exit codes as a run."""
    experiment = read_config(config, overrides).with_absolute_paths()
    findings = examine(experiment)
    output_console().print(findings_table(experiment.name, findings))
    codes = [finding.exit_code for finding in findings if finding.status == "error"]
    if codes:
        raise typer.Exit(next((code for code in codes if code != 2), 2))


def examine(config: ExperimentConfig) -> list[Finding]:
    """Run all checks."""
    from pipeline.tools.doctor.data import check_encoder, check_index
    from pipeline.tools.doctor.model_files import check_projector, check_vision_tower, check_weights
    from pipeline.tools.doctor.preflight import check_model_fits, check_run_data
    from pipeline.tools.doctor.run_folder import (
        check_checkpoint_folder,
        check_checkpoints,
        check_disk,
        check_file_system,
        check_resume,
    )
    from pipeline.tools.doctor.services import check_ray, check_tracking

    # 1. The run folder and its checkpoints.
    run_dir, parts, checkpoint = config.run_dir, config.model, config.checkpoint
    findings = _examine("run folder", lambda: check_file_system(run_dir))
    if not any(finding.check == "run folder" for finding in findings):
        findings += _examine("config", lambda: check_resume(run_dir, checkpoint, config.to_record()))
        findings += _examine("checkpoint folder", lambda: check_checkpoint_folder(run_dir, checkpoint))
        findings += _examine("disk space", lambda: check_disk(config.recipe, run_dir, checkpoint))
        findings += _examine("checkpoints", lambda: check_checkpoints(run_dir, checkpoint))
    # 2. The data and the model.
    findings += _examine("index", lambda: check_index(parts, config.data, run_dir))
    findings += _examine("tokenizer and template", lambda: check_encoder(parts, config.data))
    findings += _examine("language model", lambda: check_weights(parts))
    findings += _examine("vision tower", lambda: check_vision_tower(parts))
    findings += _examine("projector", lambda: check_projector(parts))
    findings += _examine(
        "model and options", lambda: check_model_fits(config.cluster, config.recipe, run_dir, checkpoint)
    )
    findings += _examine("data", lambda: check_run_data(config.recipe, run_dir, config.seed))
    # 3. Ray and MLflow.
    ray = _examine("Ray", lambda: check_ray(config.cluster))
    if any(finding.check.startswith("Ray node") for finding in ray):
        ray += _examine("Ray token", partial(check_token, os.environ))
    return [*findings, *ray, *_examine("MLflow", lambda: check_tracking(config.tracking, run_dir))]


def _examine(name: str, check: Callable[[], Finding | list[Finding]]) -> list[Finding]:
    """Return what a check found; when it fails itself, that is what it found, and the others still run."""
    try:
        found = check()
    except Exception as error:  # damaged files make libraries raise many types
        logger.debug("the check %r failed", name, exc_info=error)
        failure = classify(error)
        if failure.is_explained:
            return [Finding(name, "error", str(error), failure.exit_code)]
        return [Finding(name, "error", f"cannot be checked, {type(error).__name__}: {error}")]
    return [found] if isinstance(found, Finding) else found


def check_token(environment: Mapping[str, str]) -> Finding:
    """Ask the dashboard of the cluster that RAY_ADDRESS names whether it refuses requests without a token."""
    from pipeline.launch.on_ray.address import endpoint

    head = endpoint(environment.get("RAY_ADDRESS", ""))
    host = "127.0.0.1" if head is None else f"[{head.host}]" if ":" in head.host else head.host
    address = environment.get("RAY_API_SERVER_ADDRESS") or f"http://{host}:{_DASHBOARD_PORT}"
    try:
        check_requires_token(address.rstrip("/"))
    except ValueError as error:
        where = "if its dashboard is elsewhere, set RAY_API_SERVER_ADDRESS"
        return Finding("Ray token", "warning", f"not known to be required: {error} ({where})")
    return Finding("Ray token", "ok", f"required: {address} refuses requests without one")


def findings_table(name: str, findings: list[Finding]) -> Table:
    """Render what was found."""
    table = Table("check", "", "found", title=f"{name}: doctor")
    for finding in findings:  # as Text: paths and messages come from outside and must not be read as markup
        table.add_row(finding.check, Text(finding.status, style=_STYLES[finding.status]), Text(finding.detail))
    return table
