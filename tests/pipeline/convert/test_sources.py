"""Each format in, samples with the right images and text out, and a counted reason for everything else."""

from __future__ import annotations

import gzip
import io
import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from PIL import Image

from pipeline.convert.formats import SourceOptions, open_source
from pipeline.convert.run import Conversion, convert
from pipeline.convert.shard_plan import ShardLimits
from pipeline.errors import DataError
from pipeline.samples.read import read_sample
from pipeline.samples.schema import Sample, SchemaPolicy
from pipeline.shards.index import build_index
from tests.pipeline.convert.datasets import (
    llava_records,
    turns,
    write_coco,
    write_downloads,
    write_llava,
    write_parquet,
)
from tests.pipeline.samples.pictures import encoded, picture
from tests.pipeline.shards.archives import tar_bytes

ROOMY = ShardLimits(1000, 10**9)


def converted(
    tmp_path: Path,
    *paths: Path,
    options: SourceOptions = SourceOptions(),  # noqa: B008
    kind: str = "auto",
) -> tuple[Conversion, list[Sample]]:
    """Convert, index what was written, and read every sample back; the index must reject none."""
    result = convert(open_source([str(path) for path in paths], kind, options), tmp_path / "out", limits=ROOMY)
    if not result.shards:
        return result, []
    index = build_index(result.shards, tmp_path / "index")
    assert index.summary() == {}
    assert index.num_samples == result.num_samples
    return result, [read_sample(index, idx) for idx in range(index.num_samples)]


def answers(samples: list[Sample]) -> list[str]:
    return [sample.conversation.turns[-1].text for sample in samples]


def skipped(result: Conversion) -> list[tuple[int, str]]:
    return [(entry.row, entry.reason) for entry in result.skipped]


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


def test_compressed_coco_captions_are_read(tmp_path: Path) -> None:
    path = write_coco(tmp_path, 3)
    (tmp_path / "captions.json.gz").write_bytes(gzip.compress(path.read_bytes()))
    options = SourceOptions(str(tmp_path / "images"))
    assert answers(converted(tmp_path, tmp_path / "captions.json.gz", options=options)[1])[0] == "caption 0 of 101"


def test_compressed_file_that_breaks_off_is_named(tmp_path: Path) -> None:
    records = [{"id": str(idx), "conversations": turns(f"Why {idx}?")} for idx in range(997)]
    packed = gzip.compress(write_llava(tmp_path, records).read_bytes())
    for content in (packed[:-500], packed[:500] + b"\xff" * 99 + packed[599:]):
        (tmp_path / "a.json.gz").write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.json\.gz: not readable as gzip .*; fetch or write the file again"):
            converted(tmp_path, tmp_path / "a.json.gz")


def test_other_compressed_file_is_to_be_unpacked_first(tmp_path: Path) -> None:
    for name in ("a.parquet.gz", "a.tar.gz"):
        (tmp_path / name).write_bytes(gzip.compress(b"x"))
        with pytest.raises(ValueError, match=rf"{name}: compressed; gunzip it first"):
            open_source([str(tmp_path / name)])


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
        (b'{"images": [], "annotations": {}}', r"coco\.json: no COCO captions"),
        (b'{"images": ' + b"9" * 5000 + b"}", r"coco\.json: JSON that cannot be read"),
    ],
)
def test_broken_coco_file_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "coco.json").write_bytes(content)
    with pytest.raises(DataError, match=message):
        converted(tmp_path, tmp_path / "coco.json", kind="coco")


def test_other_json_object_is_refused_as_coco(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"images": []}')
    with pytest.raises(DataError, match="no COCO captions"):
        converted(tmp_path, tmp_path / "a.json")


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
        ["1.png", "0.png"],
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
    assert skipped(result) == [(2, "json_invalid")]
    assert "store its frames as images" in result.skipped[0].detail


IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def write_arrow(path: Path, rows: list[dict[str, Any]]) -> Path:
    table = pa.Table.from_pylist(rows, schema=pa.schema([("image", IMAGE), ("text", pa.string())]))
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return path


def image(height: int = 5) -> dict[str, Any]:
    return {"bytes": picture(height, 7), "path": None}


def test_parquet_captions_with_hugging_face_images(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"image": image(5 + idx), "text": f"text {idx}"} for idx in range(8)]
    rows[2]["image"] = {"bytes": None, "path": "a.jpg"}
    rows[3]["image"] = {"bytes": encoded(Image.new("RGB", (5, 5)), "BMP"), "path": None}
    rows[4]["text"] = None
    path = write_parquet(tmp_path / "d" / "train-00000-of-00001.parquet", rows)
    result, samples = converted(tmp_path, path.parent)
    assert answers(samples) == ["text 0", "text 1", "text 5", "text 6", "text 7"]
    assert Image.open(io.BytesIO(samples[2].images[0])).size == (7, 10)
    assert skipped(result) == [(2, "missing_image"), (3, "image_unsupported_format"), (4, "missing_annotation")]


def test_parquet_conversations_of_three_shapes(tmp_path: Path) -> None:
    pairs = [{"user": "What?", "assistant": "A ball.", "source": "x"}, {"user": "Sure?", "assistant": "Yes."}]
    parts = [{"type": "image", "text": None}, {"type": "text", "text": "What?"}]
    messages = [
        {"role": "user", "content": parts},
        {"role": "assistant", "content": [{"type": "text", "text": "Two."}]},
    ]
    tables: dict[str, list[dict[str, Any]]] = {
        "conversations": [{"id": 7, "image": image(), "conversations": turns()}],
        "texts": [{"images": [image(), image(9)], "texts": pairs}],
        "messages": [{"images": [picture(5, 7)], "messages": messages}],
        "json": [{"id": "k", "image": None, "conversations": json.dumps(turns("Why?", "So."))}],
    }
    found = {}
    for name, rows in tables.items():
        folder = tmp_path / name
        _, (sample,) = converted(folder, write_parquet(folder / "a.parquet", rows))
        found[name] = (len(sample.images), len(sample.conversation.turns), sample.conversation.turns[-1].text)
    assert found == {
        "conversations": (1, 2, "A ball."),
        "texts": (2, 4, "Yes."),
        "messages": (1, 2, "Two."),
        "json": (0, 2, "So."),
    }


def test_parquet_turns_as_text_are_never_written_as_captions(tmp_path: Path) -> None:
    indented = json.dumps(turns(answer="Indented."), indent=2)
    rows = [
        {"image": image(), "text": indented},
        {"image": image(), "text": json.dumps({"messages": turns(answer="Whole.")}, indent=1)},
        {"image": image(), "text": "{a ball} in braces"},
        {"image": image(), "text": "[a ball]"},
        {"image": image(), "text": '{"conversations": [broken'},
    ]
    result, samples = converted(tmp_path / "a", write_parquet(tmp_path / "a" / "a.parquet", rows))
    assert answers(samples) == ["Indented.", "Whole.", "{a ball} in braces", "[a ball]"]
    assert skipped(result) == [(4, "json_invalid")]
    rows = [{"image": image(), "conversations": text} for text in (indented, "a ball", json.dumps("a ball"))]
    result, samples = converted(tmp_path / "b", write_parquet(tmp_path / "b" / "b.parquet", rows))
    assert answers(samples) == ["Indented."]
    assert skipped(result) == [(1, "json_invalid"), (2, "json_invalid")]


def test_parquet_pairs_that_are_none_are_skipped(tmp_path: Path) -> None:
    pairs = [
        [{"user": "q", "assistant": "a"}, {"foo": 1}],
        [{"user": ["q"], "assistant": "a"}],
        [{"user": "q", "assistant": "good"}],
    ]
    rows = [{"images": [image()], "texts": json.dumps(one)} for one in pairs]
    result, samples = converted(tmp_path, write_parquet(tmp_path / "a.parquet", rows))
    assert answers(samples) == ["good"]
    assert skipped(result) == [(0, "json_invalid"), (1, "json_invalid")]


def test_hugging_face_saved_dataset_is_read_in_the_order_it_names(tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    folder.mkdir()
    names = ["data-00000-of-00002.arrow", "data-00001-of-00002.arrow"]
    for number, name in enumerate(names):
        write_arrow(folder / name, [{"image": image(), "text": f"{number} {idx}"} for idx in range(3)])
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    _, samples = converted(tmp_path, folder)
    assert answers(samples) == [f"{number} {idx}" for number in range(2) for idx in range(3)]


def test_columns_can_be_named_and_a_missing_one_is_refused(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", [{"photo": picture(5, 7), "words": "a ball"}])
    _, samples = converted(tmp_path, path, options=SourceOptions(image_column="photo", text_column="words"))
    assert answers(samples) == ["a ball"]
    with pytest.raises(ValueError, match="--text-column"):
        converted(tmp_path / "b", path)
    with pytest.raises(ValueError, match="no column 'pic'"):
        converted(tmp_path / "b", path, options=SourceOptions(image_column="pic", text_column="words"))


def test_folder_with_several_splits_or_formats_is_refused(tmp_path: Path) -> None:
    row = [{"image": image(), "text": "a"}]
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


def test_table_with_its_ending_in_capitals_is_read(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "d" / "A.PARQUET", [{"image": image(), "text": "a ball"}])
    assert answers(converted(tmp_path / "file", path)[1]) == ["a ball"]
    assert answers(converted(tmp_path / "folder", path.parent)[1]) == ["a ball"]


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


@pytest.mark.parametrize("kind", ["auto", "img2dataset"])
def test_folder_whose_links_lead_to_one_file_is_read(tmp_path: Path, kind: str) -> None:
    (tmp_path / "blob").write_bytes(b"x")
    (tmp_path / "snapshot").mkdir()
    for name in ("a.tar", "b.tar"):
        (tmp_path / "snapshot" / name).symlink_to(tmp_path / "blob")
    assert len(open_source([str(tmp_path / "snapshot")], kind).units()) == 2


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


def test_file_that_is_no_parquet_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(ValueError, match=r"a\.parquet: not readable as Parquet"):
        converted(tmp_path, tmp_path / "a.parquet")


def test_damaged_tables_are_named(tmp_path: Path) -> None:
    rows = [{"image": image(5 + idx), "text": f"text {idx}"} for idx in range(9)]
    damaged = write_parquet(tmp_path / "a.parquet", rows)
    content = bytearray(damaged.read_bytes())
    first = pq.read_metadata(damaged).row_group(1).column(0)
    content[first.data_page_offset : first.data_page_offset + first.total_compressed_size] = b"\xff" * (
        first.total_compressed_size
    )
    damaged.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.parquet, row group 1: not readable"):
        converted(tmp_path / "a", damaged)
    whole = write_arrow(tmp_path / "b.arrow", rows)
    whole.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"b\.arrow: not readable"):
        converted(tmp_path / "b", whole)


def test_parquet_text_that_is_no_unicode_costs_only_its_row(tmp_path: Path) -> None:
    text = pa.Array.from_buffers(pa.string(), 2, pa.array([b"good", b"\xff"], pa.binary()).buffers())
    table = pa.table({"image": pa.array([image()] * 2, IMAGE), "text": text})
    pq.write_table(table, tmp_path / "a.parquet")
    result, samples = converted(tmp_path, tmp_path / "a.parquet")
    assert answers(samples) == ["good"]
    assert skipped(result) == [(1, "text_invalid_unicode")]


@pytest.mark.parametrize("seed", [None, 3])
def test_rows_of_large_groups_are_all_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int | None) -> None:
    monkeypatch.setattr("pipeline.convert.tables._BATCH_ROWS", 2)
    rows = [{"image": image(), "text": f"text {idx}"} for idx in range(19)]
    path = write_parquet(tmp_path / "a.parquet", rows, per_group=11)
    result = convert(open_source([str(path)]), tmp_path / "out", limits=ShardLimits(3, 10**9), shuffle_seed=seed)
    index = build_index(result.shards, tmp_path / "index")
    found = [read_sample(index, idx) for idx in range(index.num_samples)]
    assert all(int(sample.key.rpartition("-")[2]) == int(answers([sample])[0][5:]) for sample in found)
    keys = [sample.key for sample in found]
    start = keys[0].rpartition("-")[0]
    assert sorted(keys) == [f"{start}-{idx:09d}" for idx in range(19)]
    assert (keys == sorted(keys)) is (seed is None)


def test_shards_of_small_samples_stay_within_the_limit(tmp_path: Path) -> None:
    lines = "".join(json.dumps({"conversations": turns(f"Why {idx}?")}) + "\n" for idx in range(97))
    (tmp_path / "a.jsonl").write_text(lines)
    images = write_llava(tmp_path, llava_records(tmp_path, 97))
    coco = write_coco(tmp_path / "coco", 97)
    tars = write_downloads(tmp_path / "tars", 1, 97)
    table = write_parquet(tmp_path / "b.parquet", [{"image": image(), "text": f"text {idx}"} for idx in range(97)])
    limit = 40_000
    for number, path in enumerate((tmp_path / "a.jsonl", images, coco, tars, table)):
        source = open_source([str(path)], options=SourceOptions(str(path.parent / "images") if number else None))
        result = convert(source, tmp_path / f"out{number}", limits=ShardLimits(1000, limit))
        sizes = [Path(shard).stat().st_size for shard in result.shards]
        assert len(sizes) > 2
        assert max(sizes) <= limit + 10_240  # an archive is filled up to whole records
        assert min(sizes[:-1]) > limit // 2
