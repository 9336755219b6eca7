"""Annotation files with images in a folder: samples with the right images and text, a counted reason for all else."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipeline.errors import DataError
from pipeline.samples.schema import SchemaPolicy
from pipeline.tools.convert.formats import SourceOptions
from tests.pipeline.samples.pictures import picture
from tests.pipeline.tools.convert.datasets import (
    llava_records,
    turns,
    write_llava,
)
from tests.pipeline.tools.convert.reading import answers, converted, skipped


def test_llava_json_keeps_good_entries_and_counts_the_others(tmp_path: Path) -> None:
    records = llava_records(tmp_path, 7)
    (tmp_path / "images" / "coco" / "002.jpg").unlink()
    (tmp_path / "images" / "coco" / "003.jpg").write_bytes(picture(31, 37, "JPEG")[:300])
    records[4]["conversations"] = turns("no place for the image")
    records.append({"id": "text", "conversations": turns("Only words?")})
    records.append({"id": "url", "image": "http://host/a.jpg", "conversations": turns()})
    records.append({"id": "up", "image": "../annotations.json", "conversations": turns()})
    records.append({"id": "gif", "image": "coco/b.gif", "conversations": turns()})
    (tmp_path / "images" / "coco" / "b.gif").write_bytes(picture(5, 7, "GIF"))
    path = write_llava(tmp_path, records)
    result, samples = converted(tmp_path, path, options=SourceOptions(str(tmp_path / "images")))
    assert answers(samples) == ["Answer 0.", "Answer 1.", "Answer 5.", "Answer 6.", "A ball."]
    assert [len(sample.images) for sample in samples] == [1, 1, 1, 1, 0]
    assert samples[1].images[0] == (tmp_path / "images" / "coco" / "001.jpg").read_bytes()
    assert skipped(result) == [
        (2, "missing_image"),
        (3, "image_truncated"),
        (4, "image_token_mismatch"),
        (8, "remote_image_forbidden"),
        (9, "missing_image"),
        (10, "image_unsupported_format"),
    ]
    assert result.num_entries == 11


def test_llava_entry_whose_file_names_look_like_members_keeps_its_order(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "1.png").write_bytes(picture(5, 7))
    (folder / "0.png").write_bytes(picture(11, 13))
    record = {"image": ["1.png", "0.png", "1.png"], "conversations": turns("<image><image><image>")}
    _, (sample,) = converted(tmp_path, write_llava(tmp_path, [record]), options=SourceOptions(str(folder)))
    assert [Image.open(io.BytesIO(data)).size for data in sample.images] == [(7, 5), (13, 11), (7, 5)]


def test_messages_lines_with_typed_parts_and_bad_lines(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture(5, 7))
    question = [{"type": "image", "path": "a.png"}, {"type": "text", "text": "What does <image> mean?"}]
    good = {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": "A tag."}]}
    lines = [json.dumps(good), "", "{broken", '{"messages": NaN}', json.dumps({"text": "x"}), "[" * 50_000]
    (tmp_path / "chat.jsonl").write_text("\n".join(lines))
    result, samples = converted(tmp_path, tmp_path / "chat.jsonl")
    assert answers(samples) == ["A tag."]
    assert len(samples[0].images) == 1
    assert skipped(result) == [
        (1, "json_invalid"),
        (2, "json_invalid"),
        (3, "missing_annotation"),
        (4, "json_too_deep"),
    ]


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.JSONL", "a.json.gz", "a.JSON", "a.json"])
def test_annotations_compressed_or_in_capitals_are_read_as_any(tmp_path: Path, name: str) -> None:
    entries = [json.dumps({"conversations": turns("Why?", f"Answer {idx}.")}) for idx in range(3)]
    text = "\n".join(entries) if "jsonl" in name.casefold() else f"[{', '.join(entries)}]"
    is_compressed = name in ("a.jsonl.gz", "a.json.gz", "a.json")
    (tmp_path / name).write_bytes(gzip.compress(text.encode()) if is_compressed else text.encode())
    result, samples = converted(tmp_path, tmp_path / name)
    assert answers(samples) == ["Answer 0.", "Answer 1.", "Answer 2."]
    assert result.skipped == ()


def test_compressed_file_that_breaks_off_is_named(tmp_path: Path) -> None:
    records = [{"id": str(idx), "conversations": turns(f"Why {idx}?")} for idx in range(997)]
    packed = gzip.compress(write_llava(tmp_path, records).read_bytes())
    for content in (packed[:-500], packed[:500] + b"\xff" * 99 + packed[599:]):
        (tmp_path / "a.json.gz").write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.json\.gz: not readable as gzip .*; fetch or write the file again"):
            converted(tmp_path, tmp_path / "a.json.gz")


def test_line_above_the_json_limit_costs_only_itself(tmp_path: Path) -> None:
    long = json.dumps({"conversations": turns("x" * 3_000_000)})
    (tmp_path / "a.jsonl").write_text(f"{long}\n{json.dumps({'conversations': turns('Why?')})}\n")
    result, samples = converted(tmp_path, tmp_path / "a.jsonl")
    assert answers(samples) == ["A ball."]
    assert skipped(result) == [(0, "json_too_large")]


def test_repairs_are_written_into_the_shards(tmp_path: Path) -> None:
    records = llava_records(tmp_path, 2)
    records[0]["conversations"] = turns("No placeholder.")
    records[1]["conversations"] = [{"from": "gpt", "value": "Hi."}, *turns()]
    policy = SchemaPolicy(prepend_missing_placeholder=True, drop_leading_answer=True)
    result, samples = converted(
        tmp_path, write_llava(tmp_path, records), options=SourceOptions(str(tmp_path / "images"), policy=policy)
    )
    assert result.skipped == ()
    assert [sample.conversation.num_images for sample in samples] == [1, 1]
    assert [len(sample.conversation.turns) for sample in samples] == [2, 2]


def test_array_that_breaks_off_stops_the_conversion(tmp_path: Path) -> None:
    path = write_llava(tmp_path, llava_records(tmp_path, 3))
    path.write_text(path.read_text()[:-40])
    with pytest.raises(DataError, match=r"annotations\.json: element 2 of the array: .* at byte \d+; fix the JSON"):
        converted(tmp_path, path)


def test_elements_too_deep_or_with_too_long_numbers_cost_only_themselves(tmp_path: Path) -> None:
    good = json.dumps({"conversations": turns("Why?")})
    elements = [good, "[" * 20_000 + "]" * 20_000, good, '{"id": ' + "9" * 5000 + "}", good]
    (tmp_path / "a.json").write_text(f"[{', '.join(elements)}]")
    result, samples = converted(tmp_path, tmp_path / "a.json")
    assert len(samples) == 3
    assert skipped(result) == [(1, "json_too_deep"), (3, "json_invalid")]


@pytest.mark.parametrize("kind", ["auto", "messages", "llava"])
def test_lines_in_a_file_named_json_are_read_as_lines(tmp_path: Path, kind: str) -> None:
    lines = ["{broken", json.dumps({"messages": [{"role": "user", "content": "Why?"}]}), "", "[]"]
    lines += [json.dumps({"conversations": turns("Why?")})]
    (tmp_path / "a.json").write_text("\ufeff" + "\n".join(lines))
    result, samples = converted(tmp_path, tmp_path / "a.json", kind=kind)
    assert answers(samples) == ["A ball."]
    assert skipped(result) == [(0, "json_invalid"), (1, "no_assistant"), (2, "missing_annotation")]


def test_llava_video_as_frames_of_the_image_folder(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture(5, 7))
    (tmp_path / "b.png").write_bytes(picture(11, 13))
    records: list[dict[str, Any]] = [
        {"video": ["b.png", "a.png", "b.png"], "conversations": turns("<video>\nWhat happens?")},
        {"video": ["a.png"], "conversations": turns("<video>\nWhat happens?")},
        {"video": "film.mp4", "conversations": turns("<video>\nWhat happens?")},
    ]
    options = SourceOptions(policy=SchemaPolicy(prepend_missing_placeholder=True))
    result, samples = converted(tmp_path, write_llava(tmp_path, records), options=options)
    assert [(sample.kind, len(sample.images)) for sample in samples] == [("video", 3), ("video", 1)]
    assert [Image.open(io.BytesIO(data)).size for data in samples[0].images] == [(13, 11), (7, 5), (13, 11)]
    assert skipped(result) == [(2, "missing_image")]
    assert "film.mp4" in result.skipped[0].detail
