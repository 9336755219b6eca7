"""Token counts of every sample of an index, for planning: fused length and supervised tokens.

Depends on tokenizer, template and image policy, so it is cached under their fingerprint beside the index.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import DataError
from pipeline.samples.encode import SampleEncoder
from pipeline.samples.read import read_annotations
from pipeline.samples.schema import SchemaPolicy, parse_layout
from pipeline.shards.index import Progress, RunMap, ShardIndex, run_serially
from pipeline.shards.index_files import write_table

TOKEN_SCHEMA = pa.schema(
    [
        pa.field("num_tokens", pa.int32(), nullable=False),
        pa.field("num_supervised_tokens", pa.int32(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("detail", pa.string(), nullable=False),
    ]
)


_COLUMNS = ["key", "kind", "members", "image_heights", "image_widths"]


class _ShardRows(NamedTuple):
    """Usable rows of one shard, as sent to a worker."""

    url: str
    rows: pa.Table
    """Columns `key`, `kind`, `members`, `image_heights` and `image_widths`."""


def build_token_columns(
    index: ShardIndex,
    encoder: SampleEncoder,
    *,
    cache_dir: str | Path,
    run_map: RunMap = run_serially,
    progress: Progress | None = None,
) -> pa.Table:
    """Return token counts row by row of the index.

    A sample that the index rejects keeps its reason; one that this encoder cannot use (too long, nothing to learn) gets
    its own. Both have 0 tokens.

    Args:
        index: the samples.
        encoder: decides the counts.
        cache_dir: folder for the result, usually that of the index.
        run_map: how to run the shards.
        progress: called after every shard.

    Returns:
        `TOKEN_SCHEMA`, `index.num_samples` rows.

    Raises:
        OSError: storage failed.
    """
    path = Path(cache_dir) / f"tokens-{index.fingerprint[:16]}-{encoder.fingerprint[:16]}.parquet"
    if path.is_file():
        table = _read_cached(path)
        if table is not None and table.num_rows == index.num_samples:
            return table
    num_tokens = np.zeros((2, index.num_samples), dtype=np.int32)
    reasons: list[str] = index.samples["reason"].to_pylist()
    details: list[str] = index.samples["detail"].to_pylist()
    row_ids, work = _split_by_shard(index)
    count = functools.partial(_count_shard, encoder=encoder, policy=index.checks.policy)
    for done, (ids, counts) in enumerate(zip(row_ids, run_map(count, work), strict=True), start=1):
        for row, (tokens, supervised, reason, detail) in zip(ids.tolist(), counts, strict=True):
            num_tokens[:, row] = tokens, supervised
            reasons[row], details[row] = reason, detail
        if progress is not None:
            progress(done, len(work))
    table = pa.table([*num_tokens, reasons, details], schema=TOKEN_SCHEMA)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_table(path, table)
    return table


def _read_cached(path: Path) -> pa.Table | None:
    try:
        return pq.read_table(path, schema=TOKEN_SCHEMA)
    except (OSError, pa.ArrowException):
        return None


def _split_by_shard(index: ShardIndex) -> tuple[list[npt.NDArray[np.int64]], list[_ShardRows]]:
    """Return, per shard with usable samples, their row numbers and what a worker needs of them."""
    usable = np.flatnonzero(index.usable)
    shard_of_row = index.samples["shard"].to_numpy()[usable]
    bounds = np.searchsorted(shard_of_row, np.arange(len(index.shards) + 1))
    row_ids, work = [], []
    for info, start, end in zip(index.shards, bounds[:-1], bounds[1:], strict=True):
        ids = usable[start:end]
        if len(ids):
            row_ids.append(ids)
            work.append(_ShardRows(info.url, index.samples.select(_COLUMNS).take(pa.array(ids))))
    return row_ids, work


def _count_shard(shard: _ShardRows, *, encoder: SampleEncoder, policy: SchemaPolicy) -> list[tuple[int, int, str, str]]:
    return list(_count_rows(shard, encoder, policy))


def _count_rows(shard: _ShardRows, encoder: SampleEncoder, policy: SchemaPolicy) -> Iterator[tuple[int, int, str, str]]:
    """Yield (fused length, supervised tokens, reason, detail) per row; images are not read, only their sizes."""
    keys, kinds, members, heights, widths = (shard.rows[name].to_pylist() for name in _COLUMNS)
    texts_of_rows = read_annotations(shard.url, keys, members)
    sizes_of_rows = (list(zip(*sides, strict=True)) for sides in zip(heights, widths, strict=True))
    rows = zip(keys, kinds, members, sizes_of_rows, texts_of_rows, strict=True)
    for key, kind, row, sizes, texts in rows:
        images = [member["ext"] for member in row if member["ext"] not in ("txt", "json")]
        try:
            if isinstance(texts, DataError):
                raise texts
            layout = parse_layout(key, texts, images, policy)
            text = encoder.encode_conversation(layout.conversation, encoder.views(sizes, kind == "video"), key=key)
            yield text.num_tokens, text.num_supervised_tokens, "", ""
        except DataError as error:
            yield 0, 0, error.reason.value, error.what[:200]
