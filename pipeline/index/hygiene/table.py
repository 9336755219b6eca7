"""Facts about every sample that people filter by and look at: sizes, texts, copies, and overlap with other files.

A table row by row of the index, kept in its folder; `data.where` is decided on it before the plan.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.config.where import Condition
from pipeline.index.files import write_table
from pipeline.index.hygiene.duplicates import OVERLAPS, Prints, duplicate_of, group_pictures, image_copies, overlap_with
from pipeline.index.index import ShardIndex

_FORMAT = 1
_NAMES = ("num_images", "answer_chars", "text_bytes", "video_seconds", "language", "kind", "broken_text")
"""Columns of the index that are taken over."""


def hygiene_table(index: ShardIndex, against: ShardIndex | None, folder: Path) -> pa.Table:
    """Return the columns of `pipeline.config.where.COLUMNS` and `duplicate_of`, row by row of the index.

    Args:
        index: the samples.
        against: what their overlap is measured with; without it, `overlap` is `none` everywhere.
        folder: where the table is kept, usually that of the index.
    """
    other = "" if against is None else against.fingerprint
    state = hashlib.sha256(json.dumps([_FORMAT, index.fingerprint, other]).encode()).hexdigest()[:16]
    path = folder / f"hygiene-{state}.parquet"
    try:
        table = pq.read_table(path)
        if table.num_rows == index.num_samples:
            return table
    except (OSError, pa.ArrowException):
        pass
    table = _facts(index, against)
    folder.mkdir(parents=True, exist_ok=True)
    write_table(path, table)
    return table


def passes(table: pa.Table, conditions: Sequence[Condition]) -> npt.NDArray[np.bool_]:
    """Return for which samples all conditions hold, bool `[N]`; where a column is null, its condition does."""
    kept = np.ones(table.num_rows, bool)
    for condition in conditions:
        column = table[condition.column]
        if "in" in condition.operator:
            wanted = pc.is_in(column, value_set=pa.array(condition.values, column.type))
            holds = pc.invert(wanted) if condition.operator == "not in" else wanted
        else:
            value = pa.scalar(condition.values[0], column.type if pa.types.is_string(column.type) else None)
            holds = _COMPARE[condition.operator](column, value)
        kept &= pc.or_(pc.fill_null(holds, True), pc.is_null(column)).to_numpy()
    return kept


_COMPARE = {
    "==": pc.equal,
    "!=": pc.not_equal,
    "<=": pc.less_equal,
    ">=": pc.greater_equal,
    "<": pc.less,
    ">": pc.greater,
}


def _facts(index: ShardIndex, against: ShardIndex | None) -> pa.Table:
    samples = index.samples
    prints = Prints.of(samples)
    groups = group_pictures(prints)
    copies = duplicate_of(samples, prints, groups)
    shared = np.zeros(samples.num_rows, np.int8) if against is None else overlap_with(samples, prints, against.samples)
    short, long, aspect = _sizes(samples)
    columns = {name: samples[name] for name in (*_NAMES, "repeats_question")}
    return pa.table(
        {
            **columns,
            "short_side": short,
            "long_side": long,
            "aspect": aspect,
            "image_copies": pa.array(image_copies(samples, prints, groups)),
            "duplicate_of": pa.array(copies),
            "is_duplicate": pa.array(copies >= 0),
            "overlap": pa.array(OVERLAPS, pa.string()).take(pa.array(shared)),
        }
    )


def _sizes(samples: pa.Table) -> tuple[pa.Array, pa.Array, pa.Array]:
    """Return the shortest side, the longest side and the largest ratio of each sample's images; null without any."""
    counts = samples["num_images"].to_numpy().astype(np.int64)
    widths, heights = (
        np.asarray(pc.list_flatten(samples[name]).to_numpy(), np.int64) for name in ("image_widths", "image_heights")
    )
    has = counts > 0
    starts = (np.cumsum(counts) - counts)[has]
    results = []
    for values, join in (
        (np.minimum(widths, heights), np.minimum),
        (np.maximum(widths, heights), np.maximum),
        (np.maximum(widths, heights) / np.maximum(1, np.minimum(widths, heights)), np.maximum),
    ):
        column = np.zeros(len(counts), np.float64)
        if starts.size:
            column[has] = join.reduceat(values, starts)
        results.append(pa.array(column, mask=~has))
    return results[0], results[1], results[2]
