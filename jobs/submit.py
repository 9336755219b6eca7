"""`ray-llava submit`: run any other verb as a job on a Ray cluster, as if it ran here."""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from jobs.config_source import find_config
from jobs.console import message_console
from jobs.ray_job import (
    FollowedJob,
    JobRequest,
    SubmitError,
    build_entrypoint,
    check_address,
    check_requires_token,
    check_token_file,
    connect,
    forwarded_environment,
    job_name,
    submit,
)
from pipeline.config import load_config

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

_INTERRUPTED_EXIT_CODE = 130
_VERBS = ("pretrain", "finetune", "index", "doctor", "generate", "evaluate", "export", "demo", "mlflow-replay")

Command = Annotated[
    list[str],
    typer.Argument(metavar="-- VERB ...", help="The command to run there, such as: -- pretrain --config FILE"),
]
Address = Annotated[str, typer.Option(envvar="RAY_API_SERVER_ADDRESS", help="The cluster's dashboard.")]
Python = Annotated[
    str, typer.Option(help="Interpreter on the cluster that has ray-llava; a bare `python` may be another one.")
]
WorkingDir = Annotated[
    str | None, typer.Option(help="Local folder to upload as the job's current directory, at most 500 MB.")
]
Env = Annotated[
    list[str] | None, typer.Option(metavar="NAME=VALUE", help="Environment of the job; visible on the dashboard.")
]
AllowUnencrypted = Annotated[
    bool, typer.Option("--allow-unencrypted", help="Accept http:// to another machine: the token can be overheard.")
]


def run(
    command: Command,
    address: Address = "http://127.0.0.1:8265",
    python: Python = sys.executable,
    working_dir: WorkingDir = None,
    env: Env = None,
    allow_unencrypted: AllowUnencrypted = False,
) -> None:
    """Run a verb as a Ray job: its log appears here, its exit code becomes this command's.

    Submitting the same run again after it was stopped or failed continues it.
    """
    console = message_console()
    request = build_request(command, python=python, working_dir=working_dir, env=env or [], environment=os.environ)
    client = connect_to(address, allow_unencrypted)
    submission_id = submit(client, request)
    console.print(f"job [bold]{submission_id}[/] submitted to {address}")
    raise typer.Exit(follow_or_stop(FollowedJob(client, submission_id, write_log), console))


def build_request(
    command: Sequence[str], *, python: str, working_dir: str | None, env: Sequence[str], environment: Mapping[str, str]
) -> JobRequest:
    """Turn the command line into a job.

    Args:
        command: A verb and its arguments.
        python: Interpreter on the cluster.
        working_dir: Folder to upload, or None.
        env: `NAME=VALUE` pairs for the job.
        environment: The submitting shell's environment.

    Raises:
        SubmitError: no such verb, a malformed pair, or a run folder that another attempt would not find.
        ConfigError: the config that the command names is here, and is wrong.
    """
    verb, *arguments = command
    if verb not in _VERBS:
        raise SubmitError(f"{verb!r} cannot be submitted; expected one of: {', '.join(_VERBS)}")
    pairs = dict(_split_pair(pair) for pair in env)
    return JobRequest(
        name=job_name("ray-llava", verb, _run_name(arguments)),
        entrypoint=build_entrypoint(python, verb, arguments),
        env_vars=forwarded_environment(environment) | pairs,
        working_dir=working_dir,
    )


def connect_to(address: str, allow_unencrypted: bool) -> "JobSubmissionClient":
    """Return a client of a cluster that requires a token, and accepted this shell's.

    Raises:
        SubmitError: the address, the cluster or the token will not do.
    """
    address = check_address(address, allow_unencrypted)
    if token_path := os.environ.get("RAY_AUTH_TOKEN_PATH"):
        check_token_file(Path(token_path))
    check_requires_token(address)
    return connect(address)


def follow_or_stop(job: FollowedJob, console: Console) -> int:
    """Follow a job; returns its exit code. An interruption stops it, at a terminal after a question."""
    try:
        return job.follow()
    except KeyboardInterrupt:
        # Without a terminal to ask at, interrupting `submit` interrupts the job, as it would the command itself.
        if sys.stdin.isatty() and not typer.confirm(f"\nStop job {job.submission_id}?", default=True, err=True):
            console.print(f"the job continues; follow it with: ray-llava follow {job.submission_id}")
            return _INTERRUPTED_EXIT_CODE
        console.print(f"stopping job {job.submission_id}; the same submission continues the run later")
        job.stop()
        job.follow()
        return _INTERRUPTED_EXIT_CODE


def _run_name(arguments: Sequence[str]) -> str:
    """Name the run that the arguments start; a config is checked before it is sent, if it is on this machine."""
    config = _option(arguments, "--config", "-c")
    if config is None:
        return ""
    path = find_config(config)
    if not path.is_file():
        return path.stem
    overrides = [argument for argument in arguments if "=" in argument and not argument.startswith("-")]
    experiment = load_config(path, overrides)
    if "://" not in experiment.run_dir and not Path(experiment.run_dir).is_absolute():
        raise SubmitError(
            f"run_dir {experiment.run_dir} is relative, and a job's current directory is a temporary one: nothing "
            "could be resumed. Pass run_dir=/a/folder/that/all/nodes/share"
        )
    return experiment.name


def _option(arguments: Sequence[str], *names: str) -> str | None:
    for index, argument in enumerate(arguments):
        option, separator, value = argument.partition("=")
        if option in names and separator:
            return value
        if argument in names and index + 1 < len(arguments):
            return arguments[index + 1]
    return None


def _split_pair(pair: str) -> tuple[str, str]:
    name, separator, value = pair.partition("=")
    if not name or not separator:
        raise SubmitError(f"--env {pair!r}: expected NAME=VALUE")
    return name, value


def write_log(text: str) -> None:
    """Show a piece of a job's log."""
    sys.stdout.write(text)
    sys.stdout.flush()
