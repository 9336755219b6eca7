"""What SIGINT, SIGTERM and SIGHUP do to this process: training stops after a checkpoint, other work ends at once.

A signal handler can only set a flag or raise in the main thread; both are here, what follows from them is elsewhere.
Exit codes are 128 + the signal's number, as a shell reports them.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SAME_REQUEST_S = 5.0  # the longest that a copy of a request may take, also on a busy machine
_SAME_INTERRUPT_S = 1.0  # a terminal sends one SIGINT; a second Ctrl-C is meant


class StopRequestedError(RuntimeError):
    """The process was asked to stop by a signal; the step was finished and saved."""

    signum: int = signal.SIGTERM
    """The signal; set where it was received, for workers on other machines do not know it."""


class StopRequests:
    """Whether this process was asked to stop, and by which signal."""

    def __init__(self) -> None:
        self.signum: int | None = None
        self.ends_now = False
        """Whether the main thread was interrupted by `end_now`."""
        self._requested = threading.Event()

    def is_set(self) -> bool:
        """Whether a signal came."""
        return self._requested.is_set()

    def wait(self, timeout_s: float) -> bool:
        """Wait for a signal; returns whether one came."""
        return self._requested.wait(timeout_s)

    def end_now(self) -> None:
        """Raise KeyboardInterrupt in the main thread, from another one, even while the main thread waits.

        Only after a signal came. It takes the way of that signal, whose handler is known to be installed: SIGINT may
        have none, since shells start background processes with SIGINT ignored.
        """
        assert self.signum is not None
        self.ends_now = True
        main_thread = threading.main_thread().ident
        assert main_thread is not None
        signal.pthread_kill(main_thread, self.signum)

    def _note(self, signum: int) -> None:
        self.signum = signum
        self._requested.set()


@contextmanager
def stop_requests() -> Iterator[StopRequests]:
    """Turn the first stop signal inside the block into a request; one that comes later ends the process at once.

    A request may come twice: a cluster sends it to all processes of a job, of which a launcher (torchrun, `timeout`)
    passes on its own. So another one counts some seconds after the first, or never under torchrun, which kills ranks
    that take too long. This stays in effect after the block if a stop was requested, since the process is about to end.

    Only the main thread may install handlers; in other threads nothing is requested.
    """
    requests = StopRequests()
    received_s = 0.0

    def on_signal(signum: int, _frame: object) -> None:
        nonlocal received_s
        if requests.ends_now:
            raise KeyboardInterrupt
        if not requests.is_set():
            received_s = time.monotonic()
            requests._note(signum)
            _say(f"{signal.Signals(signum).name}: stopping after this step and a checkpoint; repeat to end at once")
        elif _is_another(signum, time.monotonic() - received_s):
            _end_at_once(signum)

    if threading.current_thread() is not threading.main_thread():
        yield requests
        return
    before = {signum: signal.signal(signum, on_signal) for signum in _heard_signals()}
    try:
        yield requests
    except StopRequestedError as error:
        error.signum = requests.signum or error.signum
        raise
    finally:
        if not requests.is_set():
            for signum, handler in before.items():
                signal.signal(signum, handler)


def _is_another(signum: int, since_s: float) -> bool:
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return False
    return since_s >= (_SAME_INTERRUPT_S if signum == signal.SIGINT else _SAME_REQUEST_S)


def _end_at_once(signum: int) -> None:
    if signum == signal.SIGINT:
        raise KeyboardInterrupt
    signal.signal(signum, signal.SIG_DFL)
    signal.raise_signal(signum)


def _heard_signals() -> list[signal.Signals]:
    """Return the stop signals that are not ignored: `nohup` ignores SIGHUP, and means it."""
    return [signum for signum in STOP_SIGNALS if signal.getsignal(signum) is not signal.SIG_IGN]


class ReceivedSignal:
    """The signal that ended the work of a program; None if none did."""

    signum: int | None = None


def raise_on_stop_signals() -> ReceivedSignal:
    """Let stop signals raise KeyboardInterrupt in the main thread; for a program, before it does anything.

    No class of our own: Ray's waiting passes on this one and loses all others. So what is returned names the signal.

    SIGINT is heard even if the process was started with it ignored, as scripts start background processes: who sends it
    to a job in a container or a batch system means this process. Only where Ctrl-C at the terminal would reach it too
    does it stay ignored.
    """
    received = ReceivedSignal()

    def on_signal(signum: int, _frame: object) -> NoReturn:
        received.signum = signum
        if signum != signal.SIGINT:
            _say(f"{signal.Signals(signum).name}: ends")
        raise KeyboardInterrupt

    heard = _heard_signals()
    if signal.SIGINT not in heard and not _shares_terminal():
        heard.append(signal.SIGINT)
    for signum in heard:
        signal.signal(signum, on_signal)
    return received


def _shares_terminal() -> bool:
    """Whether this process is in the group that its terminal sends Ctrl-C to."""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)


@contextmanager
def keep_signal_handlers() -> Iterator[None]:
    """Put the handlers of stop signals back after the block, which calls a library that installs its own."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {signum: handler for signum in STOP_SIGNALS if (handler := signal.getsignal(signum)) is not None}
    missed = None
    try:
        yield
    except SystemExit as ended:  # what the handler of such a library raises, Ray's among them
        if ended.code not in STOP_SIGNALS:
            raise
        missed = signal.Signals(ended.code)
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
    if missed is not None:
        signal.raise_signal(missed)
        raise SystemExit(missed)  # for a handler that only takes note: the block was not finished


def _say(line: str) -> None:
    """Write to standard error; in a signal handler neither print nor logging may be used, which may hold their lock."""
    try:
        os.write(2, f"{line}\n".encode())
    except OSError:
        return
