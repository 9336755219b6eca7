"""Tables with image bytes: Parquet files and the Arrow files of Hugging Face datasets, read block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.convert.source import ENTRY_FIELDS, Members
from pipeline.convert.table_rows import Columns, find_columns, row_members
from pipeline.errors import DataError
from pipeline.samples.schema import SchemaPolicy

_ReadBlock = Callable[[int, list[str]], pa.Table]


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
            self._columns(table, unit)
            counts, sizes = table.rows_per_block, table.bytes_per_block
        num_rows = sum(counts)
        means = [size // max(1, count) for count, size in zip(counts, sizes, strict=True)]
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
        """Yield the members of each row, with one block in memory at a time."""
        with _open(unit) as table:
            columns = self._columns(table, unit)
            starts = np.concatenate([[0], np.cumsum(table.rows_per_block)])
            loaded, rows = -1, pa.table({})
            for row, block in zip(entries["row"].to_pylist(), entries["block"].to_pylist(), strict=True):
                if block != loaded:
                    loaded, rows = block, table.read_block(block, columns.names())
                values = {name: rows[name][row - int(starts[block])].as_py() for name in columns.names()}
                try:
                    yield row_members(values, columns, self.policy)
                except DataError as error:
                    yield error

    def _columns(self, table: _OpenTable, unit: str) -> Columns:
        return find_columns(table.schema, self.image_column, self.text_column, unit)


@dataclass(frozen=True)
class _OpenTable:
    """One table file, its blocks readable in any order."""

    schema: pa.Schema
    rows_per_block: list[int]
    bytes_per_block: list[int]
    read_block: _ReadBlock
    close: Callable[[], None]

    def __enter__(self) -> _OpenTable:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _open(path: str) -> _OpenTable:
    try:
        return _open_arrow(path) if path.endswith(".arrow") else _open_parquet(path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path}: not a readable Parquet or Arrow file ({error}); fetch or write it again") from error


def _open_parquet(path: str) -> _OpenTable:
    file = pq.ParquetFile(path, memory_map=True)
    groups = [file.metadata.row_group(idx) for idx in range(file.metadata.num_row_groups)]
    return _OpenTable(
        file.schema_arrow,
        [group.num_rows for group in groups],
        [group.total_byte_size for group in groups],
        lambda block, names: file.read_row_group(block, columns=names, use_threads=False),
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
        lambda block, names: pa.Table.from_batches([batches[block]]).select(names),
        mapped.close,
    )
