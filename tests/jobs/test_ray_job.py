import http.server
import shlex
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest

from jobs.ray_job import (
    FollowedJob,
    JobActiveError,
    KnownJob,
    SubmitError,
    build_entrypoint,
    check_address,
    check_requires_token,
    check_token_file,
    find_job,
    forwarded_environment,
    job_name,
    next_submission_id,
)

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:8265", "http://localhost:8265/", "http://[::1]:8265", "https://cluster.example"]
)
def test_address_that_cannot_be_overheard_is_accepted(address: str) -> None:
    assert check_address(address, allow_unencrypted=False) == address.rstrip("/")


@pytest.mark.parametrize("address", ["http://10.1.2.3:8265", "http://cluster.example", "http://127.0.0.1.example:8265"])
def test_address_on_another_machine_without_tls_is_refused_unless_told_to(address: str) -> None:
    with pytest.raises(SubmitError, match="unencrypted"):
        check_address(address, allow_unencrypted=False)
    assert check_address(address, allow_unencrypted=True) == address


@pytest.mark.parametrize("address", ["auto", "ray://127.0.0.1:10001", "127.0.0.1:8265", "http://"])
def test_address_that_is_no_http_url_is_refused(address: str) -> None:
    with pytest.raises(SubmitError, match="expected http://HOST:PORT"):
        check_address(address, allow_unencrypted=True)


class _Answer(http.server.BaseHTTPRequestHandler):
    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[str]:
    """A server that answers every request with the status that the test asks for."""
    handler = type("Answer", (_Answer,), {"status": request.param})
    with http.server.HTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


@pytest.mark.parametrize("server", [401, 403], indirect=True)
def test_cluster_that_wants_a_token_is_accepted(server: str) -> None:
    check_requires_token(server)


@pytest.mark.parametrize("server", [200, 404, 500], indirect=True)
def test_cluster_that_answers_without_a_token_is_refused(server: str) -> None:
    with pytest.raises(SubmitError, match=r"without a token \(status \d+, expected 401\)"):
        check_requires_token(server)


def test_cluster_that_does_not_answer_is_reported(unused_port: int) -> None:
    with pytest.raises(SubmitError, match=f"no Ray cluster answers at http://127.0.0.1:{unused_port}"):
        check_requires_token(f"http://127.0.0.1:{unused_port}")


@pytest.fixture
def unused_port() -> int:
    with http.server.HTTPServer(("127.0.0.1", 0), _Answer) as closed_at_once:
        return closed_at_once.server_port


def test_submission_id_counts_the_attempts_of_the_same_name_only() -> None:
    jobs = [
        ("a-001", "SUCCEEDED"),
        ("a-007", "STOPPED"),
        ("b-011", "RUNNING"),
        ("a-b-013", "RUNNING"),
        (None, "RUNNING"),
    ]
    assert next_submission_id("a", jobs) == "a-008"
    assert next_submission_id("c", jobs) == "c-001"


@pytest.mark.parametrize("status", ["PENDING", "RUNNING"])
def test_submission_while_an_earlier_attempt_is_active_is_refused(status: str) -> None:
    with pytest.raises(JobActiveError, match=f"job a-002 is {status}"):
        next_submission_id("a", [("a-001", "STOPPED"), ("a-002", status)])


def test_job_name_keeps_what_is_fit_for_an_id() -> None:
    assert job_name("ray-llava", "pretrain", "my run/\u2116 3 (b)") == "ray-llava-pretrain-my-run-3-b"
    assert job_name("ray-llava", "index", "") == "ray-llava-index"


def test_entrypoint_survives_the_shell() -> None:
    arguments = ["--config", "a b.yaml", "data.shards=['x;rm -rf /']", "name=$(touch /tmp/x)"]
    entrypoint = build_entrypoint("/opt/my venv/bin/python", "pretrain", arguments)
    assert shlex.split(entrypoint) == ["/opt/my venv/bin/python", "-m", "jobs", "pretrain", *arguments]


def test_job_inherits_the_address_of_a_shared_mlflow_and_no_secrets() -> None:
    environment = {
        "MLFLOW_TRACKING_URI": "https://mlflow.example",
        "MLFLOW_TRACKING_PASSWORD": "s3cret",
        "HOME": "/root",
    }
    forwarded = forwarded_environment(environment)
    assert forwarded.pop("RAY_JOB_STOP_WAIT_TIME_S") == "120"
    assert forwarded == {"PYTHONUNBUFFERED": "1", "MLFLOW_TRACKING_URI": "https://mlflow.example"}


@pytest.mark.parametrize("uri", ["sqlite:////home/me/mlflow.db", "https://user:s3cret@mlflow.example", ""])
def test_job_does_not_inherit_a_tracking_address_that_is_local_or_holds_a_password(uri: str) -> None:
    assert "MLFLOW_TRACKING_URI" not in forwarded_environment({"MLFLOW_TRACKING_URI": uri})


def test_token_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "token"
    with pytest.raises(SubmitError, match="no such file"):
        check_token_file(path)
    path.write_text("t")
    path.chmod(0o644)
    with pytest.raises(SubmitError, match="readable by others; chmod 600"):
        check_token_file(path)
    path.chmod(0o600)
    check_token_file(path)


class FlakyClient:
    """A jobs API whose log connection breaks, as `JobSubmissionClient` shows it."""

    def __init__(self, log: str, cuts: list[int], exit_code: int | None, status: str) -> None:
        self._log, self._cuts, self._exit_code, self._status = log, cuts, exit_code, status

    async def tail_job_logs(self, submission_id: str) -> AsyncIterator[str]:
        if not self._cuts:
            for start in range(0, len(self._log), 7):
                yield self._log[start : start + 7]
            return
        cut = self._cuts.pop(0)
        for start in range(0, cut, 5):
            yield self._log[start : min(start + 5, cut)]
        raise RuntimeError("WebSocket connection closed unexpectedly")

    def get_job_info(self, submission_id: str) -> SimpleNamespace:
        status = "RUNNING" if self._cuts else self._status
        return SimpleNamespace(status=status, driver_exit_code=self._exit_code)

    def get_job_logs(self, submission_id: str) -> str:
        return self._log


LOG = "".join(f"line {number}\n" for number in range(23))


@pytest.mark.parametrize("cuts", [[], [11], [31, 0, 17, 53]])
def test_followed_log_is_written_once_however_often_the_connection_breaks(
    cuts: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.ray_job._POLL_S", 0)
    written: list[str] = []
    client = cast("JobSubmissionClient", FlakyClient(LOG, cuts, exit_code=0, status="SUCCEEDED"))
    assert FollowedJob(client, "id", written.append).follow() == 0
    assert "".join(written) == LOG


@pytest.mark.parametrize(
    ("status", "driver_exit_code", "expected"),
    [("SUCCEEDED", 0, 0), ("FAILED", 3, 3), ("FAILED", -9, 137), ("FAILED", None, 1), ("STOPPED", None, 143)],
)
def test_exit_code_of_a_job_is_that_of_its_command(status: str, driver_exit_code: int | None, expected: int) -> None:
    client = cast("JobSubmissionClient", FlakyClient("", [], driver_exit_code, status))
    assert FollowedJob(client, "id", str).follow() == expected


class AwayClient(FlakyClient):
    """A jobs API that is away for some requests after its log broke off."""

    def __init__(self, num_away: int, message: str = "Max retries exceeded") -> None:
        super().__init__(LOG, [13], exit_code=5, status="FAILED")
        self.num_away, self.message = num_away, message

    def get_job_info(self, submission_id: str) -> SimpleNamespace:
        if self.num_away:
            self.num_away -= 1
            raise ConnectionError(self.message)
        return super().get_job_info(submission_id)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Pauses that were asked for; time passes by them alone."""
    recorded: list[float] = []
    monkeypatch.setattr("jobs.ray_job.time.sleep", recorded.append)
    monkeypatch.setattr("jobs.ray_job.time.monotonic", lambda: sum(recorded))
    return recorded


def test_dashboard_that_is_away_for_minutes_is_waited_for_and_the_log_goes_on(waits: list[float]) -> None:
    written: list[str] = []
    client = cast("JobSubmissionClient", AwayClient(num_away=41))
    assert FollowedJob(client, "ray-llava-pretrain-a-001", written.append).follow() == 5
    assert "".join(written) == LOG
    assert sum(waits) > 600


def test_dashboard_that_stays_away_is_given_up_naming_job_and_verb(waits: list[float]) -> None:
    client = cast("JobSubmissionClient", AwayClient(num_away=10_000))
    with pytest.raises(
        ConnectionError, match=r"may still run\. Follow it with: ray-llava follow ray-llava-pretrain-a-001"
    ):
        FollowedJob(client, "ray-llava-pretrain-a-001", str).follow()
    assert 1800 < sum(waits) < 1900


def test_job_that_a_restarted_head_does_not_know_is_not_waited_for(waits: list[float]) -> None:
    client = cast(
        "JobSubmissionClient", AwayClient(10_000, "Request failed with status code 404: Job a does not exist")
    )
    with pytest.raises(ConnectionError, match="does not know job a any more"):
        FollowedJob(client, "a", str).follow()
    assert sum(waits) < 1


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("run one", "ray-llava-pretrain-run-one-003"),
        ("ray-llava-pretrain-run-one-001", "ray-llava-pretrain-run-one-001"),
        ("ray-llava-pretrain-run-one", "ray-llava-pretrain-run-one-003"),
        ("pretrain-run-one", "ray-llava-pretrain-run-one-003"),
        ("one", "ray-llava-index-one-001"),
    ],
)
def test_job_is_found_by_id_or_name_of_the_run(name: str, expected: str) -> None:
    ids = ["pretrain-run-one-001", "pretrain-run-one-003", "index-one-001", "cache-features-x-001"]
    jobs = [KnownJob(f"ray-llava-{rest}", "RUNNING", number, "") for number, rest in enumerate(ids)]
    assert find_job(jobs, name).submission_id == expected
    with pytest.raises(
        SubmitError, match="no job of the name 'run'; the newest jobs of ray-llava there: ray-llava-pre"
    ):
        find_job(jobs, "run")
