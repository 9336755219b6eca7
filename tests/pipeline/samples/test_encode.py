"""Encoding, reading by row and token counts, end to end on generated shards (and on real ones where present)."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.fusion.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from model.fusion.feature_layout import layout_of
from model.fusion.resolution import Resolution
from pipeline.errors import DataError, Reason
from pipeline.index.build import build_index
from pipeline.index.index import ShardIndex
from pipeline.index.lengths import TOKEN_SCHEMA, build_token_columns
from pipeline.index.read import read_annotations, read_sample
from pipeline.samples.encode import EncodedSample, SampleEncoder
from pipeline.samples.fit import ImageSpec, fit_image
from pipeline.samples.image import ImageLimits, Pixels, decode_image
from pipeline.samples.prompt.conversation import Conversation, Image, Turn
from tests.pipeline.samples.prompt.toy_tokenizers import build_tokenizer
from tests.pipeline.shards.archives import caption_files, instruction_files, write_tar

PAD = Resolution("pad", 11, 5, None)
SPEC = ImageSpec(11, (0.5, 0.4, 0.3), (0.2, 0.2, 0.2))
REAL = Path(__file__).resolve().parents[4] / "shared" / "data" / "nlvr" / "dev-instruct-000000.tar"


def make_encoder(template: str = "v1", max_length: int | None = None, features: int = 5) -> SampleEncoder:
    return SampleEncoder(build_tokenizer("first"), template, SPEC, Resolution("pad", 11, features, None), max_length)


def num_features(encoder: SampleEncoder, encoded: EncodedSample) -> int:
    """Features of all images, minus their placeholders."""
    return sum(layout_of(encoder.resolution, image.view).num_features - 1 for image in encoded.images)


@pytest.fixture
def index(tmp_path: Path) -> ShardIndex:
    first = [*caption_files("c0", "a red ball"), ("bad.txt", b"x"), *instruction_files("i2", 3)]
    second = [*instruction_files("i3", 0), *caption_files("c4", "w" * 900)]
    shards = [write_tar(tmp_path / "s0.tar", first), write_tar(tmp_path / "s1.tar", second)]
    return build_index(shards, tmp_path / "index")


def test_encode_gives_ids_labels_and_pixels(index: ShardIndex) -> None:
    sample = read_sample(index, 2)
    encoded = make_encoder().encode(sample)
    assert [image.pixels.shape for image in encoded.images] == [(1, 11, 11, 3)] * 3
    for data, image in zip(sample.images, encoded.images, strict=True):
        assert image.pixels.dtype == np.uint8
        assert (image.pixels[0] == fit_image(decode_image(data), SPEC)).all()
    assert int((encoded.input_ids == IMAGE_TOKEN_INDEX).sum()) == 3
    assert (encoded.labels != IGNORE_INDEX).any()


def test_encode_decodes_an_image_that_is_shown_again_once(index: ShardIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    sample = read_sample(index, 2)
    first, second, _ = sample.images
    decoded = []

    def counting(data: bytes, limits: ImageLimits) -> Pixels:
        decoded.append(data)
        return decode_image(data, limits)

    monkeypatch.setattr("pipeline.samples.encode.decode_image", counting)
    encoded = make_encoder().encode(sample._replace(images=(first, second, first)))
    assert decoded == [first, second]
    assert [(image.pixels == encoded.images[0].pixels).all() for image in encoded.images] == [True, False, True]


def test_encode_of_text_only_sample_has_no_images(index: ShardIndex) -> None:
    assert make_encoder().encode(read_sample(index, 3)).images == ()


def test_lengths_equal_the_encoded_sample(index: ShardIndex) -> None:
    encoder = make_encoder(features=5)
    for row in (0, 2, 3, 4):
        encoded = encoder.encode(read_sample(index, row))
        assert encoded.text.num_tokens == len(encoded.input_ids) + num_features(encoder, encoded)
        assert encoded.text.num_supervised_tokens == int((encoded.labels != IGNORE_INDEX).sum())


def test_encoder_after_pickling_encodes_the_same(index: ShardIndex) -> None:
    encoder = make_encoder()
    again = pickle.loads(pickle.dumps(encoder))
    sample = read_sample(index, 2)
    ours, theirs = encoder.encode(sample), again.encode(sample)
    assert (ours.input_ids == theirs.input_ids).all()
    assert (ours.labels == theirs.labels).all()
    assert all((a.pixels == b.pixels).all() for a, b in zip(ours.images, theirs.images, strict=True))
    assert again.fingerprint == encoder.fingerprint


def test_fingerprint_changes_with_everything_that_changes_the_result() -> None:
    base = make_encoder()
    others = [
        make_encoder("plain"),
        make_encoder(max_length=99),
        make_encoder(features=7),
        SampleEncoder(build_tokenizer("legacy"), "v1", SPEC, PAD, None),
        SampleEncoder(build_tokenizer("first"), "v1", ImageSpec(11, SPEC.std, SPEC.std), PAD, None),
        SampleEncoder(build_tokenizer("first"), "v1", SPEC, dataclasses.replace(PAD, kind="crop"), None),
    ]
    assert len({encoder.fingerprint for encoder in (base, *others)}) == 7
    assert make_encoder().fingerprint == base.fingerprint


def test_encode_prompt_puts_one_placeholder_per_image() -> None:
    question = Conversation((Turn("user", (Image(), Image(), "Which?")),))
    assert int((make_encoder().encode_prompt(question) == IMAGE_TOKEN_INDEX).sum()) == 2


@pytest.mark.parametrize(("features", "max_length"), [(0, None), (5, 1)])
def test_encoder_with_impossible_sizes_is_refused(features: int, max_length: int | None) -> None:
    with pytest.raises(ValueError, match="expected at least 1 and 2"):
        make_encoder(features=features, max_length=max_length)


def test_encode_of_broken_image_names_the_sample(index: ShardIndex) -> None:
    sample = read_sample(index, 0)._replace(images=(b"broken",))
    with pytest.raises(DataError, match="key c0: 6 bytes of no known format, not JPEG, PNG, WebP"):
        make_encoder().encode(sample)


def test_read_of_rejected_row_raises_its_reason(index: ShardIndex) -> None:
    with pytest.raises(DataError, match=r"s0\.tar, key bad: a caption without image") as caught:
        read_sample(index, 1)
    assert caught.value.reason == Reason.MISSING_IMAGE


def test_read_of_changed_shard_is_found_by_crc(index: ShardIndex, tmp_path: Path) -> None:
    path = tmp_path / "s0.tar"
    data = bytearray(path.read_bytes())
    member = index.samples["members"][2].as_py()[1]
    data[member["offset"] + member["size"] - 1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match=r"1\.png has CRC-32") as caught:
        read_sample(index, 2)
    assert caught.value.reason == Reason.CONTENT_HASH_MISMATCH
    assert len(read_sample(index, 2, verify_crc=False).images) == 3
    assert read_sample(index, 0).key == "c0"


def test_token_columns_align_with_the_index(index: ShardIndex, tmp_path: Path) -> None:
    encoder = make_encoder(max_length=200)
    table = build_token_columns(index, encoder, cache_dir=tmp_path / "cache")
    assert table.schema == TOKEN_SCHEMA
    assert table["reason"].to_pylist() == ["", "missing_image", "", "", ""]
    for row in (0, 2, 3, 4):
        text = encoder.encode(read_sample(index, row)).text
        assert table["num_tokens"][row].as_py() == text.num_tokens
        assert table["num_supervised_tokens"][row].as_py() == text.num_supervised_tokens
        assert table["num_truncated_tokens"][row].as_py() == text.truncated_tokens
    assert table["num_tokens"].to_pylist()[1] == 0
    assert table["num_tokens"].to_pylist()[4] == 200
    whole = build_token_columns(index, make_encoder(), cache_dir=tmp_path / "cache")["num_tokens"].to_pylist()
    assert table["num_truncated_tokens"].to_pylist() == [0, 0, 0, 0, whole[4] - 200]


def test_token_columns_give_samples_this_encoder_cannot_use_their_reason(index: ShardIndex, tmp_path: Path) -> None:
    table = build_token_columns(index, make_encoder("plain", max_length=9, features=4), cache_dir=tmp_path)
    assert table["reason"].to_pylist() == ["", "missing_image", "too_long", "not_a_caption", ""]
    assert "3 images of 12 features" in table["detail"][2].as_py()
    assert table["detail"].to_pylist()[3].startswith("no image, but template plain leaves out what the user says")


def test_token_columns_are_cached_per_encoder_and_rebuilt_when_damaged(
    index: ShardIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, cache = make_encoder(), tmp_path / "cache"
    first = build_token_columns(index, encoder, cache_dir=cache)
    (path,) = cache.glob("tokens-*.parquet")
    path.write_bytes(path.read_bytes()[:50])
    assert build_token_columns(index, encoder, cache_dir=cache).equals(first)
    build_token_columns(index, make_encoder("plain"), cache_dir=cache)
    assert len(list(cache.glob("tokens-*.parquet"))) == 2

    def refuse(*_: object) -> None:
        raise AssertionError("the cached columns were not used")

    monkeypatch.setattr("pipeline.index.lengths.read_annotations", refuse)
    assert build_token_columns(index, encoder, cache_dir=cache).equals(first)


def test_token_columns_of_added_shard_read_only_that_one(
    index: ShardIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, cache = make_encoder(max_length=200), tmp_path / "cache"
    build_token_columns(index, encoder, cache_dir=cache)
    # in front, and with the key of a sample behind it, which becomes a duplicate
    added = write_tar(tmp_path / "new.tar", [*instruction_files("n"), *instruction_files("i3", 1)])
    larger = build_index([added, *(shard.url for shard in index.shards)], tmp_path / "index")
    assert larger.samples["reason"].to_pylist() == ["", "", "", "missing_image", "", "duplicate_key", ""]
    read: list[str] = []

    def counting(shard: str, *rest: Any) -> Any:
        read.append(Path(shard).name)
        return read_annotations(shard, *rest)

    monkeypatch.setattr("pipeline.index.lengths.read_annotations", counting)
    reports: list[tuple[int, int]] = []
    table = build_token_columns(
        larger, encoder, cache_dir=cache, progress=lambda done, total: reports.append((done, total))
    )
    assert read == ["new.tar", "s1.tar"]
    assert reports == [(2, 3), (3, 3)]
    assert table.equals(build_token_columns(larger, encoder, cache_dir=tmp_path / "afresh"))


def test_token_columns_of_samples_that_are_all_rejected_keep_their_reasons(tmp_path: Path) -> None:
    index = build_index([write_tar(tmp_path / "s.tar", [("a.txt", b"x"), ("b.txt", b"x")])], tmp_path / "index")
    table = build_token_columns(index, make_encoder(), cache_dir=tmp_path)
    assert table["reason"].to_pylist() == ["missing_image"] * 2
    assert table["num_tokens"].to_pylist() == [0, 0]


def test_token_columns_of_changed_annotation_say_so(index: ShardIndex, tmp_path: Path) -> None:
    path = tmp_path / "s0.tar"
    path.write_bytes(path.read_bytes().replace(b"a red ball", b"a RED ball"))
    table = build_token_columns(index, make_encoder(), cache_dir=tmp_path / "cache")
    assert table["reason"].to_pylist()[0] == "content_hash_mismatch"


def test_token_columns_of_pickled_work_equal_the_serial_ones(index: ShardIndex, tmp_path: Path) -> None:
    serial = build_token_columns(index, make_encoder(), cache_dir=tmp_path / "a")

    def run_elsewhere(function: Callable[[Any], Any], items: Sequence[Any]) -> Iterable[Any]:
        return [pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(function))(item))) for item in items]

    parallel = build_token_columns(index, make_encoder(), cache_dir=tmp_path / "b", run_map=run_elsewhere)
    assert parallel.equals(serial)


@pytest.mark.parametrize("shard", [path for path in (REAL,) if path.is_file()] + [None])
def test_every_sample_of_a_shard_encodes_to_its_counted_length(shard: Path | None, tmp_path: Path) -> None:
    """Real shards where they are at hand, a generated one everywhere."""
    generated = write_tar(
        tmp_path / "g.tar", [file for idx in range(7) for file in instruction_files(f"k{idx}", idx % 4)]
    )
    index = build_index([str(shard or generated)], tmp_path / "index")
    encoder = make_encoder(max_length=2048)
    table = build_token_columns(index, encoder, cache_dir=tmp_path)
    assert set(table["reason"].to_pylist()) == {""}
    for row in range(0, index.num_samples, max(1, index.num_samples // 40)):
        encoded = encoder.encode(read_sample(index, row))
        assert len(encoded.images) == index.samples["num_images"][row].as_py()
        assert table["num_tokens"][row].as_py() == len(encoded.input_ids) + num_features(encoder, encoded)
