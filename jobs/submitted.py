"""`ray-llava list`, `status`, `follow` and `stop`: submitted jobs, found by the name of the run."""

import time
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from jobs.console import message_console, output_console
from jobs.ray_job import FollowedJob, find_job, list_own_jobs
from jobs.submit import Address, AllowUnencrypted, connect_to, follow_or_stop, write_log

Name = Annotated[str, typer.Argument(help="Name of the run, or a job's id; of several attempts, the newest.")]


def list_jobs(address: Address = "http://127.0.0.1:8265", allow_unencrypted: AllowUnencrypted = False) -> None:
    """List the jobs that were submitted to a cluster, oldest first."""
    table = Table("job", "status", "started")
    for job in list_own_jobs(connect_to(address, allow_unencrypted)):
        table.add_row(Text(job.submission_id), job.status, _when(job.start_time_ms))
    output_console().print(table)


def status(name: Name, address: Address = "http://127.0.0.1:8265", allow_unencrypted: AllowUnencrypted = False) -> None:
    """Show the state of a submitted run."""
    job = find_job(list_own_jobs(connect_to(address, allow_unencrypted)), name)
    output_console().print(f"{job.submission_id}: {job.status}, started {_when(job.start_time_ms)}", highlight=False)


def follow(name: Name, address: Address = "http://127.0.0.1:8265", allow_unencrypted: AllowUnencrypted = False) -> None:
    """Show the log of a submitted run from its start to its end; its exit code becomes this command's."""
    client = connect_to(address, allow_unencrypted)
    job = find_job(list_own_jobs(client), name)
    raise typer.Exit(follow_or_stop(FollowedJob(client, job.submission_id, write_log), message_console()))


def stop(name: Name, address: Address = "http://127.0.0.1:8265", allow_unencrypted: AllowUnencrypted = False) -> None:
    """Ask a submitted run to stop after a checkpoint; submitting it again continues it."""
    client = connect_to(address, allow_unencrypted)
    job = find_job(list_own_jobs(client), name)
    FollowedJob(client, job.submission_id, write_log).stop()
    told = f"{job.submission_id}: asked to stop; `ray-llava follow {name}` shows its end"
    output_console().print(told, highlight=False)


def _when(time_ms: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(time_ms / 1000)) if time_ms else "not yet"
