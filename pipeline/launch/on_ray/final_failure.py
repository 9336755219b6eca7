"""The end of a Ray run by an error that another start would raise again: no retry, on whichever rank it occurs.

A worker raises `FinalFailure`; Ray Train's controller, which would start the workers again, is ended by it.
"""

from __future__ import annotations

import copy
import logging
import traceback
from typing import Any

from ray.train import UserCallback

from pipeline.launch.mendable import judge, unwrap

logger = logging.getLogger(__name__)


class FinalFailure(Exception):  # noqa: N818  # it carries an error and is none by itself
    """Carries the error that ends the run from a worker to the launcher."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


class EndOnFinalFailure(UserCallback):  # type: ignore[misc]  # Ray Train publishes no types
    """Ends Ray Train's controller by the first `FinalFailure` of a worker; its workers end with it."""

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Raise the failure of the lowest rank that has one."""
        for _, error in sorted(worker_exceptions.items()):
            if isinstance(error, FinalFailure):
                raise error


def hand_back(error: Exception, *, has_begun: bool, came_back: bool) -> Exception:
    """Return what a worker must raise for an error of its own: a `FinalFailure`, or the error, to be tried again.

    Args:
        error: what ended the rank.
        has_begun: see `judge`.
        came_back: an earlier start ended at the same step with the same words.
    """
    told = "".join(traceback.format_exception(error))
    error = _plain(error)
    verdict = judge(error, has_begun=has_begun)
    if verdict == "mendable" or (verdict == "unclear" and not came_back):
        return error
    error.add_note(f"in the worker:\n{told}")  # which pickling would leave behind
    return FinalFailure(error)


def _plain(error: Exception) -> Exception:
    """Return an error that survives the way to the launcher with its class and message."""
    found = unwrap(error)
    assert isinstance(found, Exception)
    try:
        copy.copy(found)  # made again from its arguments, as on the other side
    except Exception:  # inspecting a library's class can raise many types
        logger.debug("%s cannot be made again from its arguments", type(found), exc_info=True)
        return RuntimeError(f"{type(found).__name__}: {found}")
    return found
