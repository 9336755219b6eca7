"""The plan of a run: from a global step to sample ids, and from (step, rank) to micro-batches.

The number of ranks is no input of the order, so the whole position of a run in its data is one integer, the global
step: resuming is O(1), exact, and works on another number of workers. Reading the samples is left to the loader.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.plan.order import permute
from pipeline.plan.packing import pack_step


class RankPlan(NamedTuple):
    """What one rank does in one optimizer step."""

    step: int
    rank: int
    micro_batches: tuple[tuple[int, ...], ...]
    """Sample ids of each micro-batch; an empty one is work of weight zero that keeps collectives aligned."""
    checksum: int
    """CRC-32 over step, rank and all ids in order; the consumer compares it with its own computation."""


@dataclass(frozen=True, eq=False)
class Plan:
    """Order and packing of a run, a pure function of these fields."""

    num_tokens: npt.NDArray[np.int32]
    """Fused length of every sample of the index, in tokens, int32 `[N]`; 0 marks a rejected sample."""
    data_fingerprint: str
    """Fingerprint of the index and of the sample encoding."""
    seed: int
    global_batch_size: int
    """Samples per optimizer step over all ranks; the last step of an epoch takes what is left."""
    num_epochs: int
    max_steps: int | None
    micro_batch_tokens: int
    """Most fused tokens in a micro-batch."""
    sample_ids: npt.NDArray[np.int64]
    """Ids of the usable samples, ascending, int64 `[M]`."""

    @property
    def num_samples(self) -> int:
        """Usable samples in one epoch."""
        return len(self.sample_ids)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in one epoch, the last possibly with fewer samples."""
        return -(-self.num_samples // self.global_batch_size)

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the run."""
        steps = self.steps_per_epoch * self.num_epochs
        return steps if self.max_steps is None else min(steps, self.max_steps)

    @property
    def fingerprint(self) -> str:
        """Hash of everything that decides which samples a step holds; checked on resume."""
        facts = [self.data_fingerprint, self.seed, self.global_batch_size, self.num_samples]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def samples(self, step: int) -> npt.NDArray[np.int64]:
        """Return the sample ids of an optimizer step, in order, int64 `[<= global_batch_size]`.

        Raises:
            ValueError: the step lies outside the run.
        """
        if not 0 <= step < self.total_steps:
            raise ValueError(f"step {step} lies outside the run's {self.total_steps} steps")
        epoch, step_of_epoch = divmod(step, self.steps_per_epoch)
        start = step_of_epoch * self.global_batch_size
        positions = np.arange(start, min(start + self.global_batch_size, self.num_samples), dtype=np.int64)
        return self.sample_ids[permute(positions, self.num_samples, self.seed, epoch)]

    def split(self, step: int, num_ranks: int) -> tuple[RankPlan, ...]:
        """Cut the samples of a step over ranks and micro-batches."""
        ids = self.samples(step)
        packed = pack_step(self.num_tokens[ids].tolist(), num_ranks, self.micro_batch_tokens)
        plans = []
        for rank, batches in enumerate(packed):
            micro_batches = tuple(tuple(int(ids[idx]) for idx in batch) for batch in batches)
            plans.append(RankPlan(step, rank, micro_batches, _checksum(step, rank, micro_batches)))
        return tuple(plans)

    def num_planned(self, step: int) -> int:
        """Samples that the steps before `step` hold, all epochs counted."""
        epochs, rest = divmod(step, self.steps_per_epoch)
        return epochs * self.num_samples + min(rest * self.global_batch_size, self.num_samples)


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
    """Build the plan of a run from the lengths in the index.

    Raises:
        ValueError: no sample is usable, or one is longer than a micro-batch.
    """
    usable = np.flatnonzero(num_tokens > 0)
    if usable.size == 0:
        raise ValueError(
            f"none of the {len(num_tokens)} indexed samples is usable; `ray-llava index` lists the reasons"
        )
    longest = int(num_tokens.max())
    if longest > micro_batch_tokens:
        raise ValueError(
            f"sample {int(num_tokens.argmax())} has {longest} tokens, more than training.micro_batch_tokens "
            f"({micro_batch_tokens}); raise it, or lower data.max_length"
        )
    return Plan(
        num_tokens=num_tokens,
        data_fingerprint=data_fingerprint,
        seed=seed,
        global_batch_size=global_batch_size,
        num_epochs=num_epochs,
        max_steps=max_steps,
        micro_batch_tokens=micro_batch_tokens,
        sample_ids=usable,
    )


def _checksum(step: int, rank: int, micro_batches: tuple[tuple[int, ...], ...]) -> int:
    numbers = [step, rank]
    for batch in micro_batches:
        numbers += [-1, *batch]
    return zlib.crc32(np.asarray(numbers, dtype=np.int64).tobytes())
