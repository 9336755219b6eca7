"""A process that has imported the product once and forks a child for every attempt at a run.

A start of the command line spends five seconds on imports; a fork costs 30 ms, so a hundred kills take a minute. The
nursery starts no thread and computes nothing, so a child inherits no lock and no thread pool in an unknown state.
The child runs what the command runs: `run_training` on a config file, and the exit code that the command gives.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

_ROOT = Path(__file__).parents[2]


@dataclass
class Child:
    """One process of an attempt."""

    pid: int
    log: Path
    """What it printed."""
    nursery: Nursery = field(repr=False)
    exit_code: int | None = None
    """Negative: the signal that ended it; None while it runs."""

    def poll(self) -> int | None:
        """Return the exit code, None while it runs."""
        if self.exit_code is None:
            self.exit_code = self.nursery.ask({"poll": self.pid})
        return self.exit_code

    def wait(self, timeout_s: float) -> int:
        """Return the exit code.

        Raises:
            TimeoutError: it still runs; it is killed.
        """
        deadline = time.monotonic() + timeout_s
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                self.kill()
                raise TimeoutError(f"process {self.pid} still ran after {timeout_s} s; its output:\n{self.output()}")
            time.sleep(0.003)
        return code

    def kill(self) -> int:
        """Send SIGKILL unless it has ended; returns the exit code, which tells whether the signal came in time."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)  # not yet reaped, so the number is still this child's
        return self.wait(10.0)

    def output(self) -> str:
        """Return what it printed so far."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""


class Nursery:
    """Starts children; a context manager that leaves none behind."""

    def __init__(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.nursery"],
            cwd=_ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Nursery:
        """Start to use it."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """End it; it kills the children that still run."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def start(self, target: str, arguments: Sequence[str], log: Path, environment: dict[str, str]) -> Child:
        """Fork a child.

        Args:
            target: a name in `tests.chaos.attempt.TARGETS`.
            arguments: of that function.
            log: file that its output is appended to.
            environment: variables to set in the child.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        request = {"target": target, "arguments": list(arguments), "log": str(log), "environment": environment}
        return Child(self.ask({"start": request}), log, self)

    def ask(self, request: dict[str, Any]) -> Any:
        """Send a request to the process and return its answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the nursery ended with {self._process.wait()}")
        return json.loads(answer)


def serve() -> None:
    """Answer requests until the input ends."""
    from tests.chaos.attempt import become, preload

    preload()
    running: set[int] = set()
    for line in sys.stdin:
        request = json.loads(line)
        if "start" in request:
            pid = os.fork()
            if pid == 0:
                become(request["start"])  # never returns
            running.add(pid)
            answer: int | None = pid
        else:
            ended, status = os.waitpid(request["poll"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if ended else None
            running.discard(ended)
        print(json.dumps(answer), flush=True)
    for pid in running:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


if __name__ == "__main__":
    serve()
