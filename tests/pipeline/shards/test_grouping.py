"""Keys and groups, by the WebDataset rule."""

from __future__ import annotations

import io

import pytest

from pipeline.errors import Reason, ShardError
from pipeline.shards.grouping import MemberGroup, group_members, split_name
from pipeline.shards.tar import scan_tar
from tests.pipeline.shards.archives import END, entry, tar_bytes


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("000012.jpg", ("000012", "jpg")),
        ("000012.0.PNG", ("000012", "0.png")),
        ("a.b/c/000012.0.jpg", ("a.b/c/000012", "0.jpg")),
        ("./x.txt", ("./x", "txt")),
        ("v1.5.jpg", ("v1", "5.jpg")),
        ("photo.final.jpg", ("photo", "final.jpg")),
        ("../../etc/passwd", ("../../etc/passwd", "")),
        (".hidden", ("", "hidden")),
        ("folder/", ("folder/", "")),
        ("", ("", "")),
    ],
)
def test_split_name_cuts_at_the_first_dot_of_the_basename(name: str, expected: tuple[str, str]) -> None:
    assert split_name(name) == expected


def groups_of(data: bytes) -> list[MemberGroup]:
    return list(group_members(scan_tar(io.BytesIO(data), len(data))))


def test_group_members_joins_adjacent_members_in_order() -> None:
    names = ["b.1.jpg", "b.0.JPEG", "b.json", "a.webp", "a.txt", "x/a.png", "x/a.txt"]
    groups = groups_of(tar_bytes([(name, b"x") for name in names]))
    found = [(group.key, [extension for extension, _ in group.members]) for group in groups]
    assert found == [("b", ["1.jpg", "0.jpeg", "json"]), ("a", ["webp", "txt"]), ("x/a", ["png", "txt"])]
    assert [group.error for group in groups] == [None, None, None]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("a.npy", Reason.UNKNOWN_MEMBER),
        ("a.pyd", Reason.UNKNOWN_MEMBER),
        ("a.jpg.gz", Reason.UNKNOWN_MEMBER),
        ("a.b.jpg", Reason.UNKNOWN_MEMBER),
        ("a.0.txt", Reason.UNKNOWN_MEMBER),
        ("a.json\u2028", Reason.UNKNOWN_MEMBER),
        ("a", Reason.UNKNOWN_MEMBER),
        ("a.TXT", Reason.DUPLICATE_MEMBER),
    ],
)
def test_group_members_with_bad_member_rejects_that_sample_only(name: str, reason: Reason) -> None:
    data = tar_bytes([("a.png", b"x"), ("a.txt", b"x"), (name, b"x"), ("c.png", b"x"), ("c.txt", b"x")])
    first, second = groups_of(data)
    assert first.error is not None
    assert first.error.reason == reason
    assert (second.key, second.error) == ("c", None)


def test_group_members_with_link_rejects_the_sample_and_never_follows() -> None:
    (group,) = groups_of(entry("a.txt", size=1, data=b"x") + entry("a.jpg", kind=b"2") + END)
    assert group.error is not None
    assert group.error.reason == Reason.MEMBER_TYPE_FORBIDDEN


def test_group_members_of_cut_shard_marks_the_last_group_then_raises() -> None:
    data = tar_bytes([(name, b"x") for name in ("a.png", "a.txt", "b.png", "b.txt")])[: 8 * 512]
    seen: list[MemberGroup] = []
    with pytest.raises(ShardError) as caught:
        seen.extend(group_members(scan_tar(io.BytesIO(data), len(data))))
    assert caught.value.reason == Reason.SHARD_TRUNCATED
    assert [(group.key, len(group.members)) for group in seen] == [("a", 2), ("b", 2)]
    assert seen[0].error is None
    assert seen[1].error is not None
    assert seen[1].error.reason == Reason.SHARD_TRUNCATED
