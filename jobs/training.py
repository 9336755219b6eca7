"""What `pretrain` and `finetune` share: what a dry run shows, and what is said at the end."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.syntax import Syntax

from pipeline.config import ExperimentConfig
from pipeline.parallel.stop_signals import StopRequestedError
from pipeline.run_folder.place import shown

if TYPE_CHECKING:  # torch takes seconds to load; config errors need not wait for it
    from pipeline.launch.run import TrainingResult

DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Print the resolved config and the plan; train nothing.")]


def show_plan(config: ExperimentConfig, console: Console) -> None:
    """Print the resolved config and the plan, after all checks that need no worker."""
    console.print(Syntax(config.to_yaml().rstrip(), "yaml", background_color="default"))
    from pipeline.launch.preflight import prepare_checked
    from pipeline.launch.run_maps import choose_run_map

    config = config.with_absolute_paths()
    prepare_checked(config, console=console, run_map=choose_run_map(config.cluster))


@contextmanager
def saying_how_to_go_on(name: str, console: Console) -> Iterator[None]:
    """Say that the same command resumes a run which the keyboard interrupts."""
    try:
        yield
    except (KeyboardInterrupt, StopRequestedError) as error:
        if isinstance(error, KeyboardInterrupt) or error.signum == signal.SIGINT:
            console.print(f"{name}: interrupted; the same command resumes the run from its last checkpoint")
        raise


def report(config: ExperimentConfig, result: "TrainingResult", console: Console) -> None:
    """Say what a run left behind and where to look at it; under torchrun the first rank tells."""
    from pipeline.training.measures.speed import verdict

    if os.environ.get("RANK", "0") != "0":
        return
    console.print(f"{config.name}: finished after {result.steps} steps; result: [bold]{shown(result.output)}[/]")
    if limit := verdict(result.metrics, config.cluster.data_workers):
        console.print(f"{config.name}: {limit}")
    if config.tracking.enabled:
        from pipeline.tracking import dashboard_command, read_state, resolve_tracking_uri

        uri = resolve_tracking_uri(config.tracking.uri, os.environ, result.run_dir)
        run = f"run {result.mlflow_run_id}" if result.mlflow_run_id else "not sent yet"
        page = dashboard_command(uri, read_state(result.run_dir))
        console.print(f"curves, data and lineage, {run}: [bold]{page}[/]", soft_wrap=True)
