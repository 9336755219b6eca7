"""What has changed since an index was built, shard by shard."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pipeline.index.build import build_index
from pipeline.index.freshness import describe_changes
from tests.pipeline.shards.archives import caption_files, write_tar


def test_describe_changes_names_every_shard_that_differs(tmp_path: Path) -> None:
    shards = [write_tar(tmp_path / f"{idx}.tar", caption_files(f"k{idx}")) for idx in range(4)]
    index = build_index(shards[:3], tmp_path / "index")
    assert describe_changes(index, shards[:3]) == []
    assert describe_changes(index, [shards[1], shards[0], shards[2]]) == ["the same shards in another order"]
    (tmp_path / "1.tar").unlink()
    write_tar(tmp_path / "2.tar", [*caption_files("k2"), *caption_files("more" * 20, "x" * 9000)])
    assert describe_changes(index, shards[1:]) == [
        f"{shards[3]}: new",
        f"{shards[0]}: no longer among the shards",
        f"{shards[1]}: missing",
        f"{shards[2]}: {(tmp_path / '2.tar').stat().st_size} bytes, 10240 when it was indexed",
    ]


class CountingList(list[str]):
    """Counts how often it is gone through."""

    passes = 0

    def __iter__(self) -> Iterator[str]:
        self.passes += 1
        return super().__iter__()


def test_describe_changes_goes_through_the_shards_as_often_for_many_as_for_few(tmp_path: Path) -> None:
    shards = [write_tar(tmp_path / f"{idx}.tar", caption_files(f"k{idx}")) for idx in range(13)]
    passes = []
    for number in (3, 13):
        urls = CountingList(shards[:number])
        assert describe_changes(build_index(urls, tmp_path / "index"), urls) == []
        passes.append(urls.passes)
    assert passes[0] == passes[1]
