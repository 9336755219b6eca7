"""Which source of a mix a sample belongs to: the rows of a source are adjacent in the index."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt


class Sources(NamedTuple):
    """The sources of a mix, in the order of their rows."""

    names: tuple[str, ...]
    end_rows: tuple[int, ...]
    """For each source the first row after its own."""

    def of(self, sample_ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the source of each sample as a position in `names`, int64 `[K]`; 0 without a mix."""
        return np.searchsorted(np.array(self.end_rows, dtype=np.int64), sample_ids, side="right")


NO_MIX: Final = Sources((), ())
"""One data set without a mix."""
