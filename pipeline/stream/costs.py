"""What every sample takes on the device, from its tokens, the tiles of its images, and what a config says of each."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from model.fusion.resolution import ImageView
from pipeline.config import CostConfig
from pipeline.index.dataset import IndexedData
from pipeline.samples.encode import SampleEncoder

_FILM = "film"


def sample_costs(cost: CostConfig, data: IndexedData, encoder: SampleEncoder) -> npt.NDArray[np.int64] | None:
    """Return nanoseconds per sample, int64 `[N]`; None where the config names no cost.

    Images of one size are cut once, so the work grows with the number of sizes, not of samples.
    """
    if not cost.is_set:
        return None
    tokens = data.tokens["num_tokens"].to_numpy().astype(np.float64)
    total = cost.token_ns * tokens + cost.token_pair_ns * tokens * tokens
    if cost.tile_ns:
        total += cost.tile_ns * num_tiles(data, encoder)
    if cost.megapixel_ns:
        total += cost.megapixel_ns * _megapixels(data)
    return np.asarray(np.maximum(1, np.rint(total)), np.int64)


def num_tiles(data: IndexedData, encoder: SampleEncoder) -> npt.NDArray[np.int64]:
    """Return the tower's tiles of each sample, int64 `[N]`."""
    samples = data.index.samples
    counts = samples["num_images"].to_numpy().astype(np.int64)
    widths, heights = (
        pc.list_flatten(samples[name]).to_numpy().astype(np.int64) for name in ("image_widths", "image_heights")
    )
    kinds = samples["kind"].to_numpy(zero_copy_only=False)
    # 1. The tiles of each size, alone in a sample and among several.
    several = np.repeat(counts > 1, counts)
    as_frames = np.repeat(kinds == "video", counts)
    keys = np.stack([heights, widths, several, as_frames], axis=1)
    unique, inverse = np.unique(keys, axis=0, return_inverse=True)
    tiles = np.array([_tiles_of(encoder, *map(int, key)) for key in unique], np.int64).reshape(-1)
    # 2. Their sum per sample.
    sample = np.repeat(np.arange(len(counts)), counts)
    found = np.bincount(sample, tiles[inverse.reshape(-1)], minlength=len(counts)).astype(np.int64)
    # 3. A film is as many tiles as it shows frames.
    for row in np.flatnonzero(kinds == _FILM).tolist():
        number, seconds = samples["video_frames"][row].as_py(), samples["video_seconds"][row].as_py()
        found[row] = encoder.num_frames(number, seconds)
    return found


def _tiles_of(encoder: SampleEncoder, height: int, width: int, several: int, as_frames: int) -> int:
    role = encoder.resolution.roles(2 if several else 1, bool(as_frames))[0]
    return encoder.resolution.tiling(ImageView(height, width, role)).num_tiles


def _megapixels(data: IndexedData) -> npt.NDArray[np.float64]:
    samples = data.index.samples
    counts = samples["num_images"].to_numpy().astype(np.int64)
    widths, heights = (
        pc.list_flatten(samples[name]).to_numpy().astype(np.float64) for name in ("image_widths", "image_heights")
    )
    frames = np.maximum(1, samples["video_frames"].to_numpy())
    sample = np.repeat(np.arange(len(counts)), counts)
    return np.asarray(np.bincount(sample, widths * heights / 1e6, minlength=len(counts)) * frames, np.float64)
