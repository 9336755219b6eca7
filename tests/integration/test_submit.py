"""`ray-llava submit` against a head node started with the commands of ray_cluster.yaml: token, logs, exit codes.

The head has its own ports, folder and process group; it is ended by that group, since `ray stop` would end every Ray
cluster on the machine.
"""

import contextlib
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
import yaml
from mlflow import MlflowClient

from tests.integration.conftest import WriteConfig
from tests.integration.runs import losses

pytestmark = pytest.mark.ray

CLUSTER_FILE = Path(__file__).parents[2] / "ray_cluster.yaml"
START_TIMEOUT_S = 120


class Head(NamedTuple):
    """A running head node."""

    address: str
    token_path: Path
    environment: dict[str, str]
    """Environment of a shell that may submit to it."""
    port: int
    """Of the head itself, which RAY_ADDRESS names."""


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [entry.getsockname()[1] for entry in sockets]


def start_command(temp_dir: Path) -> tuple[str, int, int]:
    """Return the file's own head command on free ports and with its own folder, the dashboard's and the head's port."""
    config = yaml.safe_load(CLUSTER_FILE.read_text(encoding="utf-8"))
    (command,) = [entry for entry in config["head_start_ray_commands"] if "ray start" in entry]
    names = ["port", "object-manager-port", "dashboard-port", "node-manager-port", "ray-client-server-port"]
    names += [
        "dashboard-agent-listen-port",
        "dashboard-agent-grpc-port",
        "runtime-env-agent-port",
        "metrics-export-port",
    ]
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    for name, port in ports.items():
        command, count = re.subn(rf"--{name}=\d+", f"--{name}={port}", command)
        command += "" if count else f" --{name}={port}"
    command = command.replace("--autoscaling-config=$HOME/ray_bootstrap_config.yaml", "")
    return f"{command} --num-cpus=4 --block --temp-dir={temp_dir}", ports["dashboard-port"], ports["port"]


def status_of(url: str, token: str | None = None, method: str = "GET") -> int:
    request = urllib.request.Request(url, method=method, data=b"{}" if method == "POST" else None)
    if token is not None:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code


def end_processes_of(temp_dir: Path) -> None:
    """End what the head started; its daemons name its folder on their command lines."""
    for process in psutil.process_iter(["cmdline"]):
        if process.pid != os.getpid() and any(str(temp_dir) in part for part in process.info["cmdline"] or []):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
                process.wait()


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    home = Path(tempfile.mkdtemp(prefix="rl-", dir="/tmp"))  # Ray's socket paths must stay short
    (home / "venv" / "bin").mkdir(parents=True)
    (home / "venv" / "bin" / "ray").symlink_to(Path(sys.executable).with_name("ray"))
    token_path = home / ".ray" / "auth_token"
    token_path.parent.mkdir(mode=0o700)
    token_path.touch(mode=0o600)
    token_path.write_text(secrets.token_hex(16), encoding="utf-8")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))}
    command, port, head_port = start_command(home / "r")
    with (home / "head.log").open("wb") as log:
        process = subprocess.Popen(
            ["bash", "-c", command], env=clean | {"HOME": str(home)}, stdout=log, stderr=log, start_new_session=True
        )
    try:
        wait_until_up(process, f"http://127.0.0.1:{port}/api/version", home / "head.log")
        yield Head(
            address=f"http://127.0.0.1:{port}",
            token_path=token_path,
            environment=clean
            | {"RAY_AUTH_TOKEN_PATH": str(token_path), "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{port}"},
            port=head_port,
        )
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        end_processes_of(home)
        shutil.rmtree(home, ignore_errors=True)


def wait_until_up(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        assert process.poll() is None, f"the head ended:\n{log.read_text()}"
        with contextlib.suppress(OSError):
            if status_of(url) == 401:
                return
        time.sleep(0.2)
    raise AssertionError(f"no head after {START_TIMEOUT_S} s:\n{log.read_text()}")


def start_submit(head: Head, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "jobs", "submit", *arguments],
        env=head.environment | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def submit(head: Head, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    process = start_submit(head, *arguments, **environment)
    stdout, stderr = process.communicate(timeout=240)
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


@pytest.mark.parametrize(("path", "method"), [("/api/version", "GET"), ("/api/jobs/", "GET"), ("/api/jobs/", "POST")])
def test_request_is_refused_without_the_token_and_with_a_wrong_one(head: Head, path: str, method: str) -> None:
    assert status_of(head.address + path, method=method) == 401
    assert status_of(head.address + path, token="0" * 32, method=method) == 403


def test_request_with_the_token_is_answered(head: Head) -> None:
    assert status_of(f"{head.address}/api/jobs/", token=head.token_path.read_text()) == 200


def test_logs_of_the_head_are_private(head: Head) -> None:
    logs = [path for path in (head.token_path.parents[1] / "r").glob("session_2*/logs/*.log") if path.stat().st_size]
    assert [path.name for path in logs if path.stat().st_mode & 0o077] == []
    assert len(logs) > 3


def test_submit_with_a_wrong_token_says_where_the_right_one_is(head: Head, tmp_path: Path) -> None:
    wrong = tmp_path / "token"
    wrong.touch(mode=0o600)
    wrong.write_text("0" * 32)
    result = submit(head, "--", "index", RAY_AUTH_TOKEN_PATH=str(wrong))
    assert result.returncode == 2
    assert "refused the token" in result.stderr
    assert "Traceback" not in result.stderr


ASK = "import sys; from pipeline.launch.on_ray.door import check_admits; check_admits(sys.argv[1]); print('admitted')"


@pytest.mark.parametrize(
    ("token", "said"),
    [
        (None, "requires a token, this process sends none: set RAY_AUTH_MODE=token"),
        ("wrong", "refused the token of"),
        ("right", "admitted"),
        ("dashboard", "what listens there is no Ray head"),
    ],
)
def test_head_without_the_right_token_is_named_by_one_call(
    head: Head, tmp_path: Path, token: str | None, said: str
) -> None:
    wrong = tmp_path / "token"
    wrong.touch(mode=0o600)
    wrong.write_text("0" * 64)
    path = wrong if token == "wrong" else head.token_path
    environment = {name: value for name, value in head.environment.items() if not name.startswith("RAY_")}
    if token is not None:
        environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(path)}
    port = head.address.rpartition(":")[2] if token == "dashboard" else head.port
    ended = subprocess.run(
        [sys.executable, "-c", ASK, f"127.0.0.1:{port}"], env=environment, capture_output=True, text=True, check=False
    )
    assert said in ended.stdout + ended.stderr


def test_submitted_jobs_are_listed_and_followed_again_by_name(head: Head) -> None:
    assert submit(head, "--", "mlflow-replay", "/no/such/other").returncode == 2

    def call(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "jobs", *words]
        return subprocess.run(command, env=head.environment, capture_output=True, text=True, check=False, timeout=240)

    assert re.search(r"ray-llava-mlflow-replay-001\W+FAILED", call("list").stdout)
    assert "-001: FAILED, started 2" in call("status", "mlflow-replay-001").stdout
    followed = call("follow", "ray-llava-mlflow-replay-001")
    assert (followed.returncode, followed.stdout.count("error: /no/such/other: no tracked run here")) == (2, 1)
    assert "no job of the name 'absent'" in call("status", "absent").stderr


def test_submitted_verb_shows_its_output_and_passes_its_exit_code_on(head: Head) -> None:
    """The job fails in the ray-llava command on the cluster, with the exit code of a config error."""
    result = submit(head, "--", "mlflow-replay", "/no/such/run")
    assert result.returncode == 2
    assert "job ray-llava-mlflow-replay-002 submitted" in result.stderr
    assert result.stdout.count("error: /no/such/run: no tracked run here (tracking.jsonl is missing)") == 1
    again = submit(head, "--", "mlflow-replay", "/no/such/run")
    assert again.returncode == 2
    assert "job ray-llava-mlflow-replay-003 submitted" in again.stderr


@pytest.mark.slow
def test_training_job_stopped_by_interrupting_submit_is_continued_by_submitting_it_again(
    head: Head, write_config: WriteConfig, tmp_path: Path
) -> None:
    run_dir = tmp_path / "pre"
    command = ["--", "pretrain", "-c", str(write_config("pre")), "cluster.launcher=ray", "cluster.data_workers=1"]
    command += ["tracking.enabled=true", "training.num_epochs=80", "training.max_steps=300"]
    first = start_submit(head, *command)
    while not (run_dir / "metrics.jsonl").exists() or len(losses(run_dir)) < 5:
        assert first.poll() is None, first.communicate()
        time.sleep(0.1)
    first.send_signal(signal.SIGINT)
    output, messages = first.communicate(timeout=240)
    assert first.returncode == 130, messages
    assert "stopping job ray-llava-pretrain-pretrain-test-001" in messages
    assert "pretrain-test: step 1/300" in output
    num_before = len(losses(run_dir))
    assert 5 <= num_before < 300

    second = submit(head, *command)
    assert second.returncode == 0, second.stdout + second.stderr
    assert "job ray-llava-pretrain-pretrain-test-002 submitted" in second.stderr
    assert [step for step, _ in losses(run_dir)] == list(range(300))
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (experiment,) = [entry for entry in client.search_experiments() if entry.name == "ray-llava"]
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.status, run.data.tags["ray_llava.attempt"]) == ("FINISHED", "2")
    assert sorted(m.step for m in client.get_metric_history(run.info.run_id, "train/loss")) == list(range(300))


@pytest.mark.slow
def test_job_with_the_users_own_packages_in_its_working_dir_runs_the_installed_code(
    head: Head, write_config: WriteConfig, tmp_path: Path
) -> None:
    user = tmp_path / "user"
    (user / "model").mkdir(parents=True)
    (user / "model" / "__init__.py").write_text("raise RuntimeError('the model of the user')\n")
    (user / "pipeline.py").write_text("raise RuntimeError('the pipeline of the user')\n")
    settings = ["cluster.launcher=ray", "cluster.data_workers=1", "training.max_steps=1"]
    command = ["pretrain", "-c", str(write_config("own")), *settings]
    result = submit(head, "--working-dir", str(user), "--", *command)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "finished after 1 steps" in result.stdout
