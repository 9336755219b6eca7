"""A run under Ray Train, started as a user starts it, whose processes can be found and killed."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import psutil

from tests.chaos.ledger import ViolationError
from tests.chaos.runs import Result, read_result
from tests.chaos.world import World

Role = Literal["train worker", "data worker", "controller", "driver"]

TITLES: dict[Role, tuple[str, ...]] = {
    "train worker": ("ray::RayTrainWorker",),
    "data worker": ("ray::MapBatches", "ray::Map", "ray::ReadRange"),
    "controller": ("ray::TrainController",),
}
"""How Ray names the processes that play a role."""

_ROOT = Path(__file__).parents[2]
_ON_RAY = (
    "cluster.launcher=ray", "cluster.num_workers=2", "cluster.data_workers=2", "cluster.max_failures=99",
)  # fmt: skip
_RUN_TIMEOUT_S = 300.0
_ORPHAN_TIMEOUT_S = 60.0
_AGENTS = ("ray::RuntimeEnvAgent", "ray::DashboardAgent")


@dataclass
class RayRun:
    """A run folder, and the driver that works on it."""

    world: World
    run_dir: Path
    overrides: tuple[str, ...] = ()
    extra_environment: dict[str, str] = field(default_factory=dict)
    driver: subprocess.Popen[bytes] | None = field(default=None, init=False)

    @property
    def witness(self) -> Path:
        """File that the training processes report to."""
        return self.run_dir.with_suffix(".witness")

    @property
    def marks(self) -> Path:
        """File with the moments that training processes pass while they start."""
        return self.run_dir.with_suffix(".marks")

    @property
    def log(self) -> Path:
        """File with what the driver printed."""
        return self.run_dir.with_suffix(".log")

    def start(self) -> None:
        """Start the driver in a session of its own."""
        config = self.world.write_config(self.run_dir)
        with self.log.open("ab") as log:
            self.driver = subprocess.Popen(
                [sys.executable, "-m", "jobs", "finetune", "--config", str(config), *_ON_RAY, *self.overrides],
                cwd=_ROOT,
                env=os.environ | self.environment() | self.extra_environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def environment(self) -> dict[str, str]:
        """Return what must be set for the driver and, through it, for all processes of its Ray."""
        return {
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent / "site"), str(_ROOT)]),
            "OMP_NUM_THREADS": "1",
            "CHAOS_WITNESS": str(self.witness),
            "CHAOS_MARKS": str(self.marks),
            "CHAOS_STEP_DELAY_S": "0.3",  # or the run would be over before the next kill
        }

    def is_alive(self) -> bool:
        """Whether the driver runs."""
        return self.driver is not None and self.driver.poll() is None

    def processes(self, role: Role) -> list[psutil.Process]:
        """Return the living processes of a role below the driver."""
        assert self.driver is not None
        if role == "driver":
            return [psutil.Process(self.driver.pid)] if self.is_alive() else []
        return [process for process in _below(self.driver.pid) if _title(process).startswith(TITLES[role])]

    def kill(self, role: Role, rng: random.Random) -> int | None:
        """SIGKILL a random process of a role; returns its id, None when there is none right now."""
        found = self.processes(role)
        if not found:
            return None
        victim = rng.choice(sorted(found, key=lambda process: process.pid))
        below = _below(victim.pid) if role == "driver" else []
        os.kill(victim.pid, signal.SIGKILL)
        if role == "driver":
            assert self.driver is not None
            self.driver.wait()
            _wait_for_orphans(below)
        return int(victim.pid)

    def wait(self) -> Result:
        """Wait for the driver to end well; returns what the run left behind.

        Raises:
            ViolationError: it ended with another exit code than 0, or not at all.
        """
        assert self.driver is not None
        try:
            code = self.driver.wait(_RUN_TIMEOUT_S)
        except subprocess.TimeoutExpired as error:
            self.driver.kill()
            raise ViolationError(f"{self.run_dir}: still running after {_RUN_TIMEOUT_S} s") from error
        if code:
            raise ViolationError(f"{self.run_dir}: ended with {code}:\n{self.log.read_text()[-4000:]}")
        return read_result(self.run_dir, self.witness, self.world)

    def num_steps_reported(self) -> int:
        """Count the lines of the witness."""
        return self.witness.read_bytes().count(b"\n") if self.witness.exists() else 0


@contextmanager
def started(run: RayRun) -> Iterator[RayRun]:
    """Start a run, and leave no driver behind whatever happens inside the block."""
    run.start()
    try:
        yield run
    finally:
        if run.driver is not None and run.driver.poll() is None:
            below = _below(run.driver.pid)
            run.driver.kill()
            run.driver.wait()
            _wait_for_orphans(below)


def _below(pid: int) -> list[psutil.Process]:
    try:
        return list(psutil.Process(pid).children(recursive=True))
    except psutil.NoSuchProcess:
        return []


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return ""


def _wait_for_orphans(processes: list[psutil.Process]) -> None:
    """Wait until what a killed driver left behind is gone; Ray ends it by itself.

    Ray's two agents, which hold nothing of the run, take minutes on a busy machine; they are killed here.

    Raises:
        ViolationError: a process that could still work on the run stays; it is killed.
    """
    agents = [process for process in processes if _title(process).startswith(_AGENTS)]
    workers = [process for process in processes if process not in agents]
    _, alive = psutil.wait_procs(workers, timeout=_ORPHAN_TIMEOUT_S)
    titles = [_title(process).strip() for process in alive]
    for process in [*alive, *(agent for agent in agents if agent.is_running())]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    if alive:
        raise ViolationError(f"{_ORPHAN_TIMEOUT_S} s after the driver was killed these were alive: {titles}")


def wait_until(condition_of: RayRun, num_steps: int, timeout_s: float = _RUN_TIMEOUT_S) -> bool:
    """Wait until a run has reported so many steps; false when its driver ended before."""
    deadline = time.monotonic() + timeout_s
    while condition_of.num_steps_reported() < num_steps:
        if not condition_of.is_alive() or time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True
