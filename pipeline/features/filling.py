"""Filling the cache: every image of every shard through the frozen tower, once, shard by shard.

One process with the configured device. A shard counts when its table is written; a killed run continues with the next.
Samples whose content is defective are left out: training rejects them before it asks for features.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from model.fusion.resolution import grids_of
from model.hub.lone_tower import LoneTower
from model.vision.native_encoders import Grids
from model.vision.tile_encoding import encode_tiles
from pipeline.assembly.precision import autocast
from pipeline.config import Recipe, TrainingConfig
from pipeline.errors import DataError
from pipeline.features.opening import locate_cache, shards_with_images
from pipeline.features.tower import load_tower
from pipeline.index.index import ShardIndex
from pipeline.index.read import read_sample
from pipeline.parallel.ranks import pick_device
from pipeline.parallel.run_map import Progress
from pipeline.samples.encode import EncodedImage, SampleEncoder
from pipeline.samples.image import Pixels
from pipeline.stream.cached_features import FeatureCache
from pipeline.stream.feature_files import ShardWriter, image_key

TowerCall = Callable[[Pixels, Grids | None], Tensor]
"""uint8 tiles `[U, P, P, 3]`, and the grids of images of native resolution, to features `[U, P, V]` on the CPU."""

log = logging.getLogger(__name__)


class FillReport(NamedTuple):
    """What a run of the command did."""

    folder: str
    shards_written: int
    shards_present: int
    """Finished by an earlier run, every byte of them verified."""
    images: int
    """Distinct within their shard."""
    tiles: int
    num_bytes: int
    """Features written."""
    shards_repaired: int
    """Of those written: damaged before."""


def fill_cache(
    recipe: Recipe,
    index: ShardIndex,
    encoder: SampleEncoder,
    *,
    use_gpu: bool,
    progress: Progress | None = None,
) -> FillReport:
    """Compute and write the features of all shards that are not there yet.

    Args:
        recipe: names the cache and the tower.
        index: of the shards.
        encoder: cuts images into tiles.
        use_gpu: whether the tower runs on a GPU, see `pick_device`.
        progress: called after every shard with (shards done, shards in all).

    Raises:
        ConfigError: data.feature_cache is not set, or the tower cannot be read.
        OSError: storage failed; finished shards are kept.
    """
    lone, training = load_tower(recipe), recipe.training
    cache = locate_cache(recipe.data, training.precision, encoder, lone)
    encode = _tower_call(lone, pick_device(use_gpu, local_rank=0), training)
    wanted = shards_with_images(index)
    numbers = {shard.sha256: number for number, shard in reversed(list(enumerate(index.shards)))}
    todo = [shard for shard in wanted if not cache.is_sound(shard)]
    repaired = sum(cache.has(shard) for shard in todo)
    images = tiles = num_bytes = 0
    for done, shard in enumerate(todo):
        if progress is not None:
            progress(len(wanted) - len(todo) + done, len(wanted))
        found = _fill_shard(cache, index, numbers[shard.sha256], encoder, encode, training.vision_batch_size)
        images, tiles, num_bytes = images + found[0], tiles + found[1], num_bytes + found[2]
    return FillReport(cache.folder, len(todo), len(wanted) - len(todo), images, tiles, num_bytes, repaired)


def _fill_shard(
    cache: FeatureCache,
    index: ShardIndex,
    number: int,
    encoder: SampleEncoder,
    encode: TowerCall,
    batch_size: int,
) -> tuple[int, int, int]:
    """Write a shard's features; returns its images, tiles and bytes."""
    writer = ShardWriter(Path(cache.folder), index.shards[number].sha256)
    images = tiles = num_bytes = 0
    waiting: list[tuple[bytes, EncodedImage]] = []

    def compute() -> None:
        nonlocal tiles, num_bytes
        grids = None
        if encoder.resolution.sizing is not None:
            grids = grids_of([image.view for _, image in waiting], encoder.resolution)
        features = encode(np.concatenate([image.pixels for _, image in waiting]), grids)
        counts = [len(image.pixels) for _, image in waiting]
        for (key, image), own in zip(waiting, features.split(counts), strict=True):
            writer.add(key, image.view, own)
        tiles, num_bytes = tiles + len(features), num_bytes + features.nbytes
        waiting.clear()

    for key, image in _distinct_images(index, number, encoder):
        images += 1
        waiting.append((key, image))
        if sum(len(image.pixels) for _, image in waiting) >= batch_size:
            compute()
    if waiting:
        compute()
    writer.finish()
    return images, tiles, num_bytes


def _distinct_images(index: ShardIndex, number: int, encoder: SampleEncoder) -> Iterator[tuple[bytes, EncodedImage]]:
    known: set[bytes] = set()
    rows = np.flatnonzero(index.usable & (index.samples["shard"].to_numpy() == number))
    for row in rows.tolist():
        try:
            sample = encoder.with_frames(read_sample(index, row))
            for data, role in zip(
                sample.images, encoder.resolution.roles(len(sample.images), sample.is_video), strict=True
            ):
                key = image_key(data, role)
                if key not in known:
                    image = encoder.encode_image(data, role)
                    known.add(key)
                    yield key, image
        except DataError as error:
            log.warning("left out: %s", error)


def _tower_call(lone: LoneTower, device: torch.device, training: TrainingConfig) -> TowerCall:
    """Return what turns uint8 tiles `[U, H, W, 3]` into features `[U, P, V]` on the CPU, as training computes them."""
    lone.tower.to(device)

    def encode(pixels: Pixels, grids: Grids | None) -> Tensor:
        with torch.no_grad(), autocast(training.precision, device):
            tiles = torch.from_numpy(pixels)
            return encode_tiles(lone.tower, tiles, lone.stats, training.vision_batch_size, grids).cpu()

    return encode
