"""From archive members to samples: which files belong together, and under which key.

The WebDataset rule: the key is the name up to the first dot of the basename, folder included; what follows is the
extension. Members of a sample are adjacent. What the files mean is left to `pipeline.samples.schema`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from pipeline.errors import DataError, Reason, ShardError
from pipeline.samples.schema import MAX_IMAGES, MAX_SAMPLE_BYTES
from pipeline.shards.tar import TarMember

MAX_MEMBERS = MAX_IMAGES + 2
"""Most files of a sample: its images, a text and a JSON."""
_EXTENSION = re.compile(r"(?:\d{1,18}\.)?(?:jpg|jpeg|png|webp)|txt|json")


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


def split_name(name: str) -> tuple[str, str]:
    """Split a member name into key and case-folded extension; either may be empty.

    >>> split_name("a/b/000012.0.PNG")
    ('a/b/000012', '0.png')
    """
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return folder + slash + stem, extension.casefold()


def group_members(members: Iterable[TarMember]) -> Iterator[MemberGroup]:
    """Yield one group per run of members with the same key.

    A group is known to be complete when the next one begins or the archive ends properly. When `members` raises, the
    last group is yielded with that error, and the error is raised after it.

    Raises:
        ShardError: whatever `members` raises.
    """
    group: MemberGroup | None = None
    try:
        for member in members:
            key, extension = split_name(member.name)
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
        return DataError(Reason.MEMBER_TYPE_FORBIDDEN, "a link, directory or device")
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
    """Let the error of an overfull group say how many files it stands for."""
    if group.is_overfull and group.error is not None:
        group.error = DataError(group.error.reason, f"{group.error.what}; {group.num_members} files share this key")
    return group
