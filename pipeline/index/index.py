"""The index of a data set: which samples exist, where their bytes are, and which are unusable and why.

Everything later (plan, stream, training) names a sample by its row number here. `build` makes one.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.index.scan import SCAN_SCHEMA, Checks

INDEX_SCHEMA = pa.schema([pa.field("shard", pa.int32(), nullable=False), *SCAN_SCHEMA])


class ShardInfo(NamedTuple):
    """One shard of an index."""

    url: str
    size_bytes: int
    version: str
    """Modification time in nanoseconds; with the size it tells whether the shard must be scanned again."""
    sha256: str
    num_samples: int
    """Rows of this shard, rejected samples included."""
    defect_reason: str
    """Reason code when the shard as a whole is defective, else empty."""
    defect_detail: str
    passed_over: dict[str, int]
    """How many members belong to no sample, by what they are: folder entries, metadata of macOS."""


@dataclass(frozen=True, eq=False)
class ShardIndex:
    """An index in memory; picklable."""

    shards: tuple[ShardInfo, ...]
    samples: pa.Table
    """One row per sample, `INDEX_SCHEMA`; the row number is the sample id. `reason` is empty for a good sample."""
    checks: Checks
    fingerprint: str
    """SHA-256 over the shards' contents in order and over which rows are usable."""

    @property
    def num_samples(self) -> int:
        """Rows, rejected samples included."""
        return int(self.samples.num_rows)

    def shard_of(self, sample_id: int) -> ShardInfo:
        """Return the shard that holds a sample.

        Raises:
            IndexError: no such row.
        """
        number: int = self.samples["shard"][sample_id].as_py()
        return self.shards[number]

    @property
    def usable(self) -> npt.NDArray[np.bool_]:
        """Which rows are good, bool `[num_samples]`."""
        return usable_rows(self.samples)

    def summary(self) -> dict[str, int]:
        """Count rejected samples and defective shards by reason, most frequent first."""
        counts: Counter[str] = Counter(reason for reason in self.samples["reason"].to_pylist() if reason)
        counts.update(shard.defect_reason for shard in self.shards if shard.defect_reason)
        return dict(counts.most_common())

    def passed_over(self) -> dict[str, int]:
        """Count the members of all shards that belong to no sample, by what they are."""
        counts: Counter[str] = Counter()
        for shard in self.shards:
            counts.update(shard.passed_over)
        return dict(counts.most_common())


def fingerprint_of(shards: Sequence[ShardInfo], samples: pa.Table) -> str:
    """Return the SHA-256 over the shards' contents in order and over which rows are usable."""
    digest = hashlib.sha256()
    for shard in shards:
        digest.update(bytes.fromhex(shard.sha256))
    digest.update(np.packbits(usable_rows(samples)).tobytes())
    return digest.hexdigest()


def usable_rows(samples: pa.Table) -> npt.NDArray[np.bool_]:
    """Return which rows have no reason against them, bool `[num_samples]`."""
    return np.asarray(pc.equal(samples["reason"], "").to_numpy(), dtype=np.bool_)
