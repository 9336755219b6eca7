"""Which files a source is, and in which format: folders, splits, patterns, what is named twice."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import pytest

from pipeline.errors import DataError
from pipeline.tools.convert.formats import SourceOptions, look_for_source, open_source
from tests.pipeline.samples.pictures import picture
from tests.pipeline.tools.convert.datasets import (
    llava_records,
    turns,
    write_downloads,
    write_llava,
    write_parquet,
)
from tests.pipeline.tools.convert.reading import answers, converted, skipped


def test_other_compressed_file_is_to_be_unpacked_first(tmp_path: Path) -> None:
    for name, advice in (("a.parquet.gz", "compressed; gunzip it first"), ("a.tar.gz", "an archive; unpack it first")):
        (tmp_path / name).write_bytes(gzip.compress(b"x"))
        with pytest.raises(ValueError, match=f"{name}: {advice}"):
            open_source([str(tmp_path / name)])


def test_folder_with_several_splits_or_formats_is_refused(tmp_path: Path) -> None:
    row = [{"image": {"bytes": picture(5, 7), "path": None}, "text": "a"}]
    for split in ("train", "test"):
        write_parquet(tmp_path / "d" / f"{split}-00000-of-00001.parquet", row)
    with pytest.raises(ValueError, match=r"several parts .test, train."):
        open_source([str(tmp_path / "d")])
    assert len(open_source([str(tmp_path / "d" / "test-*.parquet")]).units()) == 1
    (tmp_path / "a.jsonl").write_text("{}")
    both = open_source([str(tmp_path / "a.jsonl"), str(tmp_path / "d" / "test-00000-of-00001.parquet")])
    assert (both.kind, len(both.units())) == ("mixed", 2)
    (tmp_path / "a.doc").write_text("x")
    for path, message in ((tmp_path / "a.doc", "cannot tell"), (tmp_path / "none", "no such file")):
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


def test_folder_is_looked_through_and_every_file_accounted_for(tmp_path: Path) -> None:
    folder = tmp_path / "all"
    write_downloads(folder / "laion" / "part0", 2, 3)
    write_downloads(folder / "laion" / "part1", 1, 3)
    records = llava_records(folder, 2)
    write_llava(folder, records)
    (folder / "more.jsonl").write_text(json.dumps({"conversations": turns("Why?")}) + "\n")
    row = {"image": {"bytes": picture(5, 7), "path": None}, "text": "a"}
    write_parquet(folder / "hub" / "a-00000-of-00003.parquet", [row])
    (folder / "hub" / "a-00002-of-00003.PARQUET").write_bytes(
        (folder / "hub" / "a-00000-of-00003.parquet").read_bytes()
    )
    (folder / "latest.tar").symlink_to("laion/part0/00000.tar")
    (folder / "same.jpg").symlink_to("images/coco/000.jpg")
    for name in ("old.tar.gz", "README.md", ".hidden.tar", "dataset_info.json"):
        (folder / name).write_text("{}")
    opened = look_for_source([str(folder)])
    assert [str(Path(unit).relative_to(folder)) for unit in opened.source.units()] == [
        "laion/part0/00000.tar",
        "laion/part0/00001.tar",
        "laion/part1/00000.tar",
        "hub/a-00000-of-00003.parquet",
        "hub/a-00002-of-00003.PARQUET",
        "annotations.json",
        "more.jsonl",
    ]
    notes = "\n".join(opened.notes)
    assert "counted once: latest.tar is another name of laion/part0/00000.tar" in notes
    assert "lists of downloads: 3 tables (laion/part0/00000.parquet" in notes
    assert "passed over: old.tar.gz, a compressed archive" in notes
    assert "passed over: 1 files with .md (README.md)" in notes
    assert "pictures as files: 3, for annotations to name" in notes
    assert notes.count("piece 1 of 3 not there") == 1 or notes.count("pieces 1, 2 of 3") == 1


def test_folder_of_pictures_with_texts_is_read(tmp_path: Path) -> None:
    for number, folder in enumerate(("00000", "00001")):
        (tmp_path / folder).mkdir()
        for idx in range(2):
            (tmp_path / folder / f"{idx}.jpg").write_bytes(picture(5 + idx, 7, "JPEG"))
            (tmp_path / folder / f"{idx}.txt").write_text(f"text {number} {idx}")
            (tmp_path / folder / f"{idx}.json").write_text(
                json.dumps({"url": f"http://host/{idx}.jpg", "caption": "x"})
            )
        write_parquet(
            tmp_path / f"{folder}.parquet", [{"status": "success"}, {"status": "success"}, {"status": "failed"}]
        )
        (tmp_path / f"{folder}_stats.json").write_text("{}")
    (tmp_path / "00001" / "2.jpg").write_bytes(picture(5, 7, "JPEG"))
    result, samples = converted(tmp_path, tmp_path)
    assert answers(samples) == ["text 0 0", "text 0 1", "text 1 0", "text 1 1"]
    assert skipped(result) == [(2, "missing_image"), (2, "missing_annotation"), (3, "missing_image")]


def test_formats_are_converted_in_one_run(tmp_path: Path) -> None:
    folder = tmp_path / "all"
    write_downloads(folder / "tars", 1, 3)
    write_llava(folder, llava_records(folder, 2))
    write_parquet(folder / "a.parquet", [{"image": {"bytes": picture(5, 7), "path": None}, "text": "a"}])
    result, samples = converted(tmp_path, folder, options=SourceOptions(str(folder / "images")))
    assert answers(samples) == ["caption of 000000000", "caption of 000000001", "a", "Answer 0.", "Answer 1."]
    assert (result.account.media_found, result.account.media_written) == (5, 5)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ({"data": [{"image": "1.jpg", "conversations": []}]}, "`data`"),
        ({"image": "1.jpg", "conversations": []}, "`image`, `conversations`"),
    ],
)
def test_one_object_is_refused_with_its_fields_and_what_was_expected(
    tmp_path: Path, content: dict[str, object], found: str
) -> None:
    (tmp_path / "a.json").write_text(json.dumps(content, indent=1))
    message = f"one object with {found} at the top; expected an array of annotations, one per line, or COCO captions"
    with pytest.raises(DataError, match=message):
        open_source([str(tmp_path / "a.json")]).list_unit(str(tmp_path / "a.json"))


def test_shards_of_mosaicml_streaming_are_refused_by_name(tmp_path: Path) -> None:
    raw = {"basename": "shard.00000.mds", "bytes": 20, "hashes": {}}
    shard = {"column_encodings": ["jpeg", "str"], "column_names": ["image", "text"], "column_sizes": [None, None],
             "compression": None, "format": "mds", "hashes": [], "raw_data": raw, "samples": 1, "size_limit": 67108864,
             "version": 2, "zip_data": None}  # fmt: skip
    (tmp_path / "index.json").write_text(json.dumps({"shards": [shard], "version": 2}))
    (tmp_path / "shard.00000.mds").write_bytes(bytes(20))
    with pytest.raises(ValueError, match=r"MDS shards of mosaicml-streaming.*write them as Parquet or WebDataset"):
        open_source([str(tmp_path)])
