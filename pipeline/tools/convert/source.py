"""What every source of samples provides: its files, a cheap listing of each, and the members of the samples it lists.

A listing is complete and in a fixed order: what cannot become a sample keeps its row, with a reason, so that every
entry of the source ends either in a shard or in the report.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple, Protocol

import pyarrow as pa

from pipeline.errors import DataError
from pipeline.tools.convert.row import RowError, Tally

Members = dict[str, bytes]
"""Content by extension, as `pipeline.samples.schema.parse_sample` takes it."""

_TAR_BLOCK = 512

ENTRY_FIELDS = [
    pa.field("row", pa.int64(), nullable=False),
    pa.field("block", pa.int64(), nullable=False),
    pa.field("size_bytes", pa.int64(), nullable=False),
    pa.field("reason", pa.string(), nullable=False),
    pa.field("detail", pa.string(), nullable=False),
    pa.field("media", pa.int32(), nullable=False),
]
"""Columns of every listing.

`row`: position in the unit. `block`: entries of one block are read together, so a shuffle keeps them together.
`size_bytes`: of the members in a tar file, see `stored_bytes`, as far as it is known before reading. `reason`: why
there will be no sample, usually empty. `media`: pictures, films and sounds of an entry that has a reason.
"""


class Entry(NamedTuple):
    """The columns of `ENTRY_FIELDS` for one entry."""

    row: int
    block: int
    size_bytes: int
    reason: str = ""
    detail: str = ""
    media: int = 0


class Outcome(NamedTuple):
    """What an entry became, and what was found in it."""

    content: Members | DataError
    tally: Tally


def failed(error: DataError) -> Outcome:
    """Return the outcome of an entry that cannot become a sample."""
    return Outcome(error, error.tally if isinstance(error, RowError) else Tally())


class Source(Protocol):
    """A kind of input; picklable and without open files."""

    @property
    def kind(self) -> str:
        """Name of the format, as `--format` takes it."""
        ...

    def units(self) -> list[str]:
        """Return the files that are listed one by one, in a fixed order; never empty.

        Raises:
            ValueError: there is none, or it is not clear which are meant.
        """
        ...

    def list_unit(self, unit: str) -> pa.Table:
        """Return the listing of one unit: `ENTRY_FIELDS` and what `read` needs, one row per entry.

        Raises:
            DataError: the unit cannot be read to its end.
            OSError: storage failed.
        """
        ...

    def read(self, unit: str, entries: pa.Table) -> Iterator[Outcome]:
        """Yield the members of entries of one unit, in the order given; a defective one yields its error.

        Raises:
            OSError: storage failed.
        """
        ...


def stored_bytes(size_bytes: int) -> int:
    """Return what a file takes in a tar file: a header, and its content padded to whole blocks."""
    return _TAR_BLOCK + size_bytes + -size_bytes % _TAR_BLOCK


def entry_table(entries: Iterable[Entry], more: Mapping[str, pa.Array]) -> pa.Table:
    """Return a listing from entries and the columns that only its source reads."""
    columns = list(zip(*entries, strict=True)) or [()] * len(ENTRY_FIELDS)
    table = pa.table(
        [pa.array(values, field.type) for values, field in zip(columns, ENTRY_FIELDS, strict=True)],
        schema=pa.schema(ENTRY_FIELDS),
    )
    for name, values in more.items():
        table = table.append_column(pa.field(name, values.type), values)
    return table


def refused(row: int, error: DataError, *, block: int | None = None) -> Entry:
    """Return the entry of something that cannot become a sample."""
    media = error.tally.media if isinstance(error, RowError) else 0
    return Entry(row, row if block is None else block, 0, error.reason.value, error.what[:200], media)
