"""What `pretrain` and `finetune` share: read the config, then train or print the plan."""

import os
import signal
from typing import Annotated, Literal

import typer
from rich.syntax import Syntax

from jobs.config_source import read_config
from jobs.console import output_console
from pipeline.parallel.stop_signals import StopRequestedError

DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Print the resolved config and the plan; train nothing.")]


def run_stage(
    stage: Literal["pretrain", "finetune"], config_name: str, overrides: list[str] | None, dry_run: bool
) -> None:
    """Run one stage to its end, or continue it; the same command resumes a run."""
    config = read_config(config_name, overrides, stage)
    console = output_console()
    if dry_run:
        console.print(Syntax(config.to_yaml().rstrip(), "yaml", background_color="default"))
        from pipeline.launch.preflight import prepare_checked
        from pipeline.launch.run_maps import choose_run_map

        config = config.with_absolute_paths()
        prepare_checked(config, console=console, run_map=choose_run_map(config.cluster))
        return
    from pipeline.launch.run import run_training  # loads torch, which a wrong config need not wait for
    from pipeline.training.measures.speed import verdict

    try:
        result = run_training(config, console)
    except (KeyboardInterrupt, StopRequestedError) as error:
        if isinstance(error, KeyboardInterrupt) or error.signum == signal.SIGINT:
            console.print(f"{config.name}: interrupted; the same command resumes the run from its last checkpoint")
        raise
    if os.environ.get("RANK", "0") != "0":  # under torchrun the first rank tells
        return
    console.print(f"{config.name}: finished after {result.steps} steps; result: [bold]{result.output}[/]")
    if limit := verdict(result.metrics, config.cluster.data_workers):
        console.print(f"{config.name}: {limit}")
    if config.tracking.enabled:
        from pipeline.tracking import dashboard_command, read_state, resolve_tracking_uri

        uri = resolve_tracking_uri(config.tracking.uri, os.environ, result.run_dir)
        run = f"run {result.mlflow_run_id}" if result.mlflow_run_id else "not sent yet"
        page = dashboard_command(uri, read_state(result.run_dir))
        console.print(f"curves, data and lineage, {run}: [bold]{page}[/]", soft_wrap=True)
