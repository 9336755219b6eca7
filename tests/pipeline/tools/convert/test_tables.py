"""Parquet and Arrow tables: samples, and a counted reason for everything else."""

from __future__ import annotations

import base64
import csv
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.index.build import build_index
from pipeline.index.read import read_sample
from pipeline.tools.convert.formats import SourceOptions, open_source
from pipeline.tools.convert.run import convert
from pipeline.tools.convert.shard_plan import ShardLimits
from tests.pipeline.samples.pictures import encoded, picture
from tests.pipeline.tools.convert.datasets import (
    llava_records,
    turns,
    write_coco,
    write_downloads,
    write_llava,
    write_parquet,
)
from tests.pipeline.tools.convert.reading import answers, converted, skipped

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
    rows[3]["image"] = {"bytes": encoded(Image.new("RGB", (5, 5)), "GIF"), "path": None}
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


def test_table_with_its_ending_in_capitals_is_read(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "d" / "A.PARQUET", [{"image": image(), "text": "a ball"}])
    assert answers(converted(tmp_path / "file", path)[1]) == ["a ball"]
    assert answers(converted(tmp_path / "folder", path.parent)[1]) == ["a ball"]


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
    monkeypatch.setattr("pipeline.tools.convert.tables._BATCH_ROWS", 2)
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


@pytest.mark.parametrize(("name", "delimiter"), [("a.tsv", "\t"), ("a.csv", ","), ("A.TSV", "\t")])
def test_text_table_with_base64_pictures_and_options_is_read(tmp_path: Path, name: str, delimiter: str) -> None:
    pictures = [base64.b64encode(picture(5 + idx, 7)).decode() for idx in range(3)]
    with open(tmp_path / name, "w", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(["index", "question", "hint", "A", "B", "C", "answer", "category", "image"])
        for idx, data in enumerate(pictures):
            writer.writerow([idx, f"Which, {idx}?", "Two\nlines" if idx else "", "one", "two", "", "A", "logic", data])
    result, samples = converted(tmp_path, tmp_path / name)
    assert [sample.images for sample in samples] == [(picture(5 + idx, 7),) for idx in range(3)]
    assert samples[1].conversation.turns[0].text == "Two\nlines\nWhich, 1?\nA. one\nB. two"
    assert answers(samples) == ["A", "A", "A"]
    assert result.skipped == ()


@pytest.mark.parametrize(
    "blob",
    [
        pa.array([[*picture(5, 7)]]),
        pa.array([[*picture(5, 7)]], pa.large_list(pa.uint8())),
        pa.array([picture(5, 7)], pa.large_binary()),
        pa.array([picture(5, 7)]).dictionary_encode(),
        pa.array([base64.b64encode(picture(5, 7)).decode()], pa.large_string()),
        pa.array([{"bytes": picture(5, 7), "path": None}], IMAGE),
    ],
    ids=["int64", "uint8", "binary", "dictionary", "base64", "struct"],
)
def test_picture_in_a_column_of_any_name_and_type_is_shown_or_refused(tmp_path: Path, blob: pa.Array) -> None:
    for question, num_written in (("<image>\nWhat?", 1), ("What?", 0)):
        table = pa.table({"stuff": blob, "vector": [[0.5] * 99], "conversations": [turns(question)]})
        pq.write_table(table, tmp_path / "a.parquet")
        result, samples = converted(tmp_path / str(num_written), tmp_path / "a.parquet")
        assert [sample.images for sample in samples] == [(picture(5, 7),)] * num_written
        assert [(entry.reason, "`stuff" in entry.detail) for entry in result.skipped] == [
            ("image_token_mismatch", True)
        ] * (1 - num_written)
