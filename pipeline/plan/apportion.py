"""How many samples of a step come from which source: exact shares of every prefix of the run, in whole samples.

A source with share w owes floor(w t) of the first t samples and may run one ahead, so its count never differs from
w t by one or more. Who runs ahead is decided by earliest deadline first, which always finds a way when one exists (unit
jobs with release times; W. Horn, "Some simple scheduling algorithms", Naval Research Logistics Quarterly 21, 1974),
and one exists because the fractional schedule does.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

MAX_SOURCES = 64
"""One bit per source and step."""


@dataclass(frozen=True, eq=False)
class Apportionment:
    """Samples per source over steps of equal size, the last one possibly smaller."""

    weights: tuple[int, ...]
    """Shares, whole numbers without a common divisor; 0 leaves a source out."""
    step_size: int
    """Samples per step."""
    num_samples: int
    """Samples of all steps."""
    ahead: npt.NDArray[np.uint64]
    """Per step of one period, which sources are one sample ahead of floor(w t) when it begins; one bit per source."""
    ahead_at_end: int
    """The same after the last step, which may be smaller than the period says."""

    def counts(self, step: int) -> tuple[int, ...]:
        """Return how many samples of each source the steps before `step` hold."""
        drawn = min(step * self.step_size, self.num_samples)
        is_end = drawn == self.num_samples
        ahead = self.ahead_at_end if is_end else int(self.ahead[step % len(self.ahead)])
        total = sum(self.weights)
        return tuple(weight * drawn // total + (ahead >> idx & 1) for idx, weight in enumerate(self.weights))


def apportion(weights: Sequence[int], step_size: int, num_samples: int) -> Apportionment:
    """Decide every step's counts once; afterwards any of them is a lookup.

    Memory and time are proportional to the steps until the shares repeat: 8 bytes and some microseconds each.

    Args:
        weights: shares, whole numbers of at least 0, not all 0.
        step_size: samples per step.
        num_samples: samples of all steps.
    """
    divisor = math.gcd(*weights)
    reduced = tuple(weight // divisor for weight in weights)
    num_steps = -(-num_samples // step_size)
    period = sum(reduced) // math.gcd(sum(reduced), step_size)  # then every w t is whole again
    whole_steps = min(period, num_steps)
    ends = [min(step * step_size, num_samples) for step in range(whole_steps)]
    ahead = list(_run_ahead(reduced, ends))
    return Apportionment(
        weights=reduced,
        step_size=step_size,
        num_samples=num_samples,
        ahead=np.array(ahead, dtype=np.uint64),
        ahead_at_end=_ahead_at_end(reduced, step_size, num_samples, ahead),
    )


def _ahead_at_end(weights: Sequence[int], step_size: int, num_samples: int, ahead: Sequence[int]) -> int:
    """Continue from the beginning of the last step to the end of the run."""
    last_step = (num_samples - 1) // step_size if num_samples else 0
    begin = last_step * step_size
    *_, end = _run_ahead(weights, [num_samples], begin=begin, ahead=ahead[last_step % len(ahead)])
    return end


def _run_ahead(weights: Sequence[int], moments: Iterable[int], begin: int = 0, ahead: int = 0) -> Iterator[int]:
    """Yield who is ahead when `moments` samples are drawn, given who was when `begin` were."""
    total = sum(weights)
    shares = [(idx, weight) for idx, weight in enumerate(weights) if weight]
    scale = math.lcm(*(weight for _, weight in shares))
    owed = [weight * begin // total for weight in weights]
    for drawn in moments:
        stays, spare = 0, drawn
        waiting: list[tuple[int, int]] = []
        for idx, weight in shares:
            whole, rest = divmod(weight * drawn, total)
            spare -= whole
            if whole == owed[idx] and ahead >> idx & 1:
                stays |= 1 << idx
                spare -= 1
            elif rest:
                waiting.append(((total - rest) * (scale // weight), idx))  # time until w t is whole: the deadline
            owed[idx] = whole
        assert 0 <= spare <= len(waiting)
        for _, idx in sorted(waiting)[:spare]:
            stays |= 1 << idx
        ahead = stays
        yield ahead
