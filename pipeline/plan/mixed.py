"""The order of several sources mixed by weights that may change from announced steps on: a pure function of the step.

Each source has its own permutation per epoch of its own. A step takes from each source the next samples of that
source's order, as many as `apportion` says. Changing the future changes no step before it.
"""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.plan.apportion import MAX_SOURCES, Apportionment, apportion
from pipeline.plan.order import permute


class MixSource(NamedTuple):
    """One source of a mix."""

    name: str
    num_samples: int
    """Usable samples."""


class MixPhase(NamedTuple):
    """Weights that hold from a step on."""

    first_step: int
    weights: tuple[int, ...]
    """Whole numbers in the order of the sources; only their ratios count."""


class _PlannedPhase(NamedTuple):
    first_step: int
    before: tuple[int, ...]
    """Samples of each source in all steps before the phase."""
    steps: Apportionment


@dataclass(frozen=True, eq=False)
class MixedOrder:
    """Order of a mix; build it with `mix_sources`."""

    sources: tuple[MixSource, ...]
    phases: tuple[MixPhase, ...]
    seed: int
    global_batch_size: int
    epoch_size: int
    """Samples that count as one epoch of the whole run."""
    num_steps: int
    planned_phases: tuple[_PlannedPhase, ...]

    def numbers(self, step: int) -> npt.NDArray[np.int64]:
        """Return which usable samples a step holds, source by source, int64 `[<= global_batch_size]`."""
        parts = []
        first_number = 0
        for source, begin, end in zip(self.sources, self.planned(step), self.planned(step + 1), strict=True):
            if end > begin:
                parts.append(first_number + _draw(source, begin, end, self.seed))
            first_number += source.num_samples
        return np.concatenate(parts)

    def planned(self, step: int) -> tuple[int, ...]:
        """Return how many samples of each source the steps before `step` hold."""
        idx = bisect.bisect_right(self.planned_phases, step, key=lambda phase: phase.first_step) - 1
        phase = self.planned_phases[idx]
        counts = phase.steps.counts(step - phase.first_step)
        return tuple(before + count for before, count in zip(phase.before, counts, strict=True))

    def epochs_done(self, step: int) -> float:
        """Return samples before `step` as a share of an epoch of the whole run."""
        return sum(self.planned(step)) / self.epoch_size

    def facts(self, step: int) -> list[object]:
        """Return what decides the steps before `step`: the sources, and the weights that held until then."""
        phases = [[phase.first_step, phase.weights] for phase in self.phases if phase.first_step < max(step, 1)]
        return [[list(source) for source in self.sources], phases]


def mix_sources(
    sources: Sequence[MixSource],
    phases: Sequence[MixPhase],
    *,
    seed: int,
    global_batch_size: int,
    epoch_size: int,
    num_samples: int,
) -> MixedOrder:
    """Plan a mix.

    Args:
        sources: in the order of their samples.
        phases: the first from step 0, then by step.
        seed: run seed.
        global_batch_size: samples per step; the last step of the run takes what is left.
        epoch_size: samples that count as one epoch of the whole run.
        num_samples: samples of the whole run.

    Raises:
        ValueError: too many sources, or one with a weight but without a usable sample.
    """
    if len(sources) > MAX_SOURCES:
        raise ValueError(f"{len(sources)} sources; a mix has at most {MAX_SOURCES}: join some of them")
    for idx, source in enumerate(sources):
        if source.num_samples == 0 and any(phase.weights[idx] for phase in phases):
            raise ValueError(f"source {source.name!r} has no usable sample; `ray-llava inspect` shows why")
    num_steps = -(-num_samples // global_batch_size)
    return MixedOrder(
        sources=tuple(sources),
        phases=tuple(phases),
        seed=seed,
        global_batch_size=global_batch_size,
        epoch_size=epoch_size,
        num_steps=num_steps,
        planned_phases=tuple(_plan_phases(phases, global_batch_size, num_samples)),
    )


def _plan_phases(phases: Sequence[MixPhase], batch_size: int, num_samples: int) -> list[_PlannedPhase]:
    """Apportion phase after phase; each starts a new account, after the counts of those before it."""
    num_steps = -(-num_samples // batch_size)
    reached = [phase for phase in phases if phase.first_step < max(num_steps, 1)]
    ends = [*(phase.first_step for phase in reached[1:]), num_steps]
    before = (0,) * len(phases[0].weights)
    planned = []
    for phase, end in zip(reached, ends, strict=True):
        samples = min(end * batch_size, num_samples) - phase.first_step * batch_size
        steps = apportion(phase.weights, batch_size, samples)
        planned.append(_PlannedPhase(phase.first_step, before, steps))
        counts = steps.counts(end - phase.first_step)
        before = tuple(old + new for old, new in zip(before, counts, strict=True))
    return planned


def _draw(source: MixSource, begin: int, end: int, seed: int) -> npt.NDArray[np.int64]:
    """Return the samples that a source gives as its draws `begin` to `end - 1`, numbered within the source."""
    own_seed = int.from_bytes(hashlib.sha256(f"{seed}:{source.name}".encode()).digest()[:8])
    parts = []
    while begin < end:
        epoch, position = divmod(begin, source.num_samples)
        taken = min(end - begin, source.num_samples - position)
        positions = np.arange(position, position + taken, dtype=np.int64)
        parts.append(permute(positions, source.num_samples, own_seed, epoch))
        begin += taken
    return np.concatenate(parts)
