"""Packed micro-batches: several samples laid end to end as one row, described by index tensors made on the CPU.

Leaves embedding, attention and loss to the model; everything that depends on token *values* is decided here, so that
the accelerator never has to be asked for one.

Shapes: B samples, S fused length of all samples together, M image features, K supervised targets.
"""

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.fusion.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from model.fusion.feature_layout import FeatureLayout, RowSources, join_layouts, sources_of

IdArray: TypeAlias = Tensor | NDArray[np.integer]


class PackedBatch(NamedTuple):
    """One micro-batch without padding. Index tensors refer to positions `0..S-1` of the packed row."""

    input_ids: Tensor
    """[S] int64; IMAGE_TOKEN_INDEX once per image feature."""
    position_ids: Tensor
    """[S] int64; starts again at 0 with every sample."""
    cu_seqlens: Tensor
    """[B + 1] int32; cumulative sample lengths, first 0, last S."""
    max_seqlen: int
    """Longest sample, tokens."""
    image_positions: Tensor
    """[M] int64; where the image features go, in the order in which they are gathered."""
    target_positions: Tensor
    """[K] int64; positions whose next token in the same sample is supervised."""
    targets: Tensor
    """[K] int64; those next tokens."""
    text_positions: Tensor
    """[S - M] int64; the positions that are not image features."""
    seqlens: tuple[int, ...]
    """Sample lengths on the host, so that per-sample attention needs no device synchronisation."""
    image_sources: RowSources | None = None
    """What the image features are gathered from; None when they are the given features, all and in reading order."""

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "PackedBatch":
        """Return the batch with its tensors on `device`; host-side numbers stay as they are."""
        moved = [
            value.to(device, non_blocking=non_blocking) if isinstance(value, Tensor | RowSources) else value
            for value in self
        ]
        return PackedBatch._make(moved)


def pack_samples(samples: Sequence[tuple[IdArray, IdArray]], features_per_image: Sequence[int]) -> PackedBatch:
    """Lay samples end to end, giving every image placeholder as many positions as it has features.

    Args:
        samples: `(input_ids, labels)` per sample, both [T] integers with one IMAGE_TOKEN_INDEX per image in
            `input_ids`; label t belongs to token t. Labels at placeholders are ignored.
        features_per_image: feature rows per image (>= 1), over all images of all samples in reading order.

    Returns:
        The packed batch on the CPU. Without samples it holds a single unsupervised token with id 0, so that a rank
        that has no work can still take part in collectives.

    Raises:
        ValueError: a sample is empty, its ids and labels differ in length, an id is negative but no placeholder, or
            the placeholders and `features_per_image` disagree.
    """
    if not samples:
        if len(features_per_image):
            raise ValueError(f"no samples, but features_per_image describes {len(features_per_image)} images")
        return _empty_batch()
    ids_list, labels_list = _as_int64_rows(samples)
    lengths = torch.tensor([len(ids) for ids in ids_list])
    ids, labels = torch.cat(ids_list), torch.cat(labels_list)
    row = torch.repeat_interleave(torch.arange(len(samples)), lengths)
    is_image = ids == IMAGE_TOKEN_INDEX
    sizes = torch.tensor(list(features_per_image), dtype=torch.int64)
    _check_ids(ids, is_image, row, lengths)
    _check_images(is_image, row, sizes, num_rows=len(samples))

    repeats = torch.ones_like(ids).masked_scatter_(is_image, sizes)
    ids = ids.repeat_interleave(repeats)
    labels = labels.masked_fill(is_image, IGNORE_INDEX).repeat_interleave(repeats)
    row = row.repeat_interleave(repeats)
    seqlens = torch.bincount(row, minlength=len(samples))
    ends = seqlens.cumsum(0)

    # A target is the *next* token of the same sample: a sample's first label has no position that predicts it.
    supervised = (labels[1:] != IGNORE_INDEX) & (row[1:] == row[:-1])
    target_positions = supervised.nonzero().squeeze(1)
    is_image = ids == IMAGE_TOKEN_INDEX
    return PackedBatch(
        input_ids=ids,
        position_ids=torch.arange(len(ids)) - (ends - seqlens)[row],
        cu_seqlens=torch.cat([ends.new_zeros(1), ends]).to(torch.int32),
        max_seqlen=int(seqlens.max()),
        image_positions=is_image.nonzero().squeeze(1),
        target_positions=target_positions,
        targets=labels[target_positions + 1],
        text_positions=(~is_image).nonzero().squeeze(1),
        seqlens=tuple(seqlens.tolist()),
    )


def pack_images(
    samples: Sequence[tuple[IdArray, IdArray]],
    layouts: Sequence[FeatureLayout],
    first_tiles: Sequence[int],
    features_per_tile: int,
) -> PackedBatch:
    """Pack samples whose images consist of tiles, which several of them may share.

    Args:
        samples: as for `pack_samples`.
        layouts: of each image, over all images of all samples in reading order.
        first_tiles: where the tiles of each image begin among those that the model is given, which begin with tile 0
            and end with the last one that an image has.
        features_per_tile: feature rows of a tile.

    Raises:
        ValueError: as for `pack_samples`.
    """
    batch = pack_samples(samples, [layout.num_features for layout in layouts])
    if not layouts:
        return batch
    joined = join_layouts(layouts, first_tiles, features_per_tile)
    sources, places = sources_of(joined, joined.num_tiles * features_per_tile)
    return batch._replace(image_positions=batch.image_positions[places], image_sources=sources)


def _empty_batch() -> PackedBatch:
    nothing = torch.zeros(0, dtype=torch.int64)
    one_token = torch.zeros(1, dtype=torch.int64)
    return PackedBatch(
        input_ids=one_token,
        position_ids=one_token,
        cu_seqlens=torch.tensor([0, 1], dtype=torch.int32),
        max_seqlen=1,
        image_positions=nothing,
        target_positions=nothing,
        targets=nothing,
        text_positions=one_token,
        seqlens=(1,),
    )


def _as_int64_rows(samples: Sequence[tuple[IdArray, IdArray]]) -> tuple[list[Tensor], list[Tensor]]:
    ids_list: list[Tensor] = []
    labels_list: list[Tensor] = []
    for index, (ids, labels) in enumerate(samples):
        ids, labels = torch.as_tensor(ids, dtype=torch.int64), torch.as_tensor(labels, dtype=torch.int64)
        if ids.ndim != 1 or ids.shape != labels.shape or len(ids) == 0:
            raise ValueError(
                f"sample {index}: expected input_ids and labels of one equal length [T] with T >= 1, "
                f"found {tuple(ids.shape)} and {tuple(labels.shape)}"
            )
        ids_list.append(ids)
        labels_list.append(labels)
    return ids_list, labels_list


def _check_ids(ids: Tensor, is_image: Tensor, row: Tensor, lengths: Tensor) -> None:
    bad = ((ids < 0) & ~is_image).nonzero().squeeze(1)
    if len(bad):
        index = int(bad[0])
        sample = int(row[index])
        offset = index - int(lengths[:sample].sum())
        raise ValueError(
            f"sample {sample}: input_ids[{offset}] is {int(ids[index])}; only token ids >= 0 and the image "
            f"placeholder {IMAGE_TOKEN_INDEX} are allowed"
        )


def _check_images(is_image: Tensor, row: Tensor, sizes: Tensor, num_rows: int) -> None:
    num_placeholders = int(is_image.sum())
    if num_placeholders != len(sizes):
        per_sample = torch.bincount(row[is_image], minlength=num_rows).tolist()
        raise ValueError(
            f"{num_placeholders} image placeholders (per sample {per_sample}) but features_per_image describes "
            f"{len(sizes)} images; pass one entry per placeholder in reading order"
        )
    if len(sizes) and int(sizes.min()) < 1:
        image = int(sizes.argmin())
        raise ValueError(f"features_per_image[{image}] is {int(sizes[image])}; an image has at least one feature")
