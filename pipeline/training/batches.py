"""From a rank-step to micro-batches on the device, prepared in a thread while the step before it computes.

Shapes: S fused tokens of a micro-batch, U tiles of the rank-step's distinct images, H = W pixels.
"""

from __future__ import annotations

import queue
import threading
from collections import Counter
from collections.abc import Generator, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from model.fusion.feature_layout import FeatureLayout, layout_of
from model.fusion.packed import PackedBatch, pack_images
from model.fusion.resolution import ROLES, ImageView, Resolution, grids_of
from pipeline.plan.sources import NO_MIX, Sources
from pipeline.stream.rank_step import RankStep, Rejected
from pipeline.training.measures.metrics import StepCounts
from pipeline.training.measures.sources import SourceTally, tally_sources

_LAST_STEP_S = 5.0


class MicroBatch(NamedTuple):
    """One forward pass: packed tokens and which of the rank-step's tiles belong to it."""

    packed: PackedBatch
    tiles: Tensor
    """int64, on the device; the tile features that `packed` is made for, each once."""
    grids: tuple[tuple[int, int], ...] | None
    """Rows and columns of the images that those tiles show; None unless images have their native resolution."""
    target_sources: Tensor
    """int64 `[K]`, on the device; source of the mix that each target comes from, 0 without a mix."""


class PreparedStep(NamedTuple):
    """A rank-step ready to train on."""

    step: int
    micro_batches: tuple[MicroBatch, ...]
    pixels: Tensor
    """uint8 `[U, H, W, 3]` on the device, every distinct tile of the rank-step once; none if features are known."""
    counts: StepCounts
    """What this rank contributes."""
    tally: SourceTally
    """The same by source of the mix."""
    rejected: tuple[Rejected, ...]
    features: Tensor | None
    """Tower features of the tiles `[U, P, V]` on the device, read from a cache; None leaves them to be computed."""
    grids: tuple[tuple[int, int], ...] | None = None
    """Of all images, as in `MicroBatch`."""

    @property
    def reasons(self) -> dict[str, int]:
        """Rejected samples by reason."""
        return dict(Counter(entry.reason for entry in self.rejected))


def prepare(
    rank_step: RankStep, resolution: Resolution, device: torch.device, sources: Sources = NO_MIX
) -> PreparedStep:
    """Pack the samples of each micro-batch and copy everything to the device."""
    # 1. Take the samples apart again.
    texts = rank_step.text_lengths.tolist()
    num_images = rank_step.num_images.tolist()
    ids, labels = (part.long().split(texts) for part in (rank_step.input_ids, rank_step.labels))
    images = [part.tolist() for part in rank_step.image_ids.split(num_images)]
    tally = tally_sources(rank_step, labels, sources)
    found = _tiles_of(rank_step, resolution)
    pack = partial(_pack, found, resolution)
    micro_batches = []
    counts = StepCounts(
        images=float(sum(num_images)), tiles=float(rank_step.num_tiles), rejected=float(len(rank_step.rejected))
    )
    # 2. Pack each micro-batch and send it to the device.
    sample_idx = 0
    for batch_size in rank_step.batch_sizes.tolist():
        members = [idx for idx in range(sample_idx, sample_idx + batch_size) if texts[idx]]
        packed, tiles, grids = pack(
            [(ids[idx], labels[idx]) for idx in members], [image for idx in members for image in images[idx]]
        )
        if members:
            counts.tokens += float(len(packed.input_ids))
            counts.pairs += float(sum(length * (length + 1) // 2 for length in packed.seqlens))
        counts.samples += float(len(members))
        counts.targets += float(len(packed.targets))
        micro_batches.append(
            MicroBatch(
                packed=packed.to(device, non_blocking=True),
                tiles=tiles.to(device, non_blocking=True),
                grids=grids,
                target_sources=tally.of_targets(members).to(device, non_blocking=True),
            )
        )
        sample_idx += batch_size
    # 3. Send the pixels, or the features in their place.
    pixels = _copy_to(device, rank_step.pixels)
    features = None if rank_step.features is None else _copy_to(device, rank_step.features)
    return PreparedStep(
        rank_step.step, tuple(micro_batches), pixels, counts, tally, rank_step.rejected, features, _grids(found)
    )


def _copy_to(device: torch.device, large: Tensor) -> Tensor:
    """Copy a large tensor to the device, to a GPU from page-locked memory: from other memory the copy would block."""
    if device.type == "cuda" and not large.is_pinned():
        large = large.pin_memory()
    return large.to(device, non_blocking=True)


class _Tiles(NamedTuple):
    """Where a distinct image's tiles are in the rank-step, and what becomes of their features."""

    first: int
    layout: FeatureLayout
    grid: tuple[int, int] | None
    """Rows and columns of the tiles of an image of native resolution."""


def _grids(images: list[_Tiles]) -> tuple[tuple[int, int], ...] | None:
    """Return the grids of images, None when they are squares or there are none."""
    grids = tuple(image.grid for image in images if image.grid is not None)
    return grids or None


def _tiles_of(rank_step: RankStep, resolution: Resolution) -> list[_Tiles]:
    found: list[_Tiles] = []
    first = 0
    for height, width, role in rank_step.views.tolist():
        view = ImageView(height, width, ROLES[role])
        layout = layout_of(resolution, view)
        (grid,) = grids_of([view], resolution) if resolution.sizing is not None else (None,)
        found.append(_Tiles(first, layout, grid))
        first += layout.num_tiles
    if first != rank_step.num_tiles:
        raise ValueError(f"step {rank_step.step}: {rank_step.num_tiles} tiles, but its images have {first}")
    return found


def _pack(
    tiles: list[_Tiles], resolution: Resolution, samples: list[tuple[Tensor, Tensor]], images: list[int]
) -> tuple[PackedBatch, Tensor, tuple[tuple[int, int], ...] | None]:
    """Pack samples that show `images`; also return the tiles of these images, each once, and the images' grids."""
    used: list[int] = []
    first_tiles: dict[int, int] = {}
    for image in images:
        if image not in first_tiles:
            first_tiles[image] = len(used)
            used += range(tiles[image].first, tiles[image].first + tiles[image].layout.num_tiles)
    layouts = [tiles[image].layout for image in images]
    packed = pack_images(samples, layouts, [first_tiles[image] for image in images], resolution.tile_features)
    return packed, torch.tensor(used, dtype=torch.int64), _grids([tiles[image] for image in first_tiles])


def prepare_ahead(
    rank_steps: Iterator[RankStep], resolution: Resolution, device: torch.device, sources: Sources = NO_MIX
) -> Generator[PreparedStep, None, None]:
    """Yield prepared steps, always working on the next one in a thread while the caller computes.

    On a GPU the copies run on a stream of their own, so they overlap with compute. An error in the stream is raised
    here, in order. Closed early, it waits a little for the thread: what it works on may be the process's last.
    """
    results: queue.Queue[PreparedStep | BaseException | None] = queue.Queue(maxsize=1)
    stopped = threading.Event()
    side_stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def put(item: PreparedStep | BaseException | None) -> None:
        while not stopped.is_set():
            try:
                return results.put(item, timeout=0.2)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for rank_step in rank_steps:
                with torch.cuda.stream(side_stream):
                    prepared = prepare(rank_step, resolution, device, sources)
                if side_stream is not None:
                    side_stream.synchronize()
                put(prepared)
                if stopped.is_set():
                    return
            put(None)
        except BaseException as error:  # handed to the consumer, which raises it
            put(error)

    thread = threading.Thread(target=work, name="prepare-ahead", daemon=True)
    thread.start()
    try:
        while (item := results.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopped.set()
        thread.join(_LAST_STEP_S)  # with a limit: the data may be what is missing
