"""How many rejected samples a run accepts: in all, in one shard, and one after the other.

The share catches data that is bad throughout; the other two catch one broken shard, or one broken tool, among many good
ones, which a share of the whole would not show. A defective shard is a share of its own: it is unknown how many samples
it held.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from pipeline.config import ConfigError, DataConfig
from pipeline.index.dataset import IndexedData
from pipeline.index.index import ShardInfo


class Exceeded(NamedTuple):
    """A limit that the rejected samples are beyond."""

    field: str
    """Config field that holds the limit."""
    found: int
    allowed: int
    first_row: int
    """Index row where to begin looking."""


def find_exceeded(
    rejected: npt.NDArray[np.bool_], shards: npt.NDArray[np.int32], limits: DataConfig
) -> Exceeded | None:
    """Return the first limit that is exceeded, the narrowest place first.

    Args:
        rejected: bool `[N]`, in index order.
        shards: shard of each sample, ascending, int32 `[N]`.
        limits: how many are accepted.
    """
    rows = np.flatnonzero(rejected)
    if rows.size == 0:
        return None
    breaks = np.flatnonzero(np.diff(rows) != 1) + 1
    starts, ends = np.append(0, breaks), np.append(breaks, rows.size)
    longest = int((ends - starts).argmax())
    in_a_row = int(ends[longest] - starts[longest])
    if limits.max_rejected_in_a_row is not None and in_a_row > limits.max_rejected_in_a_row:
        return Exceeded("max_rejected_in_a_row", in_a_row, limits.max_rejected_in_a_row, int(rows[starts[longest]]))
    counts = np.bincount(shards[rows])
    worst = int(counts.argmax())
    if limits.max_rejected_per_shard is not None and counts[worst] > limits.max_rejected_per_shard:
        first = rows[np.searchsorted(shards[rows], worst)]
        return Exceeded("max_rejected_per_shard", int(counts[worst]), limits.max_rejected_per_shard, int(first))
    allowed = limits.allowed_rejected(rejected.size)
    if rows.size > allowed:
        return Exceeded("max_rejected_fraction", int(rows.size), allowed, int(rows[0]))
    return None


def check_rejected(data: IndexedData, limits: DataConfig) -> None:
    """Refuse data with too many rejected samples or defective shards.

    Raises:
        ConfigError: names the limit, the reasons, the place to look at and what can be done.
    """
    excess = describe_excess(data, limits)
    if excess is not None:
        raise ConfigError(excess)


def describe_excess(data: IndexedData, limits: DataConfig) -> str | None:
    """Return why a run on these data would be refused; None if it would not."""
    return (
        _describe_defects(data.index.shards, limits)
        or _describe_rejected(data, limits)
        or _describe_empty_source(data, limits)
    )


def _describe_defects(shards: Sequence[ShardInfo], limits: DataConfig) -> str | None:
    """Judge shards that data.on_bad_shard=quarantine let pass: what they held is not among the samples."""
    defects = [shard for shard in shards if shard.defect_reason]
    allowed = limits.allowed_defective(len(shards))
    if len(defects) <= allowed:
        return None
    reasons = Counter(shard.defect_reason for shard in defects)
    return (
        f"{len(defects)} of {len(shards)} shards are defective ({_listed(reasons)}), more than the {allowed} that "
        f"data.max_rejected_fraction allows; begin with {defects[0].url}: {defects[0].defect_detail}. Write them "
        "again, leave them out of the config, or raise the limit"
    )


def _describe_rejected(data: IndexedData, limits: DataConfig) -> str | None:
    reasons = data.tokens["reason"]
    rejected = pc.not_equal(reasons, "").to_numpy()
    exceeded = find_exceeded(rejected, data.index.samples["shard"].to_numpy(), limits)
    if exceeded is None:
        return None
    counts = {one["values"]: one["counts"] for one in pc.value_counts(reasons).to_pylist() if one["values"]}
    row = exceeded.first_row
    shard = data.index.shard_of(row).url
    where = f"begin with sample {data.index.samples['key'][row].as_py()!a} of {shard} ({reasons[row].as_py()})"
    return (
        f"{int(rejected.sum())} of {rejected.size} samples are unusable ({_listed(counts)}): {exceeded.found} "
        f"{_WHERE[exceeded.field]}, more than the {exceeded.allowed} that data.{exceeded.field} allows; {where}. "
        "`ray-llava index --report FILE` lists each of them. Repair the shards, or raise the limit"
    )


def _describe_empty_source(data: IndexedData, limits: DataConfig) -> str | None:
    """Check the sources of a mix: a source without samples may be small, but it was asked for."""
    for name, first, end in data.sources:
        reasons = data.tokens["reason"].slice(first, end - first)
        if name and limits.draws_from(name) and not pc.any(pc.equal(reasons, "")).as_py():
            found = Counter(reasons.to_pylist())
            return (
                f"source {name!r} has no usable sample ({_listed(found) or 'its shards are empty'}); `ray-llava index "
                "--report FILE` lists each of them. Repair its shards, or take it out of data.sources"
            )
    return None


def _listed(reasons: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} {number}" for reason, number in Counter(reasons).most_common())


_WHERE = {
    "max_rejected_fraction": "in all",
    "max_rejected_per_shard": "in one shard",
    "max_rejected_in_a_row": "one after the other",
}
