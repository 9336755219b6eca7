"""What the index rules out: listed in order, written into the run folder, counted by reason."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.index.build import build_index
from pipeline.index.index import ShardIndex
from pipeline.index.rejected import REJECTED_FILE, RejectedSample, list_rejected, record_rejected, rejected_ids
from tests.pipeline.shards.archives import caption_files, write_tar


@pytest.fixture
def index(tmp_path: Path) -> ShardIndex:
    first = [*caption_files("a"), ("b.txt", b"no image"), *caption_files("c")]
    second = [("d.txt", b"no image"), ("e.png", b"not a picture"), ("e.txt", b"a ball")]
    shards = [write_tar(tmp_path / "one.tar", first), write_tar(tmp_path / "two.tar", second)]
    return build_index(shards, tmp_path / "index")


def tokens_of(index: ShardIndex) -> pa.Table:
    return pa.table({"reason": index.samples["reason"], "detail": index.samples["detail"]})


def test_list_rejected_names_shard_key_and_reason_in_index_order(index: ShardIndex, tmp_path: Path) -> None:
    assert rejected_ids(tokens_of(index)).tolist() == [1, 3, 4]
    rows = list_rejected(index, tokens_of(index))
    assert [row[:3] for row in rows] == [
        (str(tmp_path / "one.tar"), "b", "missing_image"),
        (str(tmp_path / "two.tar"), "d", "missing_image"),
        (str(tmp_path / "two.tar"), "e", rows[2].reason),
    ]
    assert rows[2].reason != "missing_image"
    assert [row.detail for row in rows] == [index.samples["detail"][idx].as_py() for idx in (1, 3, 4)]


def test_record_rejected_writes_a_line_for_each_and_counts_the_most_frequent_first(
    index: ShardIndex, tmp_path: Path
) -> None:
    counts = record_rejected(tmp_path / "run", index, tokens_of(index))
    rows = list_rejected(index, tokens_of(index))
    assert list(counts.items()) == [("missing_image", 2), (rows[2].reason, 1)]
    lines = (tmp_path / "run" / REJECTED_FILE).read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"sample_id": sample_id, **row._asdict()} for sample_id, row in zip((1, 3, 4), rows, strict=True)
    ]
    assert REJECTED_FILE == "quarantine/index.jsonl"
    assert [path.name for path in (tmp_path / "run" / "quarantine").iterdir()] == ["index.jsonl"]


def test_record_rejected_replaces_the_list_of_an_earlier_start(index: ShardIndex, tmp_path: Path) -> None:
    tokens = tokens_of(index)
    record_rejected(tmp_path, index, tokens)
    record_rejected(tmp_path, index, tokens)
    path = tmp_path / REJECTED_FILE
    assert len(path.read_text().splitlines()) == 3
    clean = pa.table({"reason": pa.array([""] * 5), "detail": pa.array([""] * 5)})
    for _ in range(2):
        assert record_rejected(tmp_path, index, clean) == {}
        assert not path.exists()


def test_list_rejected_includes_what_only_the_tokenizer_rules_out(index: ShardIndex, tmp_path: Path) -> None:
    tokens = pa.table(
        {"reason": pa.array(["", "", "too_long", "", ""]), "detail": pa.array([""] * 2 + ["99"] + [""] * 2)}
    )
    assert list_rejected(index, tokens) == [RejectedSample(str(tmp_path / "one.tar"), "c", "too_long", "99")]
