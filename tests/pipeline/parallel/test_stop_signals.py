"""Stop signals, by real signals in processes of their own."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys

import pytest

from pipeline.parallel.stop_signals import STOP_SIGNALS, stop_requests

SCRIPT = """
import os, signal, sys
from pipeline.parallel import stop_signals
stop_signals._SAME_REQUEST_S = stop_signals._SAME_INTERRUPT_S = float(sys.argv[1])
first = int(sys.argv[3])
with stop_signals.stop_requests() as requests:
    os.kill(os.getpid(), first)
    assert requests.is_set() and requests.signum == first
    if sys.argv[2] == "within":
        os.kill(os.getpid(), first)
if sys.argv[2] == "after":
    os.kill(os.getpid(), first)
print("saved")
"""


def run(seconds: float, second: str, signum: int = signal.SIGTERM, **environment: str) -> tuple[int, str]:
    """Return how a process ends that gets a second signal `within` the block or `after` it."""
    without_launcher = {name: value for name, value in os.environ.items() if name != "TORCHELASTIC_RUN_ID"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(seconds), second, str(int(signum))],
        env=without_launcher | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert f"{signum.name if isinstance(signum, signal.Signals) else signum}: stopping after this step" in done.stderr
    return done.returncode, done.stdout


@pytest.mark.parametrize("signum", STOP_SIGNALS)
@pytest.mark.parametrize("second", ["within", "after"])
def test_copy_of_a_stop_request_changes_nothing(second: str, signum: signal.Signals) -> None:
    assert run(600.0, second, signum) == (0, "saved\n")


@pytest.mark.parametrize("signum", STOP_SIGNALS)
@pytest.mark.parametrize("second", ["within", "after"])
def test_second_stop_request_ends_the_process_at_once(second: str, signum: signal.Signals) -> None:
    assert run(0.0, second, signum) == (-signum, "")


def test_second_stop_request_under_torchrun_changes_nothing() -> None:
    assert run(0.0, "within", TORCHELASTIC_RUN_ID="none") == (0, "saved\n")


def test_process_that_was_not_asked_to_stop_gets_its_handlers_back() -> None:
    before = [signal.getsignal(signum) for signum in STOP_SIGNALS]
    with stop_requests() as requests:
        assert signal.getsignal(signal.SIGTERM) not in before
    assert not requests.is_set()
    assert [signal.getsignal(signum) for signum in STOP_SIGNALS] == before


PROGRAM = """
import sys, time
from pipeline.parallel import stop_signals
received = stop_signals.raise_on_stop_signals()
try:
    print("ready", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    print("stopped by", int(received.signum), flush=True)
"""


def start_program(prefix: str, **options: object) -> subprocess.Popen[str]:
    """Start a program that waits, from a shell that ignores signals as `prefix` says; returns once it waits."""
    command = ["bash", "-c", f'{prefix} exec "$0" -c "$1"', sys.executable, PROGRAM]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options)  # type: ignore[call-overload]
    assert process.stdout.readline() == "ready\n"
    return process  # type: ignore[no-any-return]


@pytest.mark.parametrize("signum", STOP_SIGNALS)
def test_program_started_with_sigint_ignored_and_no_terminal_hears_signals(signum: signal.Signals) -> None:
    process = start_program("trap '' INT;", start_new_session=True)
    process.send_signal(signum)
    assert process.communicate()[0] == f"stopped by {signum}\n"
    assert process.returncode == 0


def test_program_under_nohup_outlives_sighup_and_hears_sigterm() -> None:
    process = start_program("trap '' HUP INT;", start_new_session=True)
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    assert process.communicate()[0] == "stopped by 15\n"
    assert process.returncode == 0


def test_program_of_a_script_at_a_terminal_is_not_ended_by_ctrl_c_but_by_sigterm() -> None:
    child, terminal = pty.fork()  # the child leads a session whose terminal `terminal` holds
    if child == 0:
        os.execvp("bash", ["bash", "-c", 'trap \'\' INT; exec "$0" -c "$1"', sys.executable, PROGRAM])
    said = b""
    while b"ready" not in said:
        said += os.read(terminal, 1024)
    os.write(terminal, b"\x03")
    os.kill(child, signal.SIGTERM)
    while not said.endswith(b"\r\n") or b"stopped by" not in said:
        said += os.read(terminal, 1024)
    assert b"stopped by 15" in said
    assert os.waitpid(child, 0)[1] == 0
    os.close(terminal)


RAY_LIKE = """
import os, signal, sys
from pipeline.parallel import stop_signals
received = stop_signals.raise_on_stop_signals()
def library() -> None:
    signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit(signum))
    if sys.argv[1] == "within":
        os.kill(os.getpid(), signal.SIGTERM)
try:
    with stop_signals.keep_signal_handlers():
        library()
    os.kill(os.getpid(), signal.SIGTERM)
except KeyboardInterrupt:
    print(int(received.signum))
"""


@pytest.mark.parametrize("moment", ["within", "after"])
def test_handler_that_a_library_installs_changes_nothing(moment: str) -> None:
    done = subprocess.run([sys.executable, "-c", RAY_LIKE, moment], stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout == "15\n"
