"""A video is a list of frames with one place in the text; its frames are pooled wherever they are counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from model.fusion.resolution import Resolution, read_resolution
from pipeline.errors import DataError, Reason
from pipeline.index.build import build_index
from pipeline.index.lengths import build_token_columns
from pipeline.index.read import read_sample
from pipeline.samples.encode import SampleEncoder
from pipeline.samples.fit import ImageSpec
from pipeline.samples.prompt.conversation import Image
from pipeline.samples.schema import Sample, parse_sample
from tests.pipeline.samples.prompt.toy_tokenizers import build_tokenizer
from tests.pipeline.shards.archives import png, write_tar

FRAMES = ["0.png", "1.png", "2.png"]
ANSWER = {"from": "gpt", "value": "A cat."}


def annotation(value: Any = "<video>\nWhat is it?", **fields: Any) -> dict[str, Any]:
    return {"video": FRAMES, "conversations": [{"from": "human", "value": value}, ANSWER], **fields}


def files(tree: dict[str, Any]) -> dict[str, bytes]:
    return {"json": json.dumps(tree).encode(), **{name: png(40, 25, k) for k, name in enumerate(FRAMES)}}


def parse(tree: dict[str, Any]) -> Sample:
    return parse_sample("k", files(tree))


@pytest.mark.parametrize(
    "value",
    ["<video>\nWhat is it?", "<image>\nWhat is it?", [{"type": "video"}, {"type": "text", "text": "\nWhat is it?"}]],
)
def test_the_place_of_the_video_shows_all_frames(value: Any) -> None:
    sample = parse(annotation(value))
    assert (sample.kind, sample.is_video, len(sample.images)) == ("video", True, 3)
    assert sample.conversation.turns[0].parts == (Image(), Image(), Image(), "\nWhat is it?")


def test_frames_come_in_the_order_listed() -> None:
    listed = parse(annotation(video=["2.png", "0.png", "1.png"]))
    assert listed.images == tuple(files(annotation())[name] for name in ("2.png", "0.png", "1.png"))


def test_letters_of_a_place_stay_letters_without_a_video() -> None:
    tree = {"conversations": [{"from": "human", "value": "What does <video> mean?"}, ANSWER]}
    sample = parse_sample("k", {"json": json.dumps(tree).encode()})
    assert (sample.kind, sample.conversation.turns[0].parts) == ("instruction", ("What does <video> mean?",))


@pytest.mark.parametrize(
    ("tree", "reason", "message"),
    [
        (annotation("What?"), Reason.IMAGE_TOKEN_MISMATCH, "0 <video> places"),
        (annotation("<video> <image>"), Reason.IMAGE_TOKEN_MISMATCH, "2 <video> places"),
        (annotation(video="film.mp4"), Reason.JSON_INVALID, "not a list of frames"),
        (annotation(image=FRAMES), Reason.JSON_INVALID, "`video` and `image`"),
        (annotation(video=FRAMES[:2]), Reason.UNREFERENCED_IMAGE, r"2\.png stored but not listed"),
    ],
)
def test_malformed_videos_are_refused(tree: dict[str, Any], reason: Reason, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        parse(tree)
    assert caught.value.reason == reason


@pytest.mark.parametrize(("merge", "per_video"), [("flat", 3 * 4), ("spatial_unpad", 3 * 4 + 1)])
@pytest.mark.parametrize("aspect_ratio", ["pad", "anyres", "dynamic_1_6"])
def test_index_and_encoder_count_pooled_frames(aspect_ratio: str, merge: str, per_video: int, tmp_path: Path) -> None:
    policy: Resolution = read_resolution(
        aspect_ratio, None, merge, tile_size=21, tile_features=9, tile_grid=3
    )  # fmt: skip
    encoder = SampleEncoder(build_tokenizer("first"), "v1", ImageSpec(21, (0.5,) * 3, (0.2,) * 3), policy, None)
    members = [(f"k.{name}", data) for name, data in files(annotation()).items()]
    index = build_index([write_tar(tmp_path / "s.tar", members)], tmp_path / "index")
    assert index.samples["kind"].to_pylist() == ["video"]
    encoded = encoder.encode(read_sample(index, 0))
    assert [image.view.role for image in encoded.images] == ["frame", "frame", "last_frame"]
    assert [len(image.pixels) for image in encoded.images] == [1, 1, 1]
    counted = build_token_columns(index, encoder, cache_dir=tmp_path)["num_tokens"].to_pylist()
    assert counted == [encoded.text.num_tokens] == [len(encoded.input_ids) - 3 + per_video]
