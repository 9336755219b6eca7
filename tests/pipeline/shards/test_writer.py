"""The writer: reproducible shards that both our reader and the `webdataset` library read back."""

from __future__ import annotations

from pathlib import Path

import pytest
import webdataset

from pipeline.index.build import build_index
from pipeline.index.read import read_sample
from pipeline.shards.writer import write_shards
from tests.pipeline.shards.archives import caption_files, instruction_files


def sample(key: str, files: list[tuple[str, bytes]]) -> dict[str, str | bytes]:
    return {"__key__": key, **{name.removeprefix(f"{key}."): data for name, data in files}}


SAMPLES = [
    sample("c0", caption_files("c0", "one")),
    sample("d/i1", instruction_files("d/i1", 3)),
    sample("c2", caption_files("c2", "two")),
    sample("i3", instruction_files("i3", 0)),
    sample("c4", caption_files("c4", "three")),
]


def test_write_shards_is_read_back_by_our_reader_in_order(tmp_path: Path) -> None:
    shards = write_shards(SAMPLES, tmp_path / "out" / "t-%03d.tar", max_samples=2)
    assert [Path(shard).name for shard in shards] == ["t-000.tar", "t-001.tar", "t-002.tar"]
    index = build_index(shards, tmp_path / "index")
    assert index.summary() == {}
    assert index.samples["key"].to_pylist() == ["c0", "d/i1", "c2", "i3", "c4"]
    assert index.samples["shard"].to_pylist() == [0, 0, 1, 1, 2]
    found = read_sample(index, 1)
    assert found.images == tuple(SAMPLES[1][f"{idx}.png"] for idx in range(3))


def test_write_shards_is_read_back_by_webdataset(tmp_path: Path) -> None:
    shards = write_shards(SAMPLES, tmp_path / "t-%d.tar")
    dataset = webdataset.WebDataset(shards, shardshuffle=False)
    places = ("__url__", "__local_path__")
    found = [{name: data for name, data in item.items() if name not in places} for item in dataset]
    assert found == [{**item} for item in SAMPLES]


def test_write_shards_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    (first,) = write_shards(SAMPLES, tmp_path / "a-%d.tar")
    (second,) = write_shards(SAMPLES, tmp_path / "b-%d.tar")
    assert Path(first).read_bytes() == Path(second).read_bytes()


def test_write_shards_with_byte_limit_starts_a_new_shard(tmp_path: Path) -> None:
    shards = write_shards(SAMPLES, tmp_path / "t-%d.tar", max_bytes=1)
    assert len(shards) == len(SAMPLES)


def test_write_shards_of_text_encodes_utf8(tmp_path: Path) -> None:
    text: list[dict[str, str | bytes]] = [{"__key__": "k", "png": caption_files("k")[0][1], "txt": "\u00e9"}]
    index = build_index(write_shards(text, tmp_path / "t-%d.tar"), tmp_path / "index")
    assert read_sample(index, 0).conversation.turns[1].text == "\u00e9"


@pytest.mark.parametrize("key", ["a.b", "", "folder/", "x/a.b"])
def test_write_shards_with_ambiguous_key_is_refused_and_leaves_no_file(tmp_path: Path, key: str) -> None:
    with pytest.raises(ValueError, match="without dots"):
        write_shards([sample(key, [])], tmp_path / "t-%d.tar")
    assert list(tmp_path.iterdir()) == []


def test_write_shards_with_pattern_without_number_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="number field"):
        write_shards(SAMPLES, tmp_path / "t.tar")
    with pytest.raises(ValueError, match="at least 1"):
        write_shards(SAMPLES, tmp_path / "t-%d.tar", max_samples=0)
