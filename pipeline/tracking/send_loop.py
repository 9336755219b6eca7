"""A background thread that sends repeatedly: soon after new records, with growing pauses while the server fails."""

import logging
import threading
import time
from collections.abc import Callable

logger = logging.getLogger(__name__)

_DEAD_AFTER_FAILURES = 3
_LAST_TRY_S = 5.0


class SendLoop:
    """Calls `send` until it is closed; what `send` raises is logged and tried again."""

    def __init__(
        self,
        send: Callable[[], None],
        describe: Callable[[Exception], str],
        *,
        interval_s: float,
        longest_pause_s: float,
    ) -> None:
        """Start the thread.

        Args:
            send: Sends all there is now; raises when some of it could not be sent.
            describe: Returns what failed, for the log.
            interval_s: Pause between two looks.
            longest_pause_s: Limit of the pauses that grow with the number of failures.
        """
        self._send, self._describe = send, describe
        self._interval_s, self._longest_pause_s = interval_s, longest_pause_s
        self._closing = threading.Event()
        self._wake = threading.Event()
        self.num_failures = 0
        """In a row, until now."""
        self.thread = threading.Thread(target=self._run, name="mlflow-sender", daemon=True)
        self.thread.start()

    def wake(self) -> None:
        """Look soon, unless the server fails."""
        self._wake.set()

    def close(self, timeout_s: float) -> None:
        """Wait until everything is sent, at most `timeout_s`.

        A server that has not answered for a while gets a few seconds only, and one that turns out not to answer now a
        few tries: it is a sink, not worth holding GPUs for.
        """
        timeout_s = min(timeout_s, _LAST_TRY_S) if self._is_dead() else timeout_s
        self._closing.set()
        self._wake.set()
        self.thread.join(timeout_s)

    def _is_dead(self) -> bool:
        return self.num_failures >= _DEAD_AFTER_FAILURES

    def _run(self) -> None:
        while True:
            closing = self._closing.is_set()
            self._wake.clear()
            try:
                self._send()
                self.num_failures = 0
            except Exception as error:  # no error of the server or its client may affect training
                self.num_failures += 1
                level = logging.WARNING if self.num_failures in (1, 10, 100) else logging.DEBUG
                logger.log(level, "%s (failure %d in a row)", self._describe(error), self.num_failures)
            if closing and (not self.num_failures or self._is_dead()):
                return
            if closing:
                time.sleep(self._interval_s)
            elif self.num_failures:
                self._closing.wait(min(self._interval_s * 2 ** min(self.num_failures, 10), self._longest_pause_s))
            else:
                self._wake.wait(self._interval_s)
