"""Tables: Parquet files, the Arrow files of Hugging Face datasets, and CSV or TSV with base64, read in blocks."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import csv

from pipeline.errors import DataError, Reason
from pipeline.tools.convert.media_bytes import media_bytes
from pipeline.tools.convert.readable import name_unreadable
from pipeline.tools.convert.row import RowRules
from pipeline.tools.convert.row_media import media_kind
from pipeline.tools.convert.row_reader import read_row
from pipeline.tools.convert.source import ENTRY_FIELDS, Outcome, failed, stored_bytes
from pipeline.tools.convert.turns import ANSWER_NAMES, CAPTION_NAMES, QUESTION_NAMES, TURN_NAMES
from pipeline.tools.convert.written import write_members

_ReadBatches = Callable[[int, list[str]], Iterator[pa.RecordBatch]]
_BATCH_ROWS = 64
"""A row group may hold gigabytes of images."""
_TEXT_BLOCK_BYTES = 32 * 1024 * 1024
"""Of a CSV file that is read at a time; no row may be longer."""
_ADVICE = "fetch or write the file again"


@dataclass(frozen=True)
class TableSource:
    """Parquet or Arrow files; a block is a row group or a record batch."""

    files: tuple[str, ...]
    rules: RowRules = field(default_factory=RowRules)
    image_folder: str | None = None
    """Where file names in an image column begin; None where the table must hold the bytes."""
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
        header = stored_bytes(1)  # of the text: its content is in the mean, its header is not
        means = [stored_bytes(size // max(1, count)) + header for count, size in zip(counts, sizes, strict=True)]
        empty = pa.array([""] * num_rows, pa.string())
        values = [
            np.arange(num_rows),
            np.repeat(np.arange(len(counts)), counts),
            np.repeat(means, counts),
            empty,
            empty,
            np.zeros(num_rows, np.int32),
        ]
        return pa.table(values, schema=pa.schema(ENTRY_FIELDS))

    def read(self, unit: str, entries: pa.Table) -> Iterator[Outcome]:
        """Yield the members of each row, with some rows of a block in memory at a time, shuffled with one block."""
        with _open(unit) as table:
            columns = self._columns(table, unit)
            starts = np.concatenate([[0], np.cumsum(table.rows_per_block)])
            blocks, places = entries["block"].to_numpy(), entries["row"].to_numpy()
            for part in np.split(np.arange(blocks.size), np.flatnonzero(np.diff(blocks)) + 1):
                block = int(blocks[part[0]])
                with name_unreadable(unit, _ADVICE, where=f"row group {block}"):
                    for values in _rows(table.read_batches(block, columns), places[part] - starts[block]):
                        yield self._outcome(values)

    def _outcome(self, values: dict[str, pa.Scalar]) -> Outcome:
        try:
            row = {name: checked_row(value.as_py()) for name, value in values.items()}
        except UnicodeDecodeError:
            return failed(DataError(Reason.TEXT_INVALID_UNICODE, "a column of text that is not UTF-8"))
        try:
            reading = read_row({name: value for name, value in row.items() if value is not None}, self.rules)
        except DataError as error:
            return failed(error)
        try:
            contents = [media_bytes(found, self.image_folder) for found in reading.media]
            kept = {"id": str(row["id"])} if row.get("id") is not None else {}
            return Outcome(write_members(reading, contents, kept, self.rules.policy), reading.tally)
        except DataError as error:
            return Outcome(error, reading.tally)

    def _columns(self, table: _OpenTable, unit: str) -> list[str]:
        """Return the columns that may hold a part of a sample: all but those of numbers and dates.

        Raises:
            ValueError: a column that was named is not there, or none holds text.
        """
        names: list[str] = table.schema.names
        for name in (self.rules.image_field, self.rules.text_field, *sorted(self.rules.ignored)):
            if name is not None and name not in names:
                raise ValueError(f"{unit}: no column {name!r}; it has {', '.join(names)}")
        texts = (*TURN_NAMES, *CAPTION_NAMES, *QUESTION_NAMES)
        if names and self.rules.text_field is None and not any(name in texts for name in names):
            raise ValueError(
                f"{unit}: no column with captions or conversations among {', '.join(names)}; name it with --text-column"
            )
        return [field.name for field in table.schema if _may_hold_a_part(field)]


def checked_row(value: Any) -> Any:
    """Return a value of a row without null fields of structs: every row has all of them."""
    if isinstance(value, dict):
        return {name: checked_row(one) for name, one in value.items() if one is not None}
    if isinstance(value, list) and not (value and isinstance(value[0], int)):
        return [checked_row(one) if not isinstance(one, tuple) else one for one in value]
    return value


def _may_hold_a_part(field: pa.Field) -> bool:
    """Whether a column may hold text, pictures or their names; an answer may be a number."""
    kind = field.type
    while pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        kind = kind.value_type
    is_list_of_bytes = kind is not field.type and pa.types.is_integer(kind)
    if field.name in ANSWER_NAMES or media_kind(field.name) is not None or is_list_of_bytes:
        return True
    numbers = pa.types.is_floating, pa.types.is_integer, pa.types.is_boolean, pa.types.is_temporal, pa.types.is_decimal
    return field.name == "id" or not any(is_kind(kind) for is_kind in numbers)


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
        if path.casefold().endswith((".csv", ".tsv")):
            return _open_text(path)
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


def _open_text(path: str) -> _OpenTable:
    """Open a CSV or TSV file, every column as text; base64 images make rows of megabytes."""
    parse = csv.ParseOptions(delimiter="\t" if path.casefold().endswith(".tsv") else ",", newlines_in_values=True)
    read = csv.ReadOptions(use_threads=False, block_size=_TEXT_BLOCK_BYTES)

    def batches() -> Iterator[pa.RecordBatch]:
        names = csv.open_csv(path, read, parse).schema.names
        convert = csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=True, null_values=[""]
        )
        yield from csv.open_csv(path, read, parse, convert)

    def block(number: int, names: list[str]) -> Iterator[pa.RecordBatch]:
        yield next(itertools.islice(batches(), number, None)).select(names)

    sizes = [(batch.num_rows, batch.nbytes, batch.schema) for batch in batches()]
    schema = sizes[0][2] if sizes else pa.schema([])
    return _OpenTable(schema, [rows for rows, _, _ in sizes], [size for _, size, _ in sizes], block, lambda: None)


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
