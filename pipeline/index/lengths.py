"""Token counts of every sample of an index, for planning: fused length, supervised tokens, tokens cut off the end.

They depend on tokenizer, template and image policy, and are cached in the index folder under their digest: the table
of the whole index, and what was counted of each shard, so that a shard that is added does not cost all others again.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import DataError
from pipeline.index.files import read_table, write_table
from pipeline.index.index import ShardIndex
from pipeline.index.read import read_annotations
from pipeline.parallel.run_map import Progress, RunMap, run_serially
from pipeline.samples.encode import SampleEncoder
from pipeline.samples.film import Film
from pipeline.samples.schema import SchemaPolicy, parse_layout

TOKEN_SCHEMA = pa.schema(
    [
        pa.field("num_tokens", pa.int32(), nullable=False),
        pa.field("num_supervised_tokens", pa.int32(), nullable=False),
        pa.field("num_truncated_tokens", pa.int32(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("detail", pa.string(), nullable=False),
    ]
)

_FORMAT = 4
"""Raised whenever the meaning of a column changes; what another version counted is counted again."""
_COUNTS = "token_counts"
_COLUMNS = ["key", "kind", "members", "image_heights", "image_widths", "video_frames", "video_seconds"]


class _ShardRows(NamedTuple):
    """Usable rows of one shard, as sent to a worker."""

    url: str
    rows: pa.Table
    """The columns `_COLUMNS`."""


class _UsableRows(NamedTuple):
    """Which rows of a shard are to be counted."""

    shard: int
    """Position in the list of shards."""
    row_ids: npt.NDArray[np.int64]
    """Rows of the index, int64 `[R]`, at least one."""
    file: Path
    """Where their counts are kept."""


def build_token_columns(
    index: ShardIndex,
    encoder: SampleEncoder,
    *,
    cache_dir: str | Path,
    run_map: RunMap = run_serially,
    progress: Progress | None = None,
) -> pa.Table:
    """Return token counts row by row of the index; only shards that were not counted yet are read.

    A sample that the index rejects keeps its reason; one that this encoder cannot use (too long, nothing to learn) gets
    its own. Both have 0 tokens, and none cut off.

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
    folder = Path(cache_dir)
    counting = _digest(_FORMAT, encoder.fingerprint, dataclasses.asdict(index.checks))
    path = folder / f"tokens-{index.fingerprint[:16]}-{counting[:16]}.parquet"
    table = _read_cached(path, index.num_samples)
    if table is None:
        (folder / _COUNTS).mkdir(parents=True, exist_ok=True)
        shards = _split_by_shard(index, folder / _COUNTS, counting)
        table = _align(index, _count_shards(index, shards, encoder, run_map, progress))
        write_table(path, table)
    return table


def _digest(*facts: object) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _read_cached(path: Path, num_rows: int) -> pa.Table | None:
    """Return a stored table, or None; a damaged one counts as none."""
    try:
        table = read_table(path, TOKEN_SCHEMA)
    except (OSError, ValueError):
        return None
    return table if table.num_rows == num_rows else None


def _split_by_shard(index: ShardIndex, folder: Path, counting: str) -> list[_UsableRows]:
    """Return the usable rows of each shard that has any."""
    usable, shard_of_row = index.usable, index.samples["shard"].to_numpy()
    bounds = np.searchsorted(shard_of_row, np.arange(len(index.shards) + 1)).tolist()
    shards = []
    for idx, (info, start, end) in enumerate(zip(index.shards, bounds[:-1], bounds[1:], strict=True)):
        mask = usable[start:end]
        if mask.any():
            # which rows are usable also depends on the keys of earlier shards
            name = _digest(counting, info.sha256, np.packbits(mask).tobytes().hex())[:32]
            shards.append(_UsableRows(idx, start + np.flatnonzero(mask), folder / f"{name}.parquet"))
    return shards


def _count_shards(
    index: ShardIndex,
    shards: list[_UsableRows],
    encoder: SampleEncoder,
    run_map: RunMap,
    progress: Progress | None,
) -> list[pa.Table]:
    """Return the counts of the usable rows of each shard, `TOKEN_SCHEMA`, and keep those that are new."""
    counts = [_read_cached(shard.file, len(shard.row_ids)) for shard in shards]
    missing = [number for number, table in enumerate(counts) if table is None]
    columns = index.samples.select(_COLUMNS)
    work = [
        _ShardRows(index.shards[shard.shard].url, columns.take(pa.array(shard.row_ids)))
        for shard in (shards[number] for number in missing)
    ]
    count = functools.partial(_count_shard, encoder=encoder, policy=index.checks.policy)
    for done, (number, table) in enumerate(zip(missing, run_map(count, work), strict=True), start=1):
        write_table(shards[number].file, table)
        counts[number] = table
        if progress is not None:
            progress(len(shards) - len(missing) + done, len(shards))
    return counts


def _align(index: ShardIndex, counts: list[pa.Table]) -> pa.Table:
    """Put the counts of the usable rows among the rejected rows of the index."""
    counted = pa.concat_tables([TOKEN_SCHEMA.empty_table(), *counts]).combine_chunks()
    usable = index.usable
    columns: list[pa.Array] = []
    for field in TOKEN_SCHEMA:
        values = counted[field.name].combine_chunks()
        if field.type == pa.int32():
            column = np.zeros(index.num_samples, dtype=np.int32)
            column[usable] = values.to_numpy()
            columns.append(pa.array(column))
        else:
            rejected = index.samples[field.name].combine_chunks()
            columns.append(pc.replace_with_mask(rejected, pa.array(usable), values))
    return pa.table(columns, schema=TOKEN_SCHEMA)


def _count_shard(shard: _ShardRows, *, encoder: SampleEncoder, policy: SchemaPolicy) -> pa.Table:
    columns = zip(*_count_rows(shard, encoder, policy), strict=True)
    return pa.table([list(column) for column in columns], schema=TOKEN_SCHEMA)


def _count_rows(
    shard: _ShardRows, encoder: SampleEncoder, policy: SchemaPolicy
) -> Iterator[tuple[int, int, int, str, str]]:
    """Yield the columns of `TOKEN_SCHEMA` per row; images are not read, only their sizes."""
    keys, kinds, members, heights, widths, frames, seconds = (shard.rows[name].to_pylist() for name in _COLUMNS)
    texts_of_rows = read_annotations(shard.url, keys, members)
    sizes_of_rows = (list(zip(*sides, strict=True)) for sides in zip(heights, widths, strict=True))
    films = zip(frames, seconds, strict=True)
    rows = zip(keys, kinds, members, sizes_of_rows, films, texts_of_rows, strict=True)
    for key, kind, row, sizes, film, texts in rows:
        images = [member["ext"] for member in row if member["ext"] not in ("txt", "json")]
        try:
            if isinstance(texts, DataError):
                raise texts
            layout = parse_layout(key, texts, images, policy)
            conversation, views = layout.conversation, encoder.views(sizes, kind == "video")
            if kind == "film":
                (height, width), (number, length) = sizes[0], film
                facts = Film(width, height, number, length)
                conversation, views = encoder.film_layout(conversation, sizes[0], facts)
            text = encoder.encode_conversation(conversation, views, key=key)
            yield text.num_tokens, text.num_supervised_tokens, text.truncated_tokens, "", ""
        except DataError as error:
            yield 0, 0, 0, error.reason.value, error.what[:200]
