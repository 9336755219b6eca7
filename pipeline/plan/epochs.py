"""The order of one data set: each epoch is a permutation, cut into steps; its last step takes what is left."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.plan.order import permute


@dataclass(frozen=True)
class EpochOrder:
    """Order of `num_samples` usable samples over `num_epochs` epochs."""

    num_samples: int
    seed: int
    global_batch_size: int
    num_epochs: int

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in one epoch, the last possibly with fewer samples."""
        return -(-self.num_samples // self.global_batch_size)

    @property
    def num_steps(self) -> int:
        """Optimizer steps of all epochs."""
        return self.steps_per_epoch * self.num_epochs

    def numbers(self, step: int) -> npt.NDArray[np.int64]:
        """Return which usable samples a step holds, in order, int64 `[<= global_batch_size]`."""
        epoch, step_of_epoch = divmod(step, self.steps_per_epoch)
        start = step_of_epoch * self.global_batch_size
        positions = np.arange(start, min(start + self.global_batch_size, self.num_samples), dtype=np.int64)
        return permute(positions, self.num_samples, self.seed, epoch)

    def planned(self, step: int) -> tuple[int]:
        """Return how many samples the steps before `step` hold, all epochs counted."""
        epochs, rest = divmod(step, self.steps_per_epoch)
        return (epochs * self.num_samples + min(rest * self.global_batch_size, self.num_samples),)

    def epochs_done(self, step: int) -> float:
        """Return passes over the data before `step`."""
        return step / self.steps_per_epoch

    def facts(self, step: int) -> list[object]:
        """Return what decides the steps before `step`, beyond data, seed and batch size: nothing."""
        return []
