"""Requests to stop, by real signals in processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from pipeline.training.notices import sigterm_as_request

SCRIPT = """
import os, signal, sys
from pipeline.training import notices
notices._SAME_REQUEST_S = float(sys.argv[1])
with notices.sigterm_as_request() as requested:
    os.kill(os.getpid(), signal.SIGTERM)
    assert requested.is_set()
    if sys.argv[2] == "within":
        os.kill(os.getpid(), signal.SIGTERM)
if sys.argv[2] == "after":
    os.kill(os.getpid(), signal.SIGTERM)
print("saved")
"""


def run(seconds: float, second: str, **environment: str) -> tuple[int, str]:
    """Return how a process ends that gets a second SIGTERM `within` the block or `after` it."""
    without_launcher = {name: value for name, value in os.environ.items() if name != "TORCHELASTIC_RUN_ID"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(seconds), second],
        env=without_launcher | environment,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


@pytest.mark.parametrize("second", ["within", "after"])
def test_copy_of_a_stop_request_changes_nothing(second: str) -> None:
    assert run(600.0, second) == (0, "saved\n")


@pytest.mark.parametrize("second", ["within", "after"])
def test_second_stop_request_ends_the_process_at_once(second: str) -> None:
    assert run(0.0, second) == (-signal.SIGTERM, "")


def test_second_stop_request_under_torchrun_changes_nothing() -> None:
    assert run(0.0, "within", TORCHELASTIC_RUN_ID="none") == (0, "saved\n")


def test_process_that_was_not_asked_to_stop_gets_its_handler_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with sigterm_as_request() as requested:
        assert signal.getsignal(signal.SIGTERM) != before
    assert not requested.is_set()
    assert signal.getsignal(signal.SIGTERM) == before
