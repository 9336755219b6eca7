"""Scanning one shard: every defect becomes a row with a reason, ids never shift."""

from __future__ import annotations

import hashlib
import json
import pickle
from pathlib import Path

import pytest

from pipeline.errors import Reason, ShardError
from pipeline.index.scan import SCAN_SCHEMA, Checks, ShardScan, index_shard
from pipeline.samples.image import ImageLimits, Pixels, decode_image
from pipeline.samples.schema import MAX_IMAGES, SchemaPolicy
from pipeline.shards.storage import stat_shard
from tests.pipeline.shards.archives import caption_files, instruction_files, png, tar_bytes, write_tar

DEFAULT = Checks()


def scan_files(tmp_path: Path, files: list[tuple[str, bytes]], checks: Checks = DEFAULT) -> ShardScan:
    url = write_tar(tmp_path / "shard.tar", files)
    return index_shard(url, stat_shard(url), checks)


def verdicts(scan: ShardScan) -> list[tuple[str, str]]:
    return list(zip(scan.samples["key"].to_pylist(), scan.samples["reason"].to_pylist(), strict=True))


def test_index_shard_describes_samples(tmp_path: Path) -> None:
    scan = scan_files(tmp_path, [*caption_files("c", "two balls \u00e9"), *instruction_files("i", 3)])
    assert scan.samples.schema == SCAN_SCHEMA
    caption, instruction = scan.samples.to_pylist()
    assert (caption["kind"], caption["num_images"], caption["text_bytes"]) == (
        "caption",
        1,
        len("two balls \u00e9") + 1,
    )
    assert (instruction["kind"], instruction["num_images"]) == ("instruction", 3)
    assert (instruction["image_widths"], instruction["image_heights"]) == ([5, 5, 5], [3, 3, 3])
    data = (tmp_path / "shard.tar").read_bytes()
    assert scan.sha256 == hashlib.sha256(data).hexdigest()
    first = caption["members"][0]
    assert data[first["offset"] : first["offset"] + first["size"]] == png()
    assert pickle.loads(pickle.dumps(scan)).samples.equals(scan.samples)


BAD_JSON = json.dumps({"conversations": [{"from": "human", "value": "<image><image>"}, {"from": "gpt", "value": "x"}]})


def test_index_shard_with_bad_samples_gives_each_its_reason(tmp_path: Path) -> None:
    scan = scan_files(
        tmp_path,
        [
            *caption_files("good0"),
            ("noimage.txt", b"text"),
            ("notext.png", png()),
            ("cut.png", png(31, 17)[:60]),
            ("cut.txt", b"text"),
            ("html.jpg", b"<html></html>"),
            ("html.txt", b"text"),
            ("count.0.png", png()),
            ("count.json", BAD_JSON.encode()),
            ("dotted.v2.png", png()),
            ("dotted.txt", b"text"),
            *instruction_files("good1", 0),
        ],
    )
    assert scan.defect is None
    assert verdicts(scan) == [
        ("good0", ""),
        ("noimage", "missing_image"),
        ("notext", "missing_annotation"),
        ("cut", "image_truncated"),
        ("html", "image_unsupported_format"),
        ("count", "image_token_mismatch"),
        ("dotted", "unknown_member"),
        ("good1", ""),
    ]
    assert "2 <image> placeholders but 1 image" in scan.samples["detail"][5].as_py()


def test_index_shard_with_header_checks_only_trusts_pixels(tmp_path: Path) -> None:
    files = [("cut.png", png(31, 17)[:60]), ("cut.txt", b"text")]
    assert verdicts(scan_files(tmp_path, files, Checks(images="header"))) == [("cut", "")]


def test_index_shard_applies_limits_and_policy(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "A ball."}]
    files = [("a.png", png()), ("a.json", json.dumps({"conversations": turns}).encode())]
    assert verdicts(scan_files(tmp_path, files)) == [("a", "image_token_mismatch")]
    repaired = Checks(policy=SchemaPolicy(prepend_missing_placeholder=True))
    assert verdicts(scan_files(tmp_path, files, repaired)) == [("a", "")]
    small = Checks(limits=ImageLimits(max_pixels=14))
    assert verdicts(scan_files(tmp_path, caption_files("c"), small)) == [("c", "image_too_large")]


def test_index_shard_with_adjacent_duplicate_rejects_the_sample(tmp_path: Path) -> None:
    scan = scan_files(tmp_path, [*caption_files("a"), *caption_files("a")])
    assert verdicts(scan) == [("a", "duplicate_member")]


def test_index_shard_with_far_duplicate_keeps_the_first(tmp_path: Path) -> None:
    files = [*caption_files("a"), *caption_files("b"), *caption_files("a")]
    assert verdicts(scan_files(tmp_path, files)) == [("a", ""), ("b", ""), ("a", "duplicate_key")]
    allowed = scan_files(tmp_path, files, Checks(allow_duplicate_keys=True))
    assert verdicts(allowed) == [("a", ""), ("b", ""), ("a", "")]


def test_index_shard_with_unsorted_members_says_so(tmp_path: Path) -> None:
    files = [("a.png", png()), ("b.png", png()), ("a.txt", b"x"), ("b.txt", b"x")]
    assert {reason for _, reason in verdicts(scan_files(tmp_path, files))} == {"members_not_contiguous"}


def test_index_shard_with_keys_that_hold_dots_is_defective_and_keeps_its_other_samples(tmp_path: Path) -> None:
    dotted = [(f"film.v2.{idx:04d}.{kind}", b"x") for idx in range(520) for kind in ("jpg", "txt")]
    scan = scan_files(tmp_path, [*caption_files("a"), *dotted, *caption_files("b")])
    assert scan.defect is not None
    assert (scan.defect.reason, scan.defect.shard) == (Reason.SHARD_KEY_SHARED, str(tmp_path / "shard.tar"))
    assert "1040 files share the key 'film', at most 1026 make a sample; keys seem to hold dots" in scan.defect.what
    assert verdicts(scan) == [("a", ""), ("film", "unknown_member"), ("b", "")]
    assert "1040 files share this key" in scan.samples["detail"][1].as_py()


def many_times(number: int) -> list[tuple[str, bytes]]:
    """Return the members of a sample that shows its only image `number` times."""
    turns = [{"from": "human", "value": "<image>" * number}, {"from": "gpt", "value": "A ball."}]
    annotation = {"image": ["0.png"] * number, "conversations": turns}
    return [("k.0.png", png()), ("k.json", json.dumps(annotation).encode())]


def test_index_shard_decodes_an_image_that_is_shown_many_times_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = []

    def counting(data: bytes, limits: ImageLimits) -> Pixels:
        decoded.append(data)
        return decode_image(data, limits)

    monkeypatch.setattr("pipeline.index.scan.decode_image", counting)
    scan = scan_files(tmp_path, many_times(MAX_IMAGES))
    assert verdicts(scan) == [("k", "")]
    assert scan.samples["num_images"].to_pylist() == [MAX_IMAGES]
    assert scan.samples["image_widths"].to_pylist() == [[5] * MAX_IMAGES]
    assert decoded == [png()]


@pytest.mark.parametrize("number", [MAX_IMAGES + 1, 33_000])
def test_index_shard_with_too_many_image_places_rejects_the_sample(tmp_path: Path, number: int) -> None:
    scan = scan_files(tmp_path, many_times(number))
    assert verdicts(scan) == [("k", "sample_too_large")]
    assert scan.samples["detail"].to_pylist() == [f"{number} images, at most {MAX_IMAGES}"]


@pytest.mark.parametrize("samples_left", [0, 1, 2, 3])
def test_index_shard_of_cut_shard_keeps_complete_samples_and_the_whole_hash(tmp_path: Path, samples_left: int) -> None:
    files = [file for idx in range(5) for file in caption_files(f"k{idx}")]
    blocks_per_sample = 4  # two headers, two contents
    data = tar_bytes(files)[: (samples_left * blocks_per_sample + 3) * 512 + 7]
    path = tmp_path / "cut.tar"
    path.write_bytes(data)
    scan = index_shard(str(path), stat_shard(str(path)), Checks())
    assert isinstance(scan.defect, ShardError)
    assert scan.defect.reason == Reason.SHARD_TRUNCATED
    assert scan.defect.shard == str(path)
    good = [(f"k{idx}", "") for idx in range(samples_left)]
    assert verdicts(scan) == [*good, (f"k{samples_left}", "shard_truncated")]
    assert scan.sha256 == hashlib.sha256(data).hexdigest()


def test_index_shard_with_hostile_names_touches_no_file(tmp_path: Path) -> None:
    names = ["../../escape.txt", "/absolute.txt", "a\nb.txt", "C:\\x.txt"]
    before = sorted(tmp_path.rglob("*"))
    scan = scan_files(tmp_path, [(name, b"x") for name in names])
    assert [key for key, _ in verdicts(scan)] == ["../../escape", "/absolute", "a\nb", "C:\\x"]
    assert sorted(tmp_path.rglob("*")) == [*before, tmp_path / "shard.tar"]
