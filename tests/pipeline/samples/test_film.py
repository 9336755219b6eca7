"""Films: the index knows length and size, training shows the chosen frames, damaged ones are refused by reason."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from model.fusion.resolution import read_resolution
from pipeline.errors import DataError, Reason
from pipeline.evaluation.questions import read_evaluation_samples
from pipeline.index.build import build_index
from pipeline.index.lengths import build_token_columns
from pipeline.index.read import read_sample
from pipeline.index.scan import Checks
from pipeline.samples.encode import SampleEncoder
from pipeline.samples.film import check_film, decode_film, probe_film
from pipeline.samples.fit import ImageSpec
from pipeline.samples.image import ImageLimits, Pixels, decode_image
from pipeline.samples.prompt.conversation import Conversation, Image, Turn
from pipeline.samples.sampling import FrameSampling, frame_numbers, show_film
from pipeline.samples.schema import parse_sample
from pipeline.tools.inspect.sample_view import Inspected, view_sample
from tests.pipeline.samples.films import STEP, film
from tests.pipeline.samples.prompt.toy_tokenizers import build_tokenizer
from tests.pipeline.shards.archives import png, write_tar

KINDS = [("mp4", "libx264"), ("webm", "libvpx-vp9"), ("mkv", "libx264"), ("mov", "mpeg4"), ("avi", "mpeg4")]


def number_of(pixels: Pixels) -> int:
    """Return which frame this is, from its red."""
    return round(float(pixels[..., 0].mean()) / STEP)


@pytest.mark.parametrize(("kind", "codec"), KINDS)
def test_frames_are_those_of_decoding_all(kind: str, codec: str) -> None:
    data = film(kind=kind, codec=codec)
    found = probe_film(data)
    assert (found.width, found.height, found.num_frames) == (64, 48, 29)
    assert found.seconds == pytest.approx(29 / 7, abs=0.01)
    _, every = decode_film(data, lambda one: list(range(one.num_frames)))
    _, some = decode_film(data, lambda _: [0, 10, 11, 23, 28])
    assert [number_of(pixels) for pixels in every] == pytest.approx(list(range(29)), abs=2)
    assert all(np.array_equal(every[at], one) for at, one in zip([0, 10, 11, 23, 28], some, strict=True))
    assert check_film(data)[0] == found


def test_rotation_of_phones_is_applied() -> None:
    data = film(3, rotation=90)
    found, [first, *_] = decode_film(data, lambda one: list(range(one.num_frames)))
    assert (found.width, found.height) == (48, 64)
    assert first.shape == (64, 48, 3)
    left, right = first[:, :24, 2].mean(), first[:, 24:, 2].mean()
    assert abs(left - right) > 50  # what was above is now at a side


@pytest.mark.parametrize(("kind", "codec"), KINDS)
def test_cut_film_is_truncated(kind: str, codec: str) -> None:
    data = film(kind=kind, codec=codec)
    for share in (0.3, 0.8, 0.99):
        with pytest.raises(DataError) as caught:
            probe_film(data[: int(share * len(data))])
        assert caught.value.reason is Reason.VIDEO_TRUNCATED


def test_damaged_or_foreign_film_is_refused_by_reason() -> None:
    data = bytearray(film())
    at = data.index(b"mdat") + 900
    data[at : at + 300] = bytes(300)
    with pytest.raises(DataError) as caught:
        check_film(bytes(data))
    assert caught.value.reason is Reason.VIDEO_CORRUPT
    for other in (b"<html></html>", png(), b""):
        with pytest.raises(DataError) as caught:
            probe_film(other)
        assert caught.value.reason is Reason.VIDEO_UNSUPPORTED_FORMAT
    with pytest.raises(DataError) as caught:
        probe_film(film(2), ImageLimits(max_pixels=1000))
    assert caught.value.reason is Reason.IMAGE_TOO_LARGE


@pytest.mark.parametrize(
    ("num_frames", "seconds", "fps", "most", "wanted"),
    [
        (300, 10.0, 1.0, 32, [0, 33, 66, 99, 132, 166, 199, 232, 265, 299]),
        (300, 10.0, 1.0, 4, [0, 99, 199, 299]),
        (7, 0.2, 1.0, 32, [0]),
        (3, 60.0, 2.0, 32, [0, 1, 2]),
    ],
)
def test_frame_numbers_spread_evenly(num_frames: int, seconds: float, fps: float, most: int, wanted: list[int]) -> None:
    assert frame_numbers(num_frames, seconds, FrameSampling(fps, most)) == wanted


def test_show_film_writes_times() -> None:
    talk = Conversation((Turn("user", (Image(), "What happens?")), Turn("assistant", ("A ball rolls.",))))
    for times, wanted in (
        ("none", (Image(), Image(), "What happens?")),
        ("frames", ("<0.0 seconds>", Image(), "<1.5 seconds>", Image(), "What happens?")),
    ):
        shown = show_film(talk, 4, 2.0, FrameSampling(1.0, 8, times))  # type: ignore[arg-type]
        assert shown.turns[0].parts == wanted
    sentence = show_film(talk, 4, 2.0, FrameSampling(1.0, 8, "sentence")).turns[0].parts
    assert sentence[:2] == (Image(), Image())
    assert "lasts for 2.00 seconds, and 2 frames" in str(sentence[3])
    assert "0.00s,1.50s." in str(sentence[3])


def encoder(sampling: FrameSampling) -> SampleEncoder:
    policy = read_resolution("pad", None, "flat", tile_size=21, tile_features=9, tile_grid=3)
    return SampleEncoder(
        build_tokenizer("first"), "v1", ImageSpec(21, (0.5,) * 3, (0.2,) * 3), policy, None, sampling=sampling
    )


@pytest.mark.parametrize("times", ["none", "frames", "sentence"])
@pytest.mark.parametrize("images", ["decode", "header"])
def test_index_counts_the_tokens_that_training_gets(tmp_path: Path, images: str, times: str) -> None:
    tree = {
        "video": "clip.mp4",
        "conversations": [{"from": "human", "value": "<video>\nWhat?"}, {"from": "gpt", "value": "It."}],
    }
    other = {
        "video": ["0.webm"],
        "conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "It."}],
    }
    shard = write_tar(
        tmp_path / "a.tar",
        [
            ("a.mp4", film(29, 7)), ("a.json", json.dumps(tree).encode()),
            ("b.0.webm", film(5, 7, "webm", "libvpx-vp9")), ("b.json", json.dumps(other).encode()),
            ("c.mp4", film(9, 3)), ("c.txt", b"A caption."),
            ("d.mp4", film(9, 3)[:500]), ("d.txt", b"Cut."),
            ("e.mp4", film(9, 3)), ("e.png", png()), ("e.txt", b"Two media."),
        ],
    )  # fmt: skip
    index = build_index([shard], tmp_path / "index", checks=Checks(images=images))  # type: ignore[arg-type]
    assert index.samples["kind"].to_pylist() == ["film", "film", "film", "", ""]
    assert index.samples["reason"].to_pylist() == ["", "", "", "video_truncated", "media_unread"]
    assert index.samples["video_frames"].to_pylist() == [29, 5, 9, 0, 0]
    assert index.samples["video_seconds"].to_pylist()[:3] == pytest.approx([29 / 7, 5 / 7, 3], abs=0.02)
    own = encoder(FrameSampling(2.0, 6, times))  # type: ignore[arg-type]
    tokens = build_token_columns(index, own, cache_dir=tmp_path)
    for row, num_frames in enumerate((6, 1, 6)):
        encoded = own.encode(read_sample(index, row))
        assert len(encoded.images) == num_frames
        assert tokens["num_tokens"][row].as_py() == encoded.text.num_tokens
    whole = own.with_frames(read_sample(index, 0))
    numbers = [number_of(decode_image(data)) for data in whole.images]
    assert numbers == pytest.approx(frame_numbers(29, 29 / 7, FrameSampling(2.0, 6)), abs=1)


def test_encoder_without_films_keeps_its_fingerprint() -> None:
    assert encoder(FrameSampling()).fingerprint != encoder(FrameSampling(2.0)).fingerprint
    resolution = read_resolution("pad", None, "flat", tile_size=21, tile_features=9, tile_grid=3)
    plain = SampleEncoder(build_tokenizer("first"), "v1", ImageSpec(21, (0.5,) * 3, (0.2,) * 3), resolution, None)
    assert encoder(FrameSampling()).fingerprint == plain.fingerprint


def test_parse_sample_with_several_films_is_refused() -> None:
    turns = [{"from": "human", "value": "<video>?"}, {"from": "gpt", "value": "It."}]
    members = {"0.mp4": b"x", "1.mp4": b"y", "json": json.dumps({"conversations": turns}).encode()}
    with pytest.raises(DataError) as caught:
        parse_sample("k", members)
    assert caught.value.reason is Reason.MEDIA_UNREAD


def test_inspect_shows_the_frames_and_evaluation_refuses_the_file(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "a.tar", [("a.mp4", film(9, 3)), ("a.txt", b"A film.")])
    index = build_index([shard], tmp_path / "index")
    own = encoder(FrameSampling(1.0, 8))
    tokens = build_token_columns(index, own, cache_dir=tmp_path)
    view = view_sample(Inspected(index, tokens, own), 0)
    assert [picture.caption for picture in view.pictures] == [f"image {k}: 64 x 48, as 21 x 21" for k in (1, 2, 3)]
    with pytest.raises(DataError, match="evaluation shows stored frames only"):
        read_evaluation_samples(index)
