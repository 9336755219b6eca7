"""Which files a source is, and in which format: folders, splits, patterns, what is named twice."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import pytest

from pipeline.tools.convert.formats import open_source
from tests.pipeline.samples.pictures import picture
from tests.pipeline.tools.convert.datasets import (
    write_downloads,
    write_parquet,
)


def test_other_compressed_file_is_to_be_unpacked_first(tmp_path: Path) -> None:
    for name in ("a.parquet.gz", "a.tar.gz"):
        (tmp_path / name).write_bytes(gzip.compress(b"x"))
        with pytest.raises(ValueError, match=rf"{name}: compressed; gunzip it first"):
            open_source([str(tmp_path / name)])


def test_folder_with_several_splits_or_formats_is_refused(tmp_path: Path) -> None:
    row = [{"image": {"bytes": picture(5, 7), "path": None}, "text": "a"}]
    for split in ("train", "test"):
        write_parquet(tmp_path / "d" / f"{split}-00000-of-00001.parquet", row)
    with pytest.raises(ValueError, match=r"several parts .test, train."):
        open_source([str(tmp_path / "d")])
    assert len(open_source([str(tmp_path / "d" / "test-*.parquet")]).units()) == 1
    (tmp_path / "a.jsonl").write_text("{}")
    with pytest.raises(ValueError, match="several formats"):
        open_source([str(tmp_path / "a.jsonl"), str(tmp_path / "d" / "test-00000-of-00001.parquet")])
    (tmp_path / "a.csv").write_text("x")
    for path, message in ((tmp_path / "a.csv", "cannot tell"), (tmp_path / "none", "no such file")):
        with pytest.raises(ValueError, match=message):
            open_source([str(path)])


@pytest.mark.parametrize(
    ("names", "parts"),
    [
        (("train.parquet", "test.parquet", "validation.parquet"), "test, train, validation"),
        (("foo-train.arrow", "foo-test.arrow"), "test, train"),
        (("my_train_sft.parquet", "my_val2014.parquet"), "train, val"),
        (("my-train-00000-of-00001.parquet", "my-dev-00000-of-00001.parquet"), "my-dev, my-train"),
        (("a.parquet", "eval.parquet"), "eval, no split"),
        (("train/0.parquet", "test/0.parquet"), "test/no split, train/no split"),
        (("cc-train-000000.tar", "cc-valid-000000.tar"), "train, valid"),
    ],
)
def test_folder_with_several_splits_names_them_and_how_to_give_one(
    tmp_path: Path, names: tuple[str, ...], parts: str
) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=re.escape(f"several parts ({parts}): pass one, as the paths")):
        open_source([str(tmp_path)])
    assert open_source([str(tmp_path / names[0])]).units() == [str(tmp_path / names[0])]


def test_folder_of_one_split_is_read_without_caches(tmp_path: Path) -> None:
    names = ["cache-0123456789abcdef.arrow", "constrained.parquet", "latest.parquet", "evaluator.parquet"]
    for name in names:
        (tmp_path / name).touch()
    assert [Path(unit).name for unit in open_source([str(tmp_path)]).units()] == sorted(names[1:])


def test_file_that_is_named_twice_is_refused(tmp_path: Path) -> None:
    folder = write_downloads(tmp_path / "laion", 2, 3)
    (tmp_path / "a.jsonl").write_text("{}")
    (tmp_path / "link.jsonl").symlink_to("a.jsonl")
    first = str(folder / "00000.tar")
    for paths, kind in (
        ([first, first], "auto"),
        ([str(folder), first], "auto"),
        ([str(folder), str(folder)], "auto"),
        ([first, str(folder / "*.tar")], "img2dataset"),
        ([str(tmp_path / "a.jsonl"), str(tmp_path / "link.jsonl")], "auto"),
        ([str(tmp_path / "*.jsonl")], "auto"),
    ):
        with pytest.raises(ValueError, match=r"(00000\.tar|link\.jsonl) is named twice, the first time as "):
            open_source(paths, kind)


@pytest.mark.parametrize("kind", ["img2dataset"])
def test_folder_whose_links_lead_to_one_file_counts_it_once(tmp_path: Path, kind: str) -> None:
    (tmp_path / "blob").write_bytes(b"x")
    (tmp_path / "snapshot").mkdir()
    for name in ("a.tar", "b.tar"):
        (tmp_path / "snapshot" / name).symlink_to(tmp_path / "blob")
    assert len(open_source([str(tmp_path / "snapshot")], kind).units()) == 1


def test_ranges_and_choices_in_braces_are_expanded(tmp_path: Path) -> None:
    folder = write_downloads(tmp_path / "laion", 3, 3)
    named = open_source([f"{folder}/{{00001..00002}}.tar"])
    assert (named.kind, [Path(unit).name for unit in named.units()]) == ("img2dataset", ["00001.tar", "00002.tar"])
    for name in ("b.jsonl", "a.jsonl", "{c,d}.jsonl"):
        (tmp_path / name).write_text("{}")
    assert open_source([f"{tmp_path}/{{b,a}}.jsonl"]).units() == [f"{tmp_path}/{name}.jsonl" for name in "ba"]
    assert open_source([f"{tmp_path}/{{c,d}}.js*"]).units() == [f"{tmp_path}/{{c,d}}.jsonl"]
    with pytest.raises(ValueError, match=r"00003\.tar: no such file or folder"):
        open_source([f"{folder}/{{00002..00003}}.tar"])


def test_url_of_another_format_is_refused() -> None:
    for url in (
        "file:///data/x.parquet",
        "s3://bucket/x.jsonl.gz",
        "s3://bucket/X.JSON",
        "s3://bucket/x.arrow?region=eu",
        "gs://bucket/x.jsonl",
    ):
        with pytest.raises(ValueError, match="only tar shards are read; copy the files"):
            open_source([url])
    with pytest.raises(ValueError, match="--format parquet: with URLs only tar shards"):
        open_source(["s3://bucket/x"], "parquet")
