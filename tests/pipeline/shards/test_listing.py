"""Which shards folders, globs and ranges name, on disk and on remote storage."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pyarrow import fs

from pipeline.shards import listing
from pipeline.shards.listing import describe_passed_over, expand_shards


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).write_bytes(name.encode())


def test_expand_shards_of_folder_lists_tar_files_sorted(tmp_path: Path) -> None:
    touch(tmp_path, "b.tar", "a.tar", "c.tar.gz", "readme.md")
    assert expand_shards([str(tmp_path)]) == [str(tmp_path / "a.tar"), str(tmp_path / "b.tar")]


def test_expand_shards_of_range_and_glob_keeps_pattern_order(tmp_path: Path) -> None:
    touch(tmp_path, *(f"t-{idx:03d}.tar" for idx in range(12)))
    found = expand_shards([f"{tmp_path}/t-{{009..011}}.tar", f"{tmp_path}/t-00[0-1].tar"])
    assert [os.path.basename(url) for url in found] == [f"t-{idx}.tar" for idx in ("009", "010", "011", "000", "001")]


def test_expand_shards_of_nested_braces_is_a_product() -> None:
    found = expand_shards(["/x/{a,b}-{8..10}.tar"])
    assert found == [f"/x/{letter}-{number}.tar" for letter in "ab" for number in (8, 9, 10)]


def test_expand_shards_of_folder_with_glob_characters_is_taken_literally(tmp_path: Path) -> None:
    folder = tmp_path / "run[1]"
    folder.mkdir()
    touch(folder, "a.tar")
    assert expand_shards([str(folder)]) == [str(folder / "a.tar")]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("{missing}", "no \\*.tar in folder"),
        ("{missing}/*.tar", "no files that match"),
        ("/x/{{5..2}}.tar", "expected a range"),
        ("/x/{{0..99999999}}.tar", "more than"),
    ],
)
def test_expand_shards_that_finds_nothing_names_the_place(tmp_path: Path, pattern: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        expand_shards([pattern.format(missing=tmp_path)])


def test_expand_shards_of_no_patterns_or_repeated_shard_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "a.tar")
    with pytest.raises(ValueError, match="no shards given"):
        expand_shards([])
    with pytest.raises(ValueError, match="named twice"):
        expand_shards([str(tmp_path), str(tmp_path / "a.tar")])


def test_expand_shards_of_remote_folder_lists_and_filters(monkeypatch: pytest.MonkeyPatch) -> None:
    class Listing:
        def get_file_info(self, selector: fs.FileSelector) -> list[fs.FileInfo]:
            assert selector.base_dir == "bucket/data"
            names = ("t-1.tar", "t-0.tar", "notes.txt")
            return [fs.FileInfo(f"bucket/data/{name}", fs.FileType.File) for name in names]

    monkeypatch.setattr(listing, "locate", lambda url: (Listing(), url.removeprefix("s3://").partition("?")[0]))
    both = ["s3://bucket/data/t-0.tar", "s3://bucket/data/t-1.tar"]
    assert expand_shards(["s3://bucket/data"]) == both
    assert expand_shards(["s3://bucket/data/t-*.tar"]) == both
    assert expand_shards(["s3://bucket/data/t-{0..1}.tar"]) == both
    with pytest.raises(ValueError, match="no "):
        expand_shards(["s3://bucket/data/v-*.tar"])


def test_expand_shards_of_folder_takes_endings_in_capitals_and_each_file_once(tmp_path: Path) -> None:
    touch(tmp_path, "b.tar", "A.TAR", "._b.tar")
    (tmp_path / "a-latest.tar").symlink_to("b.tar")
    (tmp_path / "gone.tar").symlink_to("nowhere.tar")
    (tmp_path / "c-hard.tar").hardlink_to(tmp_path / "b.tar")
    expected = [str(tmp_path / "A.TAR"), str(tmp_path / "b.tar")]
    assert expand_shards([str(tmp_path)]) == expected
    assert expand_shards([f"{tmp_path}/[ab]*.tar", str(tmp_path / "A.TAR")]) == expected[::-1]
    with pytest.raises(ValueError, match="named twice"):
        expand_shards([str(tmp_path / "b.tar"), str(tmp_path / "a-latest.tar")])


def test_describe_passed_over_names_what_of_a_folder_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "empty").mkdir()
    touch(tmp_path, "a-00000-of-00003.tar", "a-00002-of-00003.tar", "b.tar.gz", "c.TGZ", "notes.txt")
    touch(tmp_path / "sub", "c.tar", "d.tar")
    (tmp_path / "latest.tar").symlink_to("a-00000-of-00003.tar")
    found = describe_passed_over([str(tmp_path)])
    assert [sentence.removeprefix(str(tmp_path)) for sentence in found] == [
        "/b.tar.gz: a compressed archive is not read; unpack it to a .tar first",
        "/c.TGZ: a compressed archive is not read; unpack it to a .tar first",
        f"/latest.tar: another name of {tmp_path}/a-00000-of-00003.tar, which is read once",
        "/sub: 2 tar files in a folder of its own are not read; pass that folder too",
        "/a-N-of-3.tar: piece 1 of 3 not there",
    ]
