"""An MLflow server that is dead for a whole run and comes back: what it costs, and what a replay then brings."""

from __future__ import annotations

import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.chaos.ledger import ViolationError
from tests.chaos.nursery import Nursery
from tests.chaos.runs import Run
from tests.chaos.tracking import check_points
from tests.chaos.world import World

_ROOT = Path(__file__).parents[2]
_LONG = ("training.num_epochs=15", "checkpoint.every_steps=1000", "training.global_batch_size=10")
_WARM_UP_STEPS = 5
_START_TIMEOUT_S = 90.0


class Outage(NamedTuple):
    """What runs with a dead server cost, against the same runs with a live one and with none."""

    runs_of_each_kind: int
    steps_timed: int
    """Of each kind."""
    step_ms_untracked: float
    """Median over all steps; the three kinds take turns."""
    step_ms_server_alive: float
    step_ms_server_dead: float
    dead_against_untracked_percent: float
    """Median of the differences of neighbouring runs; positive: slower."""
    end_of_run_wait_s: float
    """Longest time a run with a dead server stayed after its last step, to try once more."""
    exit_codes: list[int]
    """Of the runs with a dead server."""
    points_after_replay: int
    """Metric points of the dead-server runs on the server after it came back and two replays: each exactly once."""


class Server:
    """An MLflow server on this machine with a database of its own."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run inside the block; it is killed, not asked to stop, at the end."""
        command = [
            sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1",
            "--backend-store-uri", f"sqlite:///{self._folder / 'server.db'}",
            "--artifacts-destination", str(self._folder / "artifacts"),
        ]  # fmt: skip
        with (self._folder / "server.log").open("ab") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            self._wait(process)
            yield
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def _wait(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + _START_TIMEOUT_S
        while time.monotonic() < deadline and process.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=1.0):
                    return
            except OSError:
                time.sleep(0.2)
        raise RuntimeError(f"no MLflow server: {(self._folder / 'server.log').read_text()[-2000:]}")


def measure_outage(world: World, nursery: Nursery, folder: Path, num_rounds: int) -> Outage:
    """Train untracked, with a live server and with a dead one in turn; bring the server back and replay.

    Raises:
        ViolationError: a run failed, or a point is missing or there twice after the replay.
    """
    server = Server(folder / "server")
    tracked = ("tracking.enabled=true", f"tracking.uri={server.uri}")
    times: dict[str, list[float]] = {"untracked": [], "alive": [], "dead": []}
    medians: dict[str, list[float]] = {kind: [] for kind in times}
    dead_runs: list[Path] = []
    waits: list[float] = []
    for number in range(num_rounds):
        for kind, found in times.items():
            run_dir = folder / f"{kind}-{number}"
            run = Run(world, nursery, run_dir, overrides=_LONG + (() if kind == "untracked" else tracked))
            if kind == "alive":
                with server.running():
                    ended = _finish(run)
            else:
                ended = _finish(run)
            steps = _step_times(run_dir)
            found += steps
            medians[kind].append(statistics.median(steps))
            if kind == "dead":
                dead_runs.append(run_dir)
                waits.append(ended - _last_step_at(run_dir))
    num_points = 0
    with server.running():
        for run_dir in dead_runs:
            for _ in range(2):
                _replay(run_dir)
            num_points += check_points(run_dir, server.uri)
    pairs = zip(medians["dead"], medians["untracked"], strict=True)
    step_ms = {kind: round(1000 * statistics.median(found), 2) for kind, found in times.items()}
    return Outage(
        runs_of_each_kind=num_rounds,
        steps_timed=len(times["dead"]),
        step_ms_untracked=step_ms["untracked"],
        step_ms_server_alive=step_ms["alive"],
        step_ms_server_dead=step_ms["dead"],
        dead_against_untracked_percent=round(100 * statistics.median(dead / calm - 1 for dead, calm in pairs), 2),
        end_of_run_wait_s=round(max(waits), 1),
        exit_codes=[0] * len(dead_runs),
        points_after_replay=num_points,
    )


def _finish(run: Run) -> float:
    """Train to the end, independent of the server; returns when the process ended, seconds since the epoch."""
    (child,) = run.start()
    if code := child.wait(300.0):
        raise ViolationError(f"{run.run_dir}: ended with {code}:\n{child.output()}")
    return time.time()


def _replay(run_dir: Path) -> None:
    command = [sys.executable, "-m", "jobs", "mlflow-replay", str(run_dir)]
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ViolationError(f"{run_dir}: mlflow-replay ended with {done.returncode}:\n{done.stderr}")


def _lines(run_dir: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def _step_times(run_dir: Path) -> list[float]:
    entries: list[dict[str, dict[str, float]]] = _lines(run_dir)  # type: ignore[assignment]
    return [entry["metrics"]["perf/step_time_s"] for entry in entries[_WARM_UP_STEPS:]]


def _last_step_at(run_dir: Path) -> float:
    return float(_lines(run_dir)[-1]["time_s"])  # type: ignore[arg-type]
