"""Keys and groups, by the WebDataset rule."""

from __future__ import annotations

import io
from collections import Counter

import pytest

from pipeline.errors import Reason, ShardError
from pipeline.index import grouping
from pipeline.index.grouping import MAX_MEMBERS, MemberGroup, group_members, split_name
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
        (f"a.{'1' * 19}.jpg", Reason.UNKNOWN_MEMBER),
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
    assert seen[1].error.what == "the shard ends within or right after this sample"


def test_group_members_with_a_defect_holds_no_data() -> None:
    (group,) = groups_of(tar_bytes([(name, b"x") for name in ("a.png", "a.v2.png", "a.txt")]))
    assert [(extension, member.size, member.data) for extension, member in group.members] == [
        ("png", 1, None),
        ("v2.png", 1, None),
        ("txt", 1, None),
    ]


@pytest.mark.parametrize(("suffix", "reason"), [("jpg", Reason.SAMPLE_TOO_LARGE), ("v2.jpg", Reason.UNKNOWN_MEMBER)])
def test_group_members_counts_all_files_of_a_key_but_lists_no_more_than_a_sample_has(
    suffix: str, reason: Reason
) -> None:
    names = [f"film.{idx}.{suffix}" for idx in range(MAX_MEMBERS + 7)]
    first, second = groups_of(b"".join(entry(name) for name in [*names, "b.txt"]) + END)
    assert (first.num_members, len(first.members), first.is_overfull) == (MAX_MEMBERS + 7, MAX_MEMBERS, True)
    assert first.error is not None
    assert first.error.reason == reason
    assert first.error.what.endswith(f"{MAX_MEMBERS + 7} files share this key")
    assert (second.key, second.error, second.is_overfull) == ("b", None, False)


def test_group_members_of_more_bytes_than_a_sample_may_have_rejects_that_sample_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(grouping, "MAX_SAMPLE_BYTES", 7)
    first, second = groups_of(tar_bytes([("a.png", b"x" * 5), ("a.txt", b"y" * 3), ("b.png", b"x" * 7)]))
    assert first.error is not None
    assert first.error.reason == Reason.SAMPLE_TOO_LARGE
    assert second.error is None


APPLE_DOUBLE = b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        " + bytes(97)


def test_group_members_passes_over_what_belongs_to_no_sample_and_counts_it() -> None:
    names = [("._a.jpg", APPLE_DOUBLE), ("a.jpg", b"x"), (".DS_Store", b"\0\0\0\1Bud1"), ("._a.txt", APPLE_DOUBLE)]
    names += [("a.txt", b"x"), ("__MACOSX/._b.jpg", APPLE_DOUBLE), ("__meta__/b.json", b"{}")]
    names += [(".AppleDouble/a.jpg", APPLE_DOUBLE), ("Thumbs.db", b"x"), ("Icon\r", b"")]
    data = entry("./", kind=b"5") + tar_bytes(names)
    passed_over: Counter[str] = Counter()
    (group,) = group_members(scan_tar(io.BytesIO(data), len(data)), "first_dot", passed_over)
    assert (group.key, [extension for extension, _ in group.members], group.error) == ("a", ["jpg", "txt"], None)
    assert passed_over == {
        "folder entries": 1,
        "metadata of macOS": 6,
        "metadata of Windows": 1,
        "files under names like __meta__": 1,
    }


def test_group_members_under_a_name_of_macos_that_holds_something_else_is_refused() -> None:
    (group,) = groups_of(tar_bytes([("._a.jpg", b"\xff\xd8\xff")]))
    assert group.error is not None
    assert group.error.reason == Reason.UNKNOWN_MEMBER


def test_group_members_reads_endings_of_other_writers() -> None:
    names = ["a.JPEG", "a.jsonl", "b.0.tif", "b.1.BMP", "b.2.avif", "b.json", "c.jfif", "c.txt"]
    groups = groups_of(tar_bytes([(name, b"x") for name in names]))
    found = [(group.key, [extension for extension, _ in group.members], group.error) for group in groups]
    assert found == [
        ("a", ["jpeg", "json"], None),
        ("b", ["0.tif", "1.bmp", "2.avif", "json"], None),
        ("c", ["jfif", "txt"], None),
    ]


def test_split_name_by_extension_keeps_dots_in_keys() -> None:
    names = ["f.v2/photo.v2.jpg", "f.v2/photo.v2.0.PNG", "3.14.txt", ".jpg", "a.b.npy", "a.jsonl"]
    assert [split_name(name, "extension") for name in names] == [
        ("f.v2/photo.v2", "jpg"),
        ("f.v2/photo.v2", "0.png"),
        ("3.14", "txt"),
        ("", "jpg"),
        ("a", "b.npy"),
        ("a", "json"),
    ]


def test_group_members_of_as_many_files_as_a_sample_has_is_not_overfull() -> None:
    names = [f"film.{idx}.jpg" for idx in range(MAX_MEMBERS)]
    (group,) = groups_of(b"".join(entry(name, size=1, data=b"x") for name in names) + END)
    assert (group.num_members, len(group.members), group.is_overfull, group.error) == (
        MAX_MEMBERS,
        MAX_MEMBERS,
        False,
        None,
    )
