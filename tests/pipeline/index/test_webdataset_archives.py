"""Archives as the `webdataset` library's own writers make them, in each of their modes, read by us."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset

from pipeline.index.build import build_index
from pipeline.index.index import ShardIndex
from pipeline.index.read import read_sample
from tests.pipeline.samples.pictures import smooth_rgb
from tests.pipeline.shards.archives import png

TURNS = [{"from": "human", "value": "<image><image>\nWhich?"}, {"from": "gpt", "value": "The second."}]
FLOATS = smooth_rgb(5, 7).astype(np.float32) / 255


def index_of(tmp_path: Path, samples: list[dict[str, Any]], name: str = "a.tar", **options: Any) -> ShardIndex:
    path = tmp_path / name
    with webdataset.TarWriter(str(path), **options) as writer:
        for sample in samples:
            writer.write(sample)
    return build_index([str(path)], tmp_path / "index", on_bad_shard="quarantine")


def test_tar_writer_with_encoder_turns_arrays_and_trees_into_files_that_we_read(tmp_path: Path) -> None:
    samples: list[dict[str, Any]] = [
        {"__key__": "a/c0", "png": FLOATS, "txt": "a ball", "json": {"url": "http://host"}},
        {"__key__": "a/i1", "0.png": FLOATS, "1.jpg": FLOATS, "json": {"conversations": TURNS}},
    ]
    index = index_of(tmp_path, samples)
    assert index.summary() == {}
    assert index.samples["image_widths"].to_pylist() == [[7], [7, 7]]
    assert read_sample(index, 1).conversation.turns[1].text == "The second."


@pytest.mark.parametrize("tar_format", ["USTAR_FORMAT", "GNU_FORMAT", "PAX_FORMAT"])
def test_tar_writer_in_every_tar_format_is_read_with_long_keys(tmp_path: Path, tar_format: str) -> None:
    key = "folder/" * 18 + "k"
    index = index_of(tmp_path, [{"__key__": key, "png": png(), "txt": b"a"}], format=tar_format, encoder=False)
    assert (index.summary(), index.samples["key"].to_pylist()) == ({}, [key])


@pytest.mark.parametrize("extension", ["cls", "pyd", "pth", "npy", "output.png", "seg.0.png", "__index_in_shard__"])
def test_tar_writer_with_other_extensions_is_counted_and_never_decoded(tmp_path: Path, extension: str) -> None:
    sample = {"__key__": "k", "png": png(), "txt": b"a", extension: b"cos\nsystem\n(S'false'\ntR."}
    index = index_of(tmp_path, [sample], encoder=False, keep_meta=True)
    assert index.summary() == {"unknown_member": 1}


def test_tar_writer_leaves_metadata_out_unless_asked(tmp_path: Path) -> None:
    sample = {"__key__": "k", "__index_in_shard__": "3", "__url__": "x.tar", "png": png(), "txt": b"a"}
    assert index_of(tmp_path, [sample], encoder=False).summary() == {}


@pytest.mark.parametrize(("name", "compress"), [("a.tar", "gz"), ("a.tar.gz", None), ("a.tar", "bz2")])
def test_compressed_archive_is_refused_and_says_so(tmp_path: Path, name: str, compress: str | None) -> None:
    index = index_of(tmp_path, [{"__key__": "k", "png": png(), "txt": b"a"}], name, compress=compress)
    assert index.summary() == {"shard_not_tar": 1}
    assert index.num_samples == 0


def test_shard_writer_with_count_limit_is_read_in_order(tmp_path: Path) -> None:
    with webdataset.ShardWriter(f"file:{tmp_path}/s-%03d.tar", maxcount=3, verbose=0) as writer:
        for idx in range(7):
            writer.write({"__key__": f"{idx:03d}", "jpg": FLOATS, "txt": f"ball {idx}"})
    shards = sorted(str(path) for path in tmp_path.glob("*.tar"))
    index = build_index(shards, tmp_path / "index")
    assert (index.summary(), len(shards)) == ({}, 3)
    texts = [read_sample(index, idx).conversation.turns[1].text for idx in range(7)]
    assert texts == [f"ball {idx}" for idx in range(7)]
