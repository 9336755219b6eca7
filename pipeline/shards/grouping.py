"""From archive members to samples: which files belong together, and under which key.

The WebDataset rule: the key is the name up to the first dot of the basename, folder included; what follows is the
extension. Members of a sample are adjacent. What the files mean is left to `pipeline.samples.schema`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from pipeline.errors import DataError, Reason, ShardError
from pipeline.shards.tar import TarMember

_EXTENSION = re.compile(r"(?:\d+\.)?(?:jpg|jpeg|png|webp)|txt|json")


@dataclass
class MemberGroup:
    """Adjacent members that share a key."""

    key: str
    members: list[tuple[str, TarMember]] = field(default_factory=list)
    """(case-folded extension, member), in archive order."""
    error: DataError | None = None
    """The first defect of the group; members are listed all the same."""


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
                    yield group
                group = MemberGroup(key)
            _add(group, extension, member)
    except ShardError as error:
        if group is not None:
            group.error = group.error or DataError(error.reason, "the shard ends within or right after this sample")
            yield group
        raise
    if group is not None:
        yield group


def _add(group: MemberGroup, extension: str, member: TarMember) -> None:
    known = {present for present, _ in group.members}
    group.members.append((extension, member))
    if group.error is not None:
        return
    if not member.is_regular:
        group.error = DataError(Reason.MEMBER_TYPE_FORBIDDEN, "a link, directory or device")
    elif not _EXTENSION.fullmatch(extension):
        found = f"extension {extension[:40]!a}" if extension else "a name without extension"
        group.error = DataError(Reason.UNKNOWN_MEMBER, found)
    elif extension in known:
        group.error = DataError(Reason.DUPLICATE_MEMBER, f"two files {extension}")
    elif member.data is None:
        group.error = DataError(Reason.MEMBER_TOO_LARGE, f"{extension} has {member.size} bytes")
