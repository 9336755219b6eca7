"""Copies are found by what two files have in common, not by their bytes; different pictures are left apart."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PillowImage

from pipeline.index.hygiene.duplicates import OVERLAPS, Prints, duplicate_of, group_pictures, image_copies, overlap_with
from pipeline.index.hygiene.near import FEW, MANY, Closeness, near_pairs
from pipeline.index.scan import Checks, ShardScan, index_shard
from pipeline.samples.image import Pixels
from pipeline.samples.image_hash import print_of
from pipeline.shards.storage import stat_shard
from tests.pipeline.shards.archives import write_tar


def photo(seed: int, height: int = 61, width: int = 83) -> Pixels:
    """Return a picture with large and small forms and a colour of its own."""
    rng = np.random.default_rng(seed)
    layers = [
        np.asarray(
            PillowImage.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).resize(
                (width, height), PillowImage.Resampling.BICUBIC
            ),
            dtype=np.float64,
        )
        for side in (3, 5, 11)
    ]
    return (0.5 * layers[0] + 0.3 * layers[1] + 0.2 * layers[2]).astype(np.uint8)


def encoded(pixels: Pixels, kind: str = "png", quality: int = 60, scale: float = 1) -> bytes:
    image = PillowImage.fromarray(pixels)
    image = image.resize((round(image.width * scale), round(image.height * scale)), PillowImage.Resampling.BICUBIC)
    data = io.BytesIO()
    image.save(data, kind, quality=quality)
    return data.getvalue()


def sample(key: str, text: str, *images: bytes) -> list[tuple[str, bytes]]:
    turns = [{"from": "human", "value": "<image>" * len(images) + "What is shown?"}, {"from": "gpt", "value": text}]
    files = [(f"{key}.{idx}.png", data) for idx, data in enumerate(images)]
    return [*files, (f"{key}.json", json.dumps({"conversations": turns}).encode())]


def scan_of(path: Path, files: list[tuple[str, bytes]], checks: Checks | None = None) -> ShardScan:
    url = write_tar(path, files)
    return index_shard(url, stat_shard(url), checks or Checks())


@pytest.fixture
def scan(tmp_path: Path) -> ShardScan:
    one, two = photo(1), photo(2)
    files = [
        *sample("a", "A red field.", encoded(one)),
        *sample("b", "a red  field", encoded(one, "jpeg")),
        *sample("c", "Another text.", encoded(one, scale=0.5)),
        *sample("d", "A red field.", encoded(two)),
        *sample("e", "Only text, and the same twice."),
        *sample("f", "only text - and the same twice"),
        *sample("g", "In this order.", encoded(one), encoded(two)),
        *sample("h", "In this order.", encoded(two), encoded(one)),
        *sample("i", "In this order.", encoded(one, "jpeg"), encoded(two, "jpeg", 90)),
        *sample("j", "A red field.", b"no picture"),
    ]
    return scan_of(tmp_path / "shard.tar", files)


def test_duplicate_of_names_the_earlier_sample_with_the_same_text_and_pictures_in_order(scan: ShardScan) -> None:
    prints = Prints.of(scan.samples)
    groups = group_pictures(prints)
    assert duplicate_of(scan.samples, prints, groups).tolist() == [-1, 0, -1, -1, -1, 4, -1, -1, 6, -1]


def test_image_copies_counts_other_samples_with_the_picture(scan: ShardScan) -> None:
    prints = Prints.of(scan.samples)
    assert image_copies(scan.samples, prints, group_pictures(prints)).tolist() == [5, 5, 5, 3, 0, 0, 5, 5, 5, 0]


def test_overlap_with_another_index_tells_text_from_image(scan: ShardScan, tmp_path: Path) -> None:
    held_out = [
        *sample("x", "What no other says.", encoded(photo(2), "jpeg", 40)),
        *sample("y", "Another text.", encoded(photo(7))),
    ]
    other = scan_of(tmp_path / "other.tar", held_out)
    found = overlap_with(scan.samples, Prints.of(scan.samples), other.samples)
    names = [OVERLAPS[one] for one in found]
    assert names == ["none", "none", "text", "image", "none", "none", "image", "image", "image", "none"]


def test_prints_without_decoded_pictures_find_texts_only(tmp_path: Path) -> None:
    files = [*sample("a", "One and the same.", encoded(photo(1))), *sample("b", "One and the same.", encoded(photo(1)))]
    files += [*sample("c", "A text alone."), *sample("d", "A text alone.")]
    scan = scan_of(tmp_path / "s.tar", files, Checks(images="header"))
    prints = Prints.of(scan.samples)
    assert duplicate_of(scan.samples, prints, group_pictures(prints)).tolist() == [-1, -1, -1, 2]


@pytest.mark.parametrize("closeness", [FEW, MANY, Closeness(2, 6)])
def test_near_pairs_are_those_of_comparing_all_with_all(closeness: Closeness) -> None:
    rng = np.random.default_rng(5)
    hashes = rng.integers(0, 2**63, 211, dtype=np.uint64)
    for row in range(0, 200, 5):  # some with 0 to 8 bits changed
        bits = rng.choice(64, row % 9, replace=False)
        hashes[row + 1] = hashes[row] ^ np.uint64(sum(1 << int(bit) for bit in bits))
    lefts, rights = near_pairs(hashes, closeness)
    distance = np.bitwise_count(hashes[:, None] ^ hashes[None])
    wanted = [(i, j) for i, j in zip(*np.nonzero(distance <= closeness.max_bits), strict=True) if i < j]
    assert list(zip(lefts.tolist(), rights.tolist(), strict=True)) == wanted
    assert len(wanted) > 9


def test_print_of_one_colour_is_compared_with_nothing_but_its_equal() -> None:
    white, grey = np.full((17, 23, 3), 255, np.uint8), np.full((17, 23, 3), 120, np.uint8)
    assert print_of(white).hash == 0
    assert print_of(white).colours != print_of(grey).colours
    assert print_of(photo(3)).hash != 0
