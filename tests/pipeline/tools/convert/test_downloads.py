"""Output of img2dataset, and rewritten shards: samples, and a counted reason for everything else."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset

from tests.pipeline.samples.pictures import picture
from tests.pipeline.shards.archives import tar_bytes
from tests.pipeline.tools.convert.datasets import (
    turns,
    write_downloads,
)
from tests.pipeline.tools.convert.reading import answers, converted, skipped


def test_img2dataset_folder_reports_failed_downloads_and_a_cut_tar(tmp_path: Path) -> None:
    folder = write_downloads(tmp_path / "laion", 3, 5)
    cut = folder / "00002.tar"
    cut.write_bytes(cut.read_bytes()[: 2 * 3 * 1024 + 700])
    result, samples = converted(tmp_path, folder)
    assert (
        answers(samples)
        == [f"caption of {s:05d}{i:04d}" for s, n in ((0, 4), (1, 4), (2, 2)) for i in range(n)][: len(samples)]
    )
    # of the tar file that was cut, two samples that its table lists are gone
    assert result.reasons() == {"missing_image": 3 + 2, "shard_truncated": 2}
    assert result.num_entries == result.num_samples + 7


def test_img2dataset_sample_that_only_the_table_knows_is_reported(tmp_path: Path) -> None:
    folder = write_downloads(tmp_path / "laion", 1, 3)
    pq.write_table(pa.table({"status": ["success"] * 3 + ["failed_to_resize"]}), folder / "00000.parquet")
    result, samples = converted(tmp_path, folder)
    assert answers(samples) == ["caption of 000000000", "caption of 000000001"]
    assert [(entry.row, entry.detail) for entry in result.skipped] == [
        (2, "img2dataset reports 'failed_to_resize'"),
        (3, "img2dataset reports 'success', but the tar file holds fewer samples"),
    ]


def test_unreadable_table_beside_a_tar_is_named(tmp_path: Path) -> None:
    folder = write_downloads(tmp_path / "laion", 1, 3)
    (folder / "00000.parquet").write_bytes(b"garbage")
    with pytest.raises(ValueError, match=r"00000\.parquet: not readable"):
        converted(tmp_path, folder)


@pytest.mark.parametrize(
    ("field", "place"), [("image", "<image> and <image>"), ("images", "<image> and <image>"), ("video", "<video>")]
)
def test_shards_cut_anew_keep_the_image_order_of_their_annotations(tmp_path: Path, field: str, place: str) -> None:
    blue, red = picture(5, 7), picture(11, 13)
    annotation = {field: ["a/k1.1.png", "k1.0.png"], "conversations": turns(place)}
    files = [("k1.0.png", blue), ("k1.1.png", red), ("k1.json", json.dumps(annotation).encode())]
    (tmp_path / "a.tar").write_bytes(tar_bytes(files))
    result, (sample,) = converted(tmp_path, tmp_path / "a.tar")
    assert sample.images == (red, blue)
    # cut once more, the names before packing are still those of the start
    (tree,) = [item["json"] for item in webdataset.WebDataset(list(result.shards), shardshuffle=False)]
    found = json.loads(tree)
    assert (found["video" if field == "video" else "image"], found["source_images"]) == (
        ["0.png", "1.png"],
        ["a/k1.1.png", "k1.0.png"],
    )
    _, (again,) = converted(tmp_path / "again", Path(result.shards[0]))
    assert again.images == (red, blue)


def test_shard_cut_anew_whose_annotation_names_another_image_is_skipped(tmp_path: Path) -> None:
    annotation = {"image": ["k1.0.png", "k1.7.png"], "conversations": turns("<image> and <image>")}
    files = [("k1.0.png", picture(5, 7)), ("k1.1.png", picture(5, 7)), ("k1.json", json.dumps(annotation).encode())]
    (tmp_path / "a.tar").write_bytes(tar_bytes(files))
    result, _ = converted(tmp_path, tmp_path / "a.tar")
    assert skipped(result) == [(0, "missing_image")]


def test_parts_of_a_sample_that_lie_apart_are_brought_together(tmp_path: Path) -> None:
    annotations = [
        json.dumps({"conversations": turns("<image> <image>", f"Answer {idx}.")}).encode() for idx in range(3)
    ]
    files = [(f"{idx}.json", text) for idx, text in enumerate(annotations)]
    files += [(f"{idx}.{number}.png", picture(5 + idx, 7 + number)) for number in (1, 0) for idx in (2, 0, 1)]
    files += [("cap.txt", b"a ball"), ("cap2.png", picture(5, 7)), ("cap.png", picture(3, 4)), ("cap2.txt", b"a cube")]
    (tmp_path / "a.tar").write_bytes(tar_bytes(files))
    result, samples = converted(tmp_path, tmp_path / "a.tar")
    assert result.skipped == ()
    assert answers(samples) == ["Answer 0.", "Answer 1.", "Answer 2.", "a ball", "a cube"]
    assert samples[2].images == (picture(7, 7), picture(7, 8))
    assert samples[3].images == (picture(3, 4),)
    assert (result.account.media_found, result.account.marks, result.account.implied) == (8, 6, 2)


def test_parts_of_a_sample_that_cannot_be_told_apart_are_refused_as_one(tmp_path: Path) -> None:
    annotation = json.dumps({"conversations": turns("<image>")}).encode()
    files = [("a.json", annotation), ("a.0.png", picture(5, 7)), ("b.txt", b"x"), ("b.png", picture(5, 7))]
    (tmp_path / "a.tar").write_bytes(tar_bytes([*files, ("a.json", annotation), ("a.1.png", picture(5, 7))]))
    result, samples = converted(tmp_path, tmp_path / "a.tar")
    assert (answers(samples), skipped(result)) == (["x"], [(0, "members_not_contiguous")])
    cut = tar_bytes([("a.png", picture(5, 7)), ("b.txt", b"x"), ("a.txt", b"x"), ("b.png", picture(5, 7))])
    (tmp_path / "b.tar").write_bytes(cut[: 7 * 512])
    result, samples = converted(tmp_path / "b", tmp_path / "b.tar")
    assert (samples, {reason for _, reason in skipped(result)}) == ([], {"missing_image", "shard_truncated"})


@pytest.mark.parametrize(
    ("annotation", "expected"),
    [
        ({"caption": "A ball."}, "caption"),
        ({"question": "What?", "answer": "A ball."}, "instruction"),
        ({"messages": turns("What?"), "videos": ["a.mp4"]}, "media_unread"),
        ({"conversations": turns("<image>\n<video>")}, "media_unread"),
        ({"conversations": turns(), "depth": "depth.png"}, "media_unread"),
        ({"note": "nothing"}, "missing_annotation"),
    ],
)
def test_annotation_of_a_shard_is_accounted_for_as_any_row(
    tmp_path: Path, annotation: dict[str, object], expected: str
) -> None:
    files = [("k.jpg", picture(5, 7, "JPEG")), ("k.json", json.dumps(annotation).encode())]
    (tmp_path / "a.tar").write_bytes(tar_bytes(files))
    result, samples = converted(tmp_path, tmp_path / "a.tar")
    assert [*(sample.kind for sample in samples), *(reason for _, reason in skipped(result))] == [expected]
    assert result.account.media_found == 1 == result.account.media_written + result.account.media_refused
