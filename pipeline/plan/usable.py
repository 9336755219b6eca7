"""The usable rows of an index, counted through: the n-th usable row, without a list of a hundred million of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, eq=False)
class UsableRows:
    """Maps 0, 1, 2, ... to the rows that are not rejected; holds only the rejected ones, which are few."""

    num_rows: int
    """Rows of the index."""
    usable_before: npt.NDArray[np.int64]
    """For each rejected row, in order, how many usable rows precede it, int64 `[rejected]`."""

    @classmethod
    def where(cls, is_usable: npt.NDArray[np.bool_]) -> UsableRows:
        """Describe the true entries of a mask `[num_rows]`."""
        rejected = np.flatnonzero(~is_usable)
        return cls(len(is_usable), rejected - np.arange(len(rejected)))

    def __len__(self) -> int:
        return self.num_rows - len(self.usable_before)

    def rows(self, numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the rows of usable samples number `numbers`, int64 `[K]`, each in `[0, len(self))`."""
        return numbers + np.searchsorted(self.usable_before, numbers, side="right")

    def count(self, first_row: int, end_row: int) -> int:
        """Return how many of the rows `first_row` to `end_row - 1` are usable."""
        rejected_rows = self.usable_before + np.arange(len(self.usable_before))
        first, end = np.searchsorted(rejected_rows, [first_row, end_row])
        return end_row - first_row - int(end - first)
