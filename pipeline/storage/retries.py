"""One way to ask object storage: for more than a minute, but a refusal twice only; long waits are logged."""

from __future__ import annotations

import errno
import logging
import random
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import TypeVar

logger = logging.getLogger(__name__)

ATTEMPTS = 10
"""Tries per request; the waits between them add up to 68 to 92 s."""
FIRST_WAIT_S = 0.5
"""Wait after the first failure, doubled after each further one, less up to a quarter so that workers spread out."""
REQUEST_TIMEOUT_S = 60.0
"""Longest a request may take: pyarrow has no timeout for a connection that stays open and sends nothing."""
_LONGEST_WAIT_S = 20.0
_TOLD_WAIT_S = 5.0
_REFUSALS = re.compile(
    r"ACCESS_DENIED|INVALID_ACCESS_KEY|SIGNATURE_DOES_NOT_MATCH|INVALID_SIGNATURE|NO_SUCH_BUCKET|EXPIRED_TOKEN"
    r"|MISSING_AUTHENTICATION|UNRECOGNIZED_CLIENT|TOO_SKEWED|TooSkewed|HTTP status 40[0135]\b|AccessDenied|NoSuchBucket"
    r"|InvalidAccessKeyId|SignatureDoesNotMatch|ExpiredToken|Bucket '[^']*' not found|Unable to locate credentials"
    r"|CERTIFICATE_VERIFY_FAILED|curlCode: 60\b"
)
_OF_THIS_MACHINE = (errno.ENOSPC, errno.EDQUOT, errno.EMFILE)  # no answer of the service
_T = TypeVar("_T")


class StorageRefusedError(OSError):
    """Storage answered and said no, twice; asking again is pointless until somebody changes something."""


def with_retries(
    request: Callable[[], _T], what: str, *, is_timed: bool = True, ask: Callable[[], object] | None = None
) -> _T:
    """Ask remote storage for something, a bounded number of times with growing waits between them.

    Args:
        request: Asks once; raises OSError when that fails.
        what: What is asked for, such as `shard s3://bucket/a.tar`, for messages.
        is_timed: One try may take `REQUEST_TIMEOUT_S`; not so for uploads, whose time depends on their size.
        ask: Another request of the same permissions whose answer has a text: where the first is HEAD, it has none.

    Raises:
        FileNotFoundError: at once, as are errors of this machine, such as a full disk.
        StorageRefusedError: it was refused twice, with the server's reason.
        OSError: storage failed every time.
    """
    num_refusals = 0
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return _within_time(request) if is_timed else request()
        except FileNotFoundError:
            raise
        except OSError as error:
            if error.errno in _OF_THIS_MACHINE:
                raise
            num_refusals += error.errno in (errno.EACCES, errno.EPERM) or bool(_REFUSALS.search(str(error)))
            if num_refusals == 2:
                raise refusal(what, _reason(error, ask)) from error
            if attempt == ATTEMPTS:
                raise OSError(f"{what}: storage failed {ATTEMPTS} times, last with: {error}") from error
            wait_s = min(_LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** (attempt - 1)) * random.uniform(0.75, 1.0)
            if wait_s >= _TOLD_WAIT_S:
                logger.warning(
                    "%s: storage failed (%s); tried again in %.0f s (%d of %d tries made)",
                    what, error, wait_s, attempt, ATTEMPTS,
                )  # fmt: skip
            time.sleep(wait_s)
    raise AssertionError("the last try returns or raises")


def refusal(what: str, reason: str) -> StorageRefusedError:
    """Return the error of a refused request for something."""
    return StorageRefusedError(
        f"{what}: refused by the storage service: {reason}. Check credentials, permissions, bucket, region and this "
        "machine's clock"
    )


def _reason(error: OSError, ask: Callable[[], object] | None) -> str:
    """Return what the server said; HEAD requests are answered without a text, so another one is made."""
    if ask is None or "No response body" not in str(error):
        return str(error)
    try:
        ask()
    except OSError as answer:
        return str(answer)
    return str(error)


def _within_time(request: Callable[[], _T]) -> _T:
    """Run a request in a thread of its own, which is left behind when it does not answer in time."""
    answer: Future[_T] = Future()

    def run() -> None:
        try:
            answer.set_result(request())
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=run, name="storage-request", daemon=True).start()
    try:
        return answer.result(timeout=REQUEST_TIMEOUT_S)
    except FutureTimeoutError:
        if answer.done():  # the request's own timeout
            raise
        raise OSError(f"no complete answer within {REQUEST_TIMEOUT_S:g} s") from None
