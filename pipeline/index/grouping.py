"""From archive members to samples: which files belong together, and under which key.

The WebDataset rule: the key is the name up to the first dot of the basename, folder included; what follows is the
extension. Members of a sample are adjacent. Entries that hold nothing of a sample (folders, metadata of macOS) are
passed over and counted. What the files mean is left to `pipeline.samples.schema`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from pipeline.errors import DataError, Reason, ShardError
from pipeline.samples.film_bytes import FILM_EXTENSIONS
from pipeline.samples.schema import MAX_IMAGES, MAX_SAMPLE_BYTES
from pipeline.shards.tar import TarMember

MAX_MEMBERS = MAX_IMAGES + 2
"""Most files of a sample: its images, a text and a JSON."""
KeyRule = Literal["first_dot", "extension"]
"""Where a key ends: at the first dot of the basename, or before the longest ending that is a known extension."""
_IMAGE = r"(?:\d{1,18}\.)?(?:jpg|jpeg|jpe|jfif|png|webp|bmp|tif|tiff|avif|gif|heic)"
"""Endings of images; which format one has is told from its content."""
_FILM = rf"(?:\d{{1,18}}\.)?(?:{'|'.join(FILM_EXTENSIONS)})"
_EXTENSION = re.compile(rf"{_IMAGE}|{_FILM}|txt|json|jsonl")
_KEY_BEFORE_EXTENSION = re.compile(rf"(.*?[^/])\.({_EXTENSION.pattern})", re.IGNORECASE | re.DOTALL)
_SAME_AS = {"jsonl": "json"}
_APPLE_DOUBLE = b"\x00\x05\x16\x07"
_OF_MACOS = frozenset((".DS_Store", "Icon\r"))
_OF_WINDOWS = frozenset(("thumbs.db", "desktop.ini"))
_META = re.compile(r"(?:\./)?__[^/]*__(?:/|$)")
"""What the `webdataset` library passes over, and where macOS puts its metadata into zip files."""


@dataclass
class MemberGroup:
    """Adjacent members that share a key."""

    key: str
    members: list[tuple[str, TarMember]] = field(default_factory=list)
    """(case-folded extension, member), in archive order; at most `MAX_MEMBERS`, without data once there is an error."""
    error: DataError | None = None
    """The first defect of the group; members are listed all the same."""
    num_members: int = 0
    """All members with this key, also those beyond the ones listed."""
    size_bytes: int = 0
    """Content of all members."""
    extensions: set[str] = field(default_factory=set)
    """Of the members listed."""

    @property
    def is_overfull(self) -> bool:
        """Whether so many members share the key that they must be several samples."""
        return self.num_members > MAX_MEMBERS


def split_name(name: str, rule: KeyRule = "first_dot") -> tuple[str, str]:
    """Split a member name into key and case-folded extension; either may be empty.

    >>> split_name("a/b/000012.0.PNG")
    ('a/b/000012', '0.png')
    >>> split_name("a/photo.v2.0.png", "extension")
    ('a/photo.v2', '0.png')
    """
    if rule == "extension" and (match := _KEY_BEFORE_EXTENSION.fullmatch(name)):
        return match[1], _same(match[2])
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return folder + slash + stem, _same(extension)


def _same(extension: str) -> str:
    folded = extension.casefold()
    return _SAME_AS.get(folded, folded)


def group_members(
    members: Iterable[TarMember], rule: KeyRule = "first_dot", passed_over: Counter[str] | None = None
) -> Iterator[MemberGroup]:
    """Yield one group per run of members with the same key.

    A group is known to be complete when the next one begins or the archive ends properly. When `members` raises, the
    last group is yielded with that error, and the error is raised after it.

    Args:
        members: of one archive, in order.
        rule: where a key ends.
        passed_over: counts the members that belong to no sample, by what they are.

    Raises:
        ShardError: raised by `members`.
    """
    passed_over = Counter() if passed_over is None else passed_over
    group: MemberGroup | None = None
    try:
        for member in members:
            if what := _no_part_of_a_sample(member):
                passed_over[what] += 1
                continue
            key, extension = split_name(member.name, rule)
            if group is None or group.key != key:
                if group is not None:
                    yield _finished(group)
                group = MemberGroup(key)
            _add(group, extension, member)
    except ShardError as error:
        if group is not None:
            group.error = group.error or DataError(error.reason, "the shard ends within or right after this sample")
            yield _finished(group)
        raise
    if group is not None:
        yield _finished(group)


def _no_part_of_a_sample(member: TarMember) -> str:
    """Return what a member is that belongs to no sample; empty for any other."""
    if member.is_directory:
        return "folder entries"
    folder, _, base = member.name.rpartition("/")
    is_apple_double = (member.data or b"").startswith(_APPLE_DOUBLE)
    if base in _OF_MACOS or (is_apple_double and (base.startswith("._") or folder.endswith(".AppleDouble"))):
        return "metadata of macOS"
    if base.casefold() in _OF_WINDOWS:
        return "metadata of Windows"
    if _META.match(member.name):
        return "metadata of macOS" if "__MACOSX/" in member.name else "files under names like __meta__"
    return ""


def _add(group: MemberGroup, extension: str, member: TarMember) -> None:
    """Take a member in; from its first defect on, a group holds no data."""
    group.num_members += 1
    group.size_bytes += member.size
    if group.error is None:
        group.error = _find_defect(group, extension, member)
        if group.error is not None:
            group.members = [(known, one._replace(data=None)) for known, one in group.members]
    if len(group.members) < MAX_MEMBERS:
        group.members.append((extension, member if group.error is None else member._replace(data=None)))
        group.extensions.add(extension)


def _find_defect(group: MemberGroup, extension: str, member: TarMember) -> DataError | None:
    """Return what is wrong with the newest member of a group that had no defect so far."""
    if not member.is_regular:
        return DataError(Reason.MEMBER_TYPE_FORBIDDEN, "a link or device")
    if not _EXTENSION.fullmatch(extension):
        found = f"extension {extension[:40]!a}" if extension else "a name without extension"
        return DataError(Reason.UNKNOWN_MEMBER, found)
    if extension in group.extensions:
        return DataError(Reason.DUPLICATE_MEMBER, f"two files {extension}")
    if member.data is None:
        return DataError(Reason.MEMBER_TOO_LARGE, f"{extension} has {member.size} bytes")
    if group.num_members > MAX_MEMBERS:
        return DataError(Reason.SAMPLE_TOO_LARGE, f"more than {MAX_MEMBERS} files")
    if group.size_bytes > MAX_SAMPLE_BYTES:
        return DataError(Reason.SAMPLE_TOO_LARGE, f"more than {MAX_SAMPLE_BYTES} bytes")
    return None


def _finished(group: MemberGroup) -> MemberGroup:
    """Add the number of files to the error of an overfull group."""
    if group.is_overfull and group.error is not None:
        group.error = DataError(group.error.reason, f"{group.error.what}; {group.num_members} files share this key")
    return group
