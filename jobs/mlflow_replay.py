"""`ray-llava mlflow-replay`: send what a run could not send to MLflow while it ran."""

from typing import Annotated

import typer

from jobs.console import output_console
from pipeline.run_folder.place import working_folder
from pipeline.tracking import dashboard_command, replay, without_credentials

RunDir = Annotated[str, typer.Argument(metavar="RUN_DIR", help="Folder or URL of the run.")]
Uri = Annotated[str | None, typer.Option(help="Send it there instead of where the run was tracked.")]


def run(run_dir: RunDir, uri: Uri = None) -> None:
    """Send everything of a run that its MLflow server lacks; it may be repeated."""
    sender = replay(working_folder(run_dir), uri)
    console = output_console()
    place = f"MLflow run {sender.state.run_id} at {without_credentials(sender.state.tracking_uri)}"
    if missing := len(sender.state.missing_artifacts):
        what = "1 artifact" if missing == 1 else f"{missing} artifacts"
        raise FileNotFoundError(f"{place} lacks {what} whose files are not there, see above")
    console.print(f"{place} is complete: {dashboard_command(sender.state.tracking_uri, sender.state)}", soft_wrap=True)
    if sender.num_refused:
        console.print(f"{sender.num_refused} records were refused by the server, see above")
        raise typer.Exit(1)
