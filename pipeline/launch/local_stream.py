"""Reading a rank's steps without Ray, also when preprocessing processes die: reopened at the step that is due.

A process that dies again and again over the same samples is looked into (`crash_search`); a death without such a
cause is retried a few times.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping

from pipeline.launch.crash_search import RunData, refused_samples
from pipeline.stream.rank_step import RankStep

logger = logging.getLogger(__name__)

OpenOnce = Callable[[int, Mapping[int, str]], Iterator[RankStep]]
"""Given the first step and the refused samples, yields steps to the end of the run."""

_MAX_REOPENED = 3  # times without a step in between


def iterate_despite_deaths(
    open_once: OpenOnce, data: RunData, start_step: int, stop_requested: Callable[[], bool] = lambda: False
) -> Iterator[RankStep]:
    """Yield this rank's steps from `start_step` on.

    Args:
        open_once: opens the stream.
        data: what is read, for the search after a death.
        start_step: first optimizer step.
        stop_requested: whether the run is to end soon. Then a death is not looked into: the search takes longer than a
            process is given to end, and the next start makes up for it if the samples are to blame.

    Raises:
        RuntimeError: preprocessing processes keep dying, and no sample is to blame.
    """
    step, num_reopened = start_step, 0
    refused = refused_samples(data)
    while True:
        try:
            for rank_step in open_once(step, refused):
                yield rank_step
                step, num_reopened = rank_step.step + 1, 0
            return
        except RuntimeError as error:
            if not _is_death_of_worker(error) or num_reopened == _MAX_REOPENED:
                raise
            logger.warning("step %d: %s; reading on from this step with new processes", step, error)
            num_reopened += 1
            if not stop_requested():
                refused = refused_samples(data, died=True)


def _is_death_of_worker(error: RuntimeError) -> bool:
    """Tell whether torch's DataLoader reports a process that ended by itself; it has no class for that."""
    return "exited unexpectedly" in str(error) or "is killed by signal" in str(error)
