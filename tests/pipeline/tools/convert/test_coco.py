"""COCO captions: samples, and a counted reason for everything else."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import DataError
from pipeline.tools.convert.formats import SourceOptions
from tests.pipeline.samples.pictures import picture
from tests.pipeline.tools.convert.datasets import (
    write_coco,
)
from tests.pipeline.tools.convert.reading import answers, converted, skipped


def test_compressed_coco_captions_are_read(tmp_path: Path) -> None:
    path = write_coco(tmp_path, 3)
    (tmp_path / "captions.json.gz").write_bytes(gzip.compress(path.read_bytes()))
    options = SourceOptions(str(tmp_path / "images"))
    assert answers(converted(tmp_path, tmp_path / "captions.json.gz", options=options)[1])[0] == "caption 0 of 101"


def test_coco_captions_are_one_sample_each(tmp_path: Path) -> None:
    path = write_coco(tmp_path, 5)
    result, samples = converted(tmp_path, path, options=SourceOptions(str(tmp_path / "images")))
    assert answers(samples) == [f"caption {turn} of {idx}" for turn in range(2) for idx in (101, 102, 103)]
    assert skipped(result) == [(0, "missing_image"), (4, "missing_image"), (8, "missing_annotation")]


def test_coco_with_first_caption_only_keeps_one_per_image(tmp_path: Path) -> None:
    path = write_coco(tmp_path, 5)
    _, samples = converted(tmp_path, path, options=SourceOptions(str(tmp_path / "images"), first_caption_only=True))
    assert answers(samples) == [f"caption 0 of {idx}" for idx in (101, 102, 103)]


def test_coco_with_first_caption_only_keeps_the_first_usable_one(tmp_path: Path) -> None:
    images = [{"id": idx, "file_name": f"{idx}.jpg"} for idx in range(4)]
    for one in images:
        (tmp_path / str(one["file_name"])).write_bytes(picture(13, 19, "JPEG"))
    captions: list[Any] = [
        (0, " "),
        (1, None),
        (2, "\ud800"),
        (0, "a"),
        (3, ""),
        (1, "b"),
        (2, "c"),
        (0, "d"),
        (3, "\0"),
    ]
    notes = [{"image_id": image_id, "caption": caption} for image_id, caption in captions]
    path = tmp_path / "coco.json"
    path.write_text(json.dumps({"images": images, "annotations": notes}))
    result, samples = converted(tmp_path, path, options=SourceOptions(first_caption_only=True))
    assert answers(samples) == ["a", "b", "c"]
    assert skipped(result) == [(1, "turn_empty")]


def test_coco_entries_of_wrong_types_are_skipped_one_by_one(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.jpg").write_bytes(picture(13, 19, "JPEG"))
    images: list[Any] = [
        {"id": 1, "file_name": "a.jpg"},
        {"id": "b", "file_name": "b.jpg"},
        {"id": 3, "file_name": "\ud800.jpg"},
        {"id": 4, "file_name": None},
        {"id": 5, "file_name": "a.jpg"},
        {"id": 5, "file_name": "b.jpg"},
        {"id": [6], "file_name": "a.jpg"},
    ]
    captions: list[Any] = [(1, None), (1, "good"), (1, ["x"]), ([1], "x"), ("b", "other"), (3, "x"), (4, "x"), (5, "x")]
    notes = [{"image_id": image_id, "caption": caption} for image_id, caption in captions]
    path = tmp_path / "coco.json"
    path.write_text(json.dumps({"images": images, "annotations": [*notes, "x"]}))
    result, samples = converted(tmp_path, path)
    assert answers(samples) == ["good", "other"]
    assert skipped(result) == [
        (0, "missing_annotation"),
        (2, "json_invalid"),
        (3, "json_invalid"),
        (5, "text_invalid_unicode"),
        (6, "json_invalid"),
        (7, "json_invalid"),
        (8, "json_invalid"),
        (9, "json_invalid"),
    ]
    (sample,) = converted(tmp_path / "first", path, options=SourceOptions(str(tmp_path), first_caption_only=True))[1][
        :1
    ]
    assert answers([sample]) == ["good"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"images": [', r"coco\.json: not JSON: .* at character 12"),
        (b'{"images": "\xff"}', r"coco\.json: byte 12 is not UTF-8"),
        (
            b'{"images": [], "annotations": {}}',
            r"coco\.json: one object with `images`, `annotations` at the top; expected an array",
        ),
        (b'{"images": ' + b"9" * 5000 + b"}", r"coco\.json: JSON that cannot be read"),
    ],
)
def test_broken_coco_file_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "coco.json").write_bytes(content)
    with pytest.raises(DataError, match=message):
        converted(tmp_path, tmp_path / "coco.json", kind="coco")


def test_other_json_object_is_refused_as_coco(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"images": []}')
    with pytest.raises(DataError, match="one object with `images` at the top; expected an array of annotations"):
        converted(tmp_path, tmp_path / "a.json")
