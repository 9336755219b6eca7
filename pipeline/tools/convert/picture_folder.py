"""Folders of pictures with a text or JSON file of the same name next to each, as img2dataset's `files` output."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from pipeline.errors import DataError, Reason
from pipeline.index.grouping import MAX_MEMBERS, split_name
from pipeline.shards.tar import MAX_MEMBER_BYTES
from pipeline.tools.convert.downloads import members_outcome, not_stored
from pipeline.tools.convert.row import RowRules, Tally
from pipeline.tools.convert.sniff import FILM_ENDINGS, IMAGE_ENDINGS
from pipeline.tools.convert.source import Entry, Members, Outcome, entry_table, refused, stored_bytes

_MEDIA = (*IMAGE_ENDINGS, *FILM_ENDINGS)
_ENDINGS = frozenset((*(ending.removeprefix(".") for ending in _MEDIA), "jpe", "jfif", "heic", "txt", "json"))


@dataclass(frozen=True)
class PictureFolderSource:
    """Folders in which files that share a name up to the first dot make a sample."""

    folders: tuple[str, ...]
    rules: RowRules = field(default_factory=RowRules)
    kind: str = "files"

    def units(self) -> list[str]:
        """Return the folders."""
        return list(self.folders)

    def list_unit(self, unit: str) -> pa.Table:
        """List the samples of a folder, then the rows of img2dataset's table that the folder lacks."""
        groups: dict[str, list[str]] = {}
        for name in sorted(os.listdir(unit)):
            key, extension = split_name(name)
            if extension.rpartition(".")[2] in _ENDINGS and key:
                groups.setdefault(key, []).append(name)
        entries = [_entry(unit, row, names) for row, names in enumerate(groups.values())]
        names = [*groups.values()]
        for failure in not_stored(f"{unit}.tar", len(groups)):
            entries.append(refused(len(entries), failure))
            names.append([])
        return entry_table(entries, {"names": pa.array(names, pa.list_(pa.string()))})

    def read(self, unit: str, entries: pa.Table) -> Iterator[Outcome]:
        """Yield the members of each entry."""
        for names in entries["names"].to_pylist():
            members: Members = {}
            for name in names:
                members[split_name(name)[1]] = Path(unit, name).read_bytes()
            if len(members) < len(names):
                error = DataError(Reason.DUPLICATE_MEMBER, f"{len(names)} files, some of the same ending")
                yield Outcome(error, Tally(media=_num_images(names)))
            else:
                yield members_outcome(split_name(names[0])[0], members, self.rules)


def _entry(unit: str, row: int, names: list[str]) -> Entry:
    sizes = [os.path.getsize(os.path.join(unit, name)) for name in names]
    if len(names) > MAX_MEMBERS or max(sizes) > MAX_MEMBER_BYTES:
        error = DataError(Reason.SAMPLE_TOO_LARGE, f"{len(names)} files, the largest of {max(sizes)} bytes")
        return refused(row, error)._replace(media=_num_images(names))
    return Entry(row, row, sum(map(stored_bytes, sizes)))


def _num_images(names: list[str]) -> int:
    return sum(split_name(name)[1] not in ("txt", "json") for name in names)
