"""The plan of a run: from a global step to sample ids, and from (step, rank) to micro-batches.

The number of ranks is not an input of the order, so the whole position of a run in its data is one integer, the global
step: resuming is O(1), exact, and works on another number of workers. Reading the samples is left to the loader.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from pipeline.plan.balance import pack_by_cost
from pipeline.plan.epochs import EpochOrder
from pipeline.plan.packing import pack_step
from pipeline.plan.sources import NO_MIX, Sources
from pipeline.plan.usable import UsableRows


class RankPlan(NamedTuple):
    """What one rank does in one optimizer step."""

    step: int
    rank: int
    micro_batches: tuple[tuple[int, ...], ...]
    """Sample ids of each micro-batch; an empty one is work of weight zero that keeps collectives aligned."""
    checksum: int
    """CRC-32 over step, rank and all ids in order; the consumer compares it with its own computation."""


class Order(Protocol):
    """Which usable samples each step holds; `EpochOrder` for one data set, `MixedOrder` for several sources."""

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole order."""
        ...

    @property
    def global_batch_size(self) -> int:
        """Most samples of a step."""
        ...

    def numbers(self, step: int) -> npt.NDArray[np.int64]:
        """Return which usable samples a step holds, in order."""
        ...

    def planned(self, step: int) -> tuple[int, ...]:
        """Return how many samples of each source the steps before `step` hold."""
        ...

    def epochs_done(self, step: int) -> float:
        """Return passes over the data before `step`."""
        ...

    def facts(self, step: int) -> list[object]:
        """Return what decides the steps before `step`, beyond data, seed and batch size; JSON-serialisable."""
        ...


@dataclass(frozen=True, eq=False)
class Plan:
    """Order and packing of a run, a pure function of these fields."""

    num_tokens: npt.NDArray[np.int32]
    """Fused length of every sample of the index, in tokens, int32 `[N]`; 0 marks a rejected sample."""
    usable: UsableRows
    order: Order
    data_fingerprint: str
    """Fingerprint of the index and of the sample encoding."""
    seed: int
    max_steps: int | None
    micro_batch_tokens: int
    """Most fused tokens in a micro-batch."""
    sources: Sources
    costs: npt.NDArray[np.int64] | None = None
    """What every sample takes, nanoseconds, int64 `[N]`; None balances ranks by tokens."""

    @property
    def num_samples(self) -> int:
        """Usable samples of the index."""
        return len(self.usable)

    @property
    def global_batch_size(self) -> int:
        """Samples per optimizer step over all ranks; the last step of an epoch, or of a mix, takes what is left."""
        return self.order.global_batch_size

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the run."""
        steps = self.order.num_steps
        return steps if self.max_steps is None else min(steps, self.max_steps)

    @property
    def fingerprint(self) -> str:
        """Hash of everything that decides which samples each step holds."""
        return self.fingerprint_before(self.total_steps)

    def fingerprint_before(self, step: int) -> str:
        """Hash everything that decides which samples the steps before `step` hold; checked on resume."""
        facts = [self.data_fingerprint, self.seed, self.global_batch_size, self.num_samples, *self.order.facts(step)]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def samples(self, step: int) -> npt.NDArray[np.int64]:
        """Return the sample ids of an optimizer step, in order, int64 `[<= global_batch_size]`.

        Raises:
            ValueError: the step is outside the run.
        """
        if not 0 <= step < self.total_steps:
            raise ValueError(f"step {step} is outside the run's {self.total_steps} steps")
        return self.usable.rows(self.order.numbers(step))

    def split(self, step: int, num_ranks: int) -> tuple[RankPlan, ...]:
        """Cut the samples of a step over ranks and micro-batches."""
        return _split(self, step, num_ranks)

    def num_planned(self, step: int) -> int:
        """Samples that the steps before `step` hold, all epochs counted."""
        return sum(self.order.planned(step))

    def planned_by_source(self, step: int) -> dict[str, int]:
        """Return the same for each source of a mix; empty without one."""
        return dict(zip(self.sources.names, self.order.planned(step), strict=True)) if self.sources.names else {}


@lru_cache(maxsize=4)  # a preprocessing task builds the rank-steps of several ranks one after the other
def _split(plan: Plan, step: int, num_ranks: int) -> tuple[RankPlan, ...]:
    ids = plan.samples(step)
    lengths = plan.num_tokens[ids].tolist()
    if plan.costs is None:
        packed = pack_step(lengths, num_ranks, plan.micro_batch_tokens)
    else:
        packed = pack_by_cost(lengths, plan.costs[ids].tolist(), num_ranks, plan.micro_batch_tokens)
    plans = []
    for rank, batches in enumerate(packed):
        micro_batches = tuple(tuple(int(ids[idx]) for idx in batch) for batch in batches)
        plans.append(RankPlan(step, rank, micro_batches, _checksum(step, rank, micro_batches)))
    return tuple(plans)


def build_plan(
    num_tokens: npt.NDArray[np.int32],
    *,
    data_fingerprint: str,
    seed: int,
    global_batch_size: int,
    num_epochs: int,
    max_steps: int | None,
    micro_batch_tokens: int,
) -> Plan:
    """Plan a run over one data set from the lengths in its index.

    Raises:
        ValueError: no sample is usable, or one is longer than a micro-batch.
    """
    usable = check_lengths(num_tokens, micro_batch_tokens)
    return Plan(
        num_tokens=num_tokens,
        usable=usable,
        order=EpochOrder(len(usable), seed, global_batch_size, num_epochs),
        data_fingerprint=data_fingerprint,
        seed=seed,
        max_steps=max_steps,
        micro_batch_tokens=micro_batch_tokens,
        sources=NO_MIX,
    )


def check_lengths(num_tokens: npt.NDArray[np.int32], micro_batch_tokens: int) -> UsableRows:
    """Return the usable rows, those with tokens, after checking that each fits a micro-batch.

    Raises:
        ValueError: no sample is usable, or one is longer than a micro-batch.
    """
    usable = UsableRows.where(num_tokens > 0)
    if len(usable) == 0:
        raise ValueError(
            f"none of the {len(num_tokens)} indexed samples is usable; `ray-llava index` lists the reasons"
        )
    longest = int(num_tokens.max())
    if longest > micro_batch_tokens:
        raise ValueError(
            f"sample {int(num_tokens.argmax())} has {longest} tokens, more than training.micro_batch_tokens "
            f"({micro_batch_tokens}); raise it, or lower data.max_length"
        )
    return usable


def _checksum(step: int, rank: int, micro_batches: tuple[tuple[int, ...], ...]) -> int:
    numbers = [step, rank]
    for batch in micro_batches:
        numbers += [-1, *batch]
    return zlib.crc32(np.asarray(numbers, dtype=np.int64).tobytes())
