"""Tables with image bytes: Parquet files and the Arrow files of Hugging Face datasets, read in blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import DataError, Reason
from pipeline.samples.schema import SchemaPolicy
from pipeline.tools.convert.readable import name_unreadable
from pipeline.tools.convert.source import ENTRY_FIELDS, Members, stored_bytes
from pipeline.tools.convert.table_rows import Columns, find_columns, row_members

_ReadBatches = Callable[[int, list[str]], Iterator[pa.RecordBatch]]
_BATCH_ROWS = 64
"""A row group may hold gigabytes of images."""
_ADVICE = "fetch or write the file again"


@dataclass(frozen=True)
class TableSource:
    """Parquet or Arrow files; a block is a row group or a record batch."""

    files: tuple[str, ...]
    image_column: str | None = None
    text_column: str | None = None
    policy: SchemaPolicy = field(default_factory=SchemaPolicy)
    kind: str = "parquet"

    def units(self) -> list[str]:
        """Return the files."""
        return list(self.files)

    def list_unit(self, unit: str) -> pa.Table:
        """List rows; the size of a row is taken as its block's mean, so that no image is read for it."""
        with _open(unit) as table:
            columns = self._columns(table, unit)
            counts, sizes = table.rows_per_block, table.bytes_per_block
        num_rows = sum(counts)
        text_bytes = stored_bytes(1) if columns.images else 0  # its content is in the mean, its header is not
        means = [stored_bytes(size // max(1, count)) + text_bytes for count, size in zip(counts, sizes, strict=True)]
        empty = pa.array([""] * num_rows, pa.string())
        values = [
            np.arange(num_rows),
            np.repeat(np.arange(len(counts)), counts),
            np.repeat(means, counts),
            empty,
            empty,
        ]
        return pa.table(values, schema=pa.schema(ENTRY_FIELDS))

    def read(self, unit: str, entries: pa.Table) -> Iterator[Members | DataError]:
        """Yield the members of each row, with some rows of a block in memory at a time, shuffled with one block."""
        with _open(unit) as table:
            columns = self._columns(table, unit)
            starts = np.concatenate([[0], np.cumsum(table.rows_per_block)])
            blocks, places = entries["block"].to_numpy(), entries["row"].to_numpy()
            for part in np.split(np.arange(blocks.size), np.flatnonzero(np.diff(blocks)) + 1):
                block = int(blocks[part[0]])
                with name_unreadable(unit, _ADVICE, where=f"row group {block}"):
                    for values in _rows(table.read_batches(block, columns.names()), places[part] - starts[block]):
                        yield self._members(values, columns)

    def _members(self, values: dict[str, pa.Scalar], columns: Columns) -> Members | DataError:
        try:
            return row_members({name: value.as_py() for name, value in values.items()}, columns, self.policy)
        except UnicodeDecodeError:
            return DataError(Reason.TEXT_INVALID_UNICODE, "a column of text that is not UTF-8")
        except DataError as error:
            return error

    def _columns(self, table: _OpenTable, unit: str) -> Columns:
        return find_columns(table.schema, self.image_column, self.text_column, unit)


@dataclass(frozen=True)
class _OpenTable:
    """One table file, its blocks readable in any order."""

    schema: pa.Schema
    rows_per_block: list[int]
    bytes_per_block: list[int]
    read_batches: _ReadBatches
    """Of one block and some columns, in order, few rows each where the format allows it."""
    close: Callable[[], None]

    def __enter__(self) -> _OpenTable:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _rows(batches: Iterator[pa.RecordBatch], places: npt.NDArray[np.int64]) -> Iterator[dict[str, pa.Scalar]]:
    """Yield the rows at places of a block; only when these do not ascend, the block is read as a whole."""
    windows: Iterator[pa.RecordBatch | pa.Table] = batches
    if (np.diff(places) < 0).any():
        windows = iter([pa.Table.from_batches(list(batches))])
    start, window = 0, next(windows)
    for place in places.tolist():
        while place >= start + window.num_rows:
            start, window = start + window.num_rows, next(windows)
        yield {name: window[name][place - start] for name in window.schema.names}


def _open(path: str) -> _OpenTable:
    with name_unreadable(path, _ADVICE):
        return _open_arrow(path) if path.endswith(".arrow") else _open_parquet(path)


def _open_parquet(path: str) -> _OpenTable:
    file = pq.ParquetFile(path, memory_map=True)
    groups = [file.metadata.row_group(idx) for idx in range(file.metadata.num_row_groups)]
    return _OpenTable(
        file.schema_arrow,
        [group.num_rows for group in groups],
        [group.total_byte_size for group in groups],
        lambda block, names: file.iter_batches(_BATCH_ROWS, row_groups=[block], columns=names, use_threads=False),
        file.close,
    )


def _open_arrow(path: str) -> _OpenTable:
    mapped = pa.memory_map(path)
    # mapped, not read: the batches of a file of gigabytes cost nothing until a row is looked at
    batches = list(pa.ipc.open_stream(mapped))
    schema = batches[0].schema if batches else pa.schema([])
    return _OpenTable(
        schema,
        [batch.num_rows for batch in batches],
        [batch.nbytes for batch in batches],
        lambda block, names: iter([batches[block].select(names)]),
        mapped.close,
    )
