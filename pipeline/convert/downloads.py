"""Folders that img2dataset wrote in its webdataset format: tar files of jpg, txt and json, a Parquet table beside each.

The table also lists what could not be downloaded; those rows become entries too, so that the report accounts for every
URL of the original list.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.convert.source import Entry, Members, entry_table, refused
from pipeline.errors import DataError, Reason, ShardError
from pipeline.samples.read import read_members
from pipeline.shards.grouping import MemberGroup, group_members
from pipeline.shards.scan import MEMBER_TYPE
from pipeline.shards.storage import open_shard, stat_shard
from pipeline.shards.tar import scan_tar

_COPIED = 512
"""Bytes a member takes beside its content: a header and, on average, padding."""


@dataclass(frozen=True)
class DownloadSource:
    """Tar files of captioned images; also reads any other WebDataset shards that are to be cut anew."""

    files: tuple[str, ...]
    kind: str = "img2dataset"

    def units(self) -> list[str]:
        """Return the tar files."""
        return list(self.files)

    def list_unit(self, unit: str) -> pa.Table:
        """List the samples of a tar file, then the failed downloads of the table beside it.

        A tar file that breaks off is listed up to there; its defect is an entry of its own.
        """
        entries: list[Entry] = []
        members: list[list[dict[str, object]]] = []
        with open_shard(unit) as file:
            try:
                for group in group_members(scan_tar(file, stat_shard(unit).size_bytes)):
                    entries.append(_entry(len(entries), group))
                    members.append([] if entries[-1].reason else _members(group))
            except ShardError as error:
                entries.append(refused(len(entries), error))
                members.append([])
        for status, number in _failed_downloads(unit):
            for _ in range(number):
                failure = DataError(Reason.MISSING_IMAGE, f"img2dataset reports {status[:40]!a}")
                entries.append(refused(len(entries), failure))
                members.append([])
        return entry_table(entries, {"members": pa.array(members, pa.list_(MEMBER_TYPE))})

    def read(self, unit: str, entries: pa.Table) -> Iterator[Members | DataError]:
        """Yield the members of each entry as they are, verified against the listing."""
        for members in entries["members"].to_pylist():
            try:
                yield read_members(unit, "", members)
            except DataError as error:
                yield error


def _entry(row: int, group: MemberGroup) -> Entry:
    if group.error is not None:
        return refused(row, group.error)
    return Entry(row, row, sum(member.size + _COPIED for _, member in group.members))


def _members(group: MemberGroup) -> list[dict[str, object]]:
    return [
        {"ext": extension, "offset": member.offset, "size": member.size, "crc32": member.crc32}
        for extension, member in group.members
    ]


def _failed_downloads(unit: str) -> list[tuple[str, int]]:
    """Return (status, number) of what the table beside a tar file says was not stored, by status."""
    path = Path(unit).with_suffix(".parquet")
    if "://" in unit or not path.is_file():
        return []
    if "status" not in pq.read_schema(path).names:  # some other table; the samples are in the tar file
        return []
    statuses = pq.read_table(path, columns=["status"])["status"].value_counts().to_pylist()
    return sorted((str(one["values"]), one["counts"]) for one in statuses if one["values"] != "success")
