"""`ray-llava doctor`: what would stop or slow a run, before it starts."""

import typer
from rich.table import Table
from rich.text import Text

from jobs.config_source import ConfigOption, OverridesArgument, read_config
from jobs.console import output_console
from pipeline.config import ExperimentConfig
from pipeline.doctor.finding import Finding

_STYLES = {"ok": "green", "warning": "yellow", "error": "bold red"}


def run(config: ConfigOption, overrides: OverridesArgument = None) -> None:
    """Check what a run needs: disk, file system, checkpoints, data, tokenizer, Ray, MLflow. Ends with 2 on an error."""
    experiment = read_config(config, overrides).with_absolute_paths()
    findings = examine(experiment)
    output_console().print(findings_table(experiment.name, findings))
    if any(finding.status == "error" for finding in findings):
        raise typer.Exit(2)


def examine(config: ExperimentConfig) -> list[Finding]:
    """Run all checks."""
    from pathlib import Path

    from pipeline.doctor.data import check_encoder, check_index
    from pipeline.doctor.run_folder import check_checkpoints, check_disk, check_file_system
    from pipeline.doctor.services import check_ray, check_tracking

    findings = check_file_system(Path(config.run_dir))
    if not any(finding.check == "run folder" for finding in findings):
        findings += [check_disk(config), check_checkpoints(config)]
    return [*findings, check_index(config), check_encoder(config), *check_ray(config.cluster), check_tracking(config)]


def findings_table(name: str, findings: list[Finding]) -> Table:
    """Render what was found."""
    table = Table("check", "", "found", title=f"{name}: doctor")
    for finding in findings:  # as Text: paths and messages come from outside and must not be read as markup
        table.add_row(finding.check, Text(finding.status, style=_STYLES[finding.status]), Text(finding.detail))
    return table
