"""A client of a Ray cluster's jobs API: refuse unsafe clusters, submit a command, follow it, stop it.

A Ray cluster runs all code it is sent, so anyone on the network of a cluster that answers without a token
controls it. Nothing is submitted to such a cluster, and no token travels unencrypted unless told to.
"""

import asyncio
import ipaddress
import logging
import os
import re
import shlex
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar
from urllib.parse import urlsplit

from jobs.console import LOG_FORMAT

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

logger = logging.getLogger(__name__)

STOPPED_EXIT_CODE = 143
"""A stopped job was sent SIGTERM, as the shell reports it."""

_PROBE_TIMEOUT_S = 10.0
_STOP_GRACE_S = "120"
_POLL_S = 0.5
PATIENCE_S = 1800.0
"""How long a dashboard may be away: a head restarts in minutes, a laptop sleeps longer."""
_LONGEST_WAIT_S = 30.0
_SILENCE_S = 300.0
NAME_PREFIX = "ray-llava"
_T = TypeVar("_T")
_TERMINAL = {"STOPPED", "SUCCEEDED", "FAILED"}


class SubmitError(ValueError):
    """The job cannot be submitted there, or not in this way; the message says what to do."""


class JobActiveError(RuntimeError):
    """A job of the same name is still running or waiting."""


class JobRequest(NamedTuple):
    """What to run on the cluster."""

    name: str
    """Stays the same when the job is submitted again; attempts are numbered after it."""
    entrypoint: str
    """Shell command line."""
    env_vars: dict[str, str]
    working_dir: str | None
    """Local folder or archive URL that becomes the job's current directory; None uses what is installed there."""


def check_address(address: str, allow_unencrypted: bool) -> str:
    """Return the address without a trailing slash.

    Raises:
        SubmitError: not an http(s) URL, or plain http to another machine without `allow_unencrypted`.
    """
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise SubmitError(
            f"--address {address}: expected http://HOST:PORT or https://HOST, such as http://127.0.0.1:8265"
        )
    if parts.scheme == "http" and not _is_loopback(parts.hostname) and not allow_unencrypted:
        port = parts.port or 8265
        raise SubmitError(
            f"--address {address}: the token would cross the network unencrypted. Open a tunnel, "
            f"ssh -N -L {port}:127.0.0.1:{port} {parts.hostname}, and submit to http://127.0.0.1:{port}; or pass "
            "--allow-unencrypted if the network is yours alone"
        )
    return address.rstrip("/")


def check_requires_token(address: str) -> None:
    """Make sure that the cluster refuses requests without a token.

    Raises:
        SubmitError: it answers without a token, or does not answer at all.
    """
    try:
        with urllib.request.urlopen(f"{address}/api/jobs/", timeout=_PROBE_TIMEOUT_S) as response:
            status = response.status
    except urllib.error.HTTPError as error:
        status = error.code
    except OSError as error:
        raise SubmitError(
            f"no Ray cluster answers at {address} ({error}); start its head node, or open the tunnel to it"
        ) from error
    if status not in (401, 403):
        raise SubmitError(
            f"the cluster at {address} accepts requests without a token (status {status}, expected 401): anyone who "
            "reaches it can run code on it. Start it with RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH, as "
            "ray_cluster.yaml does"
        )


def connect(address: str) -> "JobSubmissionClient":
    """Return a client that has shown a valid token; reads RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token.

    Raises:
        SubmitError: no token was found, or the cluster refuses it.
    """
    os.environ["RAY_AUTH_MODE"] = "token"  # read once, when ray is imported
    # Ray lets this variable and RAY_ADDRESS override the argument; what was checked must be what is used.
    os.environ["RAY_API_SERVER_ADDRESS"] = address
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    # Importing it sets this logger to INFO, and every job would end with a line about a closed WebSocket.
    logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.WARNING)
    try:
        return JobSubmissionClient(address)
    except AuthenticationError as error:
        raise SubmitError(
            f"the cluster at {address} refused the token: {str(error).splitlines()[0]}. Set RAY_AUTH_TOKEN_PATH to a "
            "file with the cluster's token (on the head node: the file its RAY_AUTH_TOKEN_PATH names)"
        ) from error


def job_name(*parts: str) -> str:
    """Join parts to a name that is fit for an id."""
    return "-".join(re.sub(r"[^A-Za-z0-9_.]+", "-", part).strip("-.") for part in parts if part)


def next_submission_id(name: str, jobs: Iterable[tuple[str | None, str]]) -> str:
    """Number this submission after the earlier ones of the same name: `NAME-001`, `NAME-002`, ...

    Args:
        name: Name of the job.
        jobs: `(submission id, status)` of all jobs of the cluster.

    Raises:
        JobActiveError: one of them is not over; two would write into one run folder.
    """
    earlier = re.compile(re.escape(name) + r"-(\d{3,})")
    attempt = 0
    for submission_id, status in jobs:
        match = earlier.fullmatch(submission_id or "")
        if match and status not in _TERMINAL:
            raise JobActiveError(
                f"job {submission_id} is {status}; follow it (ray-llava follow {submission_id}), stop it (ray-llava "
                f"stop {submission_id}) or wait for its end before submitting it again, or use another name"
            )
        if match:
            attempt = max(attempt, int(match[1]))
    return f"{name}-{attempt + 1:03}"


def submit(client: "JobSubmissionClient", request: JobRequest) -> str:
    """Submit the next attempt of a job; returns its submission id.

    Raises:
        JobActiveError: an earlier attempt is not over.
    """
    jobs = [(job.submission_id, str(job.status)) for job in client.list_jobs()]
    runtime_env: dict[str, object] = {"env_vars": request.env_vars}
    if request.working_dir is not None:
        runtime_env["working_dir"] = request.working_dir
    return str(
        client.submit_job(
            entrypoint=request.entrypoint,
            runtime_env=runtime_env,
            submission_id=next_submission_id(request.name, jobs),
        )
    )


def build_entrypoint(python: str, verb: str, arguments: Sequence[str]) -> str:
    """Return the command line of a verb for the cluster's shell."""
    return shlex.join([python, "-m", "jobs", verb, *arguments])


def forwarded_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Choose what a job inherits from the submitting shell: the address of a shared MLflow server, no secrets.

    A job's environment is shown on the dashboard, so credentials belong into the environment of the cluster.
    """
    # Lines appear when they are written; a stopped job may finish its step and write a checkpoint, Ray's 3 s are short.
    forwarded = {"PYTHONUNBUFFERED": "1", "RAY_JOB_STOP_WAIT_TIME_S": _STOP_GRACE_S}
    if environment.get(LOG_FORMAT):
        forwarded[LOG_FORMAT] = environment[LOG_FORMAT]
    uri = environment.get("MLFLOW_TRACKING_URI", "")
    if uri.startswith(("http://", "https://")) and "@" not in uri:
        forwarded["MLFLOW_TRACKING_URI"] = uri
    return forwarded


class FollowedJob:
    """A submitted job whose log is written somewhere as it grows, every character once."""

    def __init__(self, client: "JobSubmissionClient", submission_id: str, write: Callable[[str], object]) -> None:
        self.submission_id = submission_id
        self._client = client
        self._write = write
        self._num_written = 0

    def follow(self) -> int:
        """Write the log until the job is over; returns its exit code.

        A dashboard or tunnel that is away for minutes is waited for: the job goes on meanwhile. After an interruption,
        another call goes on where this one ended.

        Raises:
            ConnectionError: it was away for too long; names the job and how to go on.
        """
        while True:
            try:
                asyncio.run(self._write_log())
            except Exception as error:  # RuntimeError, aiohttp's, the system's: the connection broke
                logger.warning("job %s: following its log broke off (%s)", self.submission_id, _first_line(error))
            job = self._ask(lambda: self._client.get_job_info(self.submission_id))
            if str(job.status) in _TERMINAL:
                self._write_beyond(0, self._ask(lambda: self._client.get_job_logs(self.submission_id)))
                return exit_code_of(job)
            time.sleep(_POLL_S)

    def stop(self) -> None:
        """Ask the job to stop; it gets SIGTERM, and time to write a checkpoint."""
        self._ask(lambda: self._client.stop_job(self.submission_id))

    def _ask(self, request: Callable[[], _T]) -> _T:
        """Ask the dashboard, until it answers or was away for too long."""
        since, wait_s = time.monotonic(), _POLL_S
        while True:
            try:
                return request()
            except Exception as error:  # RuntimeError, requests' or the system's: all mean no answer, but for one
                if "404" in str(error) or "does not exist" in str(error):
                    raise ConnectionError(
                        f"the cluster does not know job {self.submission_id} any more: its head was started again. "
                        "Submitting the same command again continues the run"
                    ) from error
                if time.monotonic() - since > PATIENCE_S:
                    raise ConnectionError(
                        f"the dashboard was away for {PATIENCE_S / 60:.0f} minutes ({error}); job {self.submission_id} "
                        f"may still run. Follow it with: ray-llava follow {self.submission_id}"
                    ) from error
                wait_s = min(2 * wait_s, _LONGEST_WAIT_S)
                logger.warning(
                    "job %s: the dashboard does not answer (%s); the job goes on, asking again in %.0f s",
                    self.submission_id, _first_line(error), wait_s,
                )  # fmt: skip
                time.sleep(wait_s)

    async def _write_log(self) -> None:
        """Write what is new in the log until it ends, the connection breaks, or nothing has come for minutes."""
        position = 0
        chunks = aiter(self._client.tail_job_logs(self.submission_id))
        while True:
            try:
                # a broken tunnel gives no message either
                chunk = await asyncio.wait_for(anext(chunks), _SILENCE_S)
            except (StopAsyncIteration, TimeoutError):
                return
            self._write_beyond(position, chunk)
            position += len(chunk)

    def _write_beyond(self, position: int, text: str) -> None:
        """Write the part of `text`, which begins at `position` of the log, that was not written before."""
        fresh = text[max(0, self._num_written - position) :]
        if fresh:
            self._write(fresh)
            self._num_written = position + len(text)


class KnownJob(NamedTuple):
    """A job of ours that a cluster knows."""

    submission_id: str
    status: str
    start_time_ms: int
    entrypoint: str


def list_own_jobs(client: "JobSubmissionClient") -> list[KnownJob]:
    """Return the jobs that `submit` has sent, oldest first."""
    jobs = (
        KnownJob(job.submission_id, str(job.status), int(job.start_time or 0), job.entrypoint)
        for job in client.list_jobs()
        if (job.submission_id or "").startswith(f"{NAME_PREFIX}-")
    )
    return sorted(jobs, key=lambda job: job.start_time_ms)


def find_job(jobs: Sequence[KnownJob], name: str) -> KnownJob:
    """Return the newest job of a name.

    Args:
        jobs: Oldest first.
        name: A submission id, or a run's name, with or without the verb.

    Raises:
        SubmitError: there is none.
    """
    wanted = re.compile(rf"({NAME_PREFIX}-)?([a-z-]+-)?{re.escape(job_name(name))}(-\d{{3,}})?")
    exact = [job for job in jobs if job.submission_id == name]
    found = exact or [job for job in jobs if wanted.fullmatch(job.submission_id)]
    if not found:
        known = ", ".join(job.submission_id for job in jobs[-5:]) or "none"
        raise SubmitError(f"no job of the name {name!r}; the newest jobs of ray-llava there: {known}")
    return found[-1]


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:200] or type(error).__name__


def exit_code_of(job: "JobDetails") -> int:
    """Return the exit code of a job that is over; 1 if its command never ran."""
    match str(job.status):
        case "SUCCEEDED":
            return 0
        case "STOPPED":
            return STOPPED_EXIT_CODE
    code: int | None = job.driver_exit_code
    if code is None:
        return 1
    return code if code >= 0 else 128 - code  # ended by a signal: as a shell reports it


def check_token_file(path: Path) -> None:
    """Check the file that RAY_AUTH_TOKEN_PATH names.

    Raises:
        SubmitError: it is missing, or others on this machine can read it.
    """
    if not path.is_file():
        raise SubmitError(f"RAY_AUTH_TOKEN_PATH {path}: no such file")
    if path.stat().st_mode & 0o077:
        raise SubmitError(f"RAY_AUTH_TOKEN_PATH {path}: readable by others; chmod 600 {path}")


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
