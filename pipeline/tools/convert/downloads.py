"""Folders that img2dataset wrote in its webdataset format: tar files of jpg, txt and json, a Parquet table beside each.

The table also lists what could not be downloaded; those rows become entries too, as do those of samples that got lost
since, so that the report accounts for every URL of the original list.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import DataError, Reason, ShardError
from pipeline.index.grouping import MemberGroup, group_members
from pipeline.index.read import read_members
from pipeline.index.scan import MEMBER_TYPE
from pipeline.samples.annotation import read_annotation
from pipeline.samples.image_names import resolve_images, sort_images
from pipeline.samples.schema import has_turns
from pipeline.shards.storage import open_shard, stat_shard
from pipeline.shards.tar import scan_tar
from pipeline.tools.convert.image_field import ORIGINAL_NAMES, listed_names, with_stored_names
from pipeline.tools.convert.readable import name_unreadable
from pipeline.tools.convert.source import Entry, Members, entry_table, refused, stored_bytes

_STORED = "success"
"""What img2dataset calls the status of a sample that it put into the tar file."""


@dataclass(frozen=True)
class DownloadSource:
    """Tar files of captioned images; also reads any other WebDataset shards that are to be cut anew."""

    files: tuple[str, ...]
    kind: str = "img2dataset"

    def units(self) -> list[str]:
        """Return the tar files."""
        return list(self.files)

    def list_unit(self, unit: str) -> pa.Table:
        """List the samples of a tar file, then what the table beside it has and the tar file lacks.

        A tar file that breaks off is listed up to there; its defect is an entry of its own.
        """
        entries: list[Entry] = []
        keys: list[str] = []
        members: list[list[dict[str, object]]] = []
        with open_shard(unit) as file:
            try:
                for group in group_members(scan_tar(file, stat_shard(unit).size_bytes)):
                    entries.append(_entry(len(entries), group))
                    keys.append(group.key)
                    members.append([] if entries[-1].reason else _members(group))
            except ShardError as error:
                entries.append(refused(len(entries), error))
        for failure in _not_stored(unit, len(keys)):
            entries.append(refused(len(entries), failure))
        keys += [""] * (len(entries) - len(keys))
        members += [[] for _ in range(len(entries) - len(members))]
        columns = {"key": pa.array(keys, pa.string()), "members": pa.array(members, pa.list_(MEMBER_TYPE))}
        return entry_table(entries, columns)

    def read(self, unit: str, entries: pa.Table) -> Iterator[Members | DataError]:
        """Yield the members of each entry, verified against the listing; of an annotation, its image names adapted."""
        for key, members in zip(entries["key"].to_pylist(), entries["members"].to_pylist(), strict=True):
            try:
                yield _without_key(key, read_members(unit, key, members))
            except DataError as error:
                yield error


def _entry(row: int, group: MemberGroup) -> Entry:
    if group.error is not None:
        return refused(row, group.error)
    return Entry(row, row, sum(stored_bytes(member.size) for _, member in group.members))


def _members(group: MemberGroup) -> list[dict[str, object]]:
    return [
        {"ext": extension, "offset": member.offset, "size": member.size, "crc32": member.crc32}
        for extension, member in group.members
    ]


def _without_key(key: str, members: Members) -> Members:
    """Return the members with images named by extension: names that hold the old key would match nothing any more.

    Raises:
        DataError: the annotation does not name the images that are there.
    """
    if "json" not in members or "txt" in members:
        return members
    tree = read_annotation(members["json"])
    if not isinstance(tree, dict) or not has_turns(tree) or not (names := listed_names(tree)):
        return members
    present = sort_images([extension for extension in members if extension != "json"])
    stored = resolve_images(key, names, present, declared=True)
    if list(stored) == names:
        return members
    renamed = {**with_stored_names(tree, names, stored), ORIGINAL_NAMES: tree.get(ORIGINAL_NAMES) or [*names]}
    return {**members, "json": json.dumps(renamed, ensure_ascii=False).encode()}


def _not_stored(unit: str, num_stored: int) -> list[DataError]:
    """Return an error for each row of the table beside a tar file without sample in it: failed ones first, by status.

    Raises:
        ValueError: the table cannot be read.
    """
    path = Path(unit).with_suffix(".parquet")
    if "://" in unit or not path.is_file():
        return []
    with name_unreadable(path, "fetch it again, or remove it if the report need not list failed downloads"):
        if "status" not in pq.read_schema(path).names:  # some other table; the samples are in the tar file
            return []
        statuses = [str(status) for status in pq.read_table(path, columns=["status"])["status"].to_pylist()]
    failed = sorted(status for status in statuses if status != _STORED)
    errors = [DataError(Reason.MISSING_IMAGE, f"img2dataset reports {status[:40]!a}") for status in failed]
    num_lost = max(0, statuses.count(_STORED) - num_stored)
    lost = DataError(Reason.MISSING_IMAGE, "img2dataset reports 'success', but the tar file holds fewer samples")
    return errors + [lost] * num_lost
