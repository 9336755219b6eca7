"""Image encoders of native resolution: the patches of many images in one row, each image attending within itself.

Shapes: U cells of all images, r side of a cell in patches, S = U * r^2 patches, C = 3 channels, p side of a patch in
pixels, V vision width. Patches are ordered cell by cell, and row by row inside a cell.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Any, Final, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.vision_utils import (
    get_vision_cu_seqlens,
    get_vision_interpolation_indices_and_weights,
    get_vision_position_ids,
    get_vision_window_index,
)

from model.vision.image_attention import ImageRows

Sizing = Literal["round", "fill"]
"""See `model.fusion.native_size`."""
Grids = Sequence[tuple[int, int]]
"""Rows and columns of the cells of each image."""
States = dict[int, Tensor]
"""Number of a hidden state -> [S, V]; 0 is what goes into the first layer."""


class NativeEncoder(NamedTuple):
    """What a tower of native resolution must know of an encoder."""

    sizing: Sizing
    """How images are sized."""
    run: Callable[[Any, Tensor, Grids, int, Collection[int]], States]
    """Model, normalised cells [U, 3, r * p, r * p], grids, r, numbers of the wanted states -> those states."""
    num_layers: Callable[[Any], int]
    """Config -> its number of layers."""
    merge: Callable[[Any], int]
    """Config -> r, when patches of a cell always become one feature; 1 leaves that to the projector's type."""


def run_naflex(model: Any, cells: Tensor, grids: Grids, side: int, wanted: Collection[int]) -> States:
    """Run SigLIP 2 NaFlex: position embeddings resized to each image's grid."""
    patch: int = model.config.patch_size
    # The patch embedding reads pixels row by row, with the channels innermost.
    pixels = _cut(cells, side, patch).permute(0, 2, 3, 1).flatten(1)
    table = model.embeddings
    embedded = table.patch_embedding(pixels.to(table.patch_embedding.weight.dtype))
    hidden = (embedded + _resized_positions(table, grids, side).to(embedded.dtype))[None]
    rows = ImageRows.of([height * width * side**2 for height, width in grids], hidden.device)
    states = {0: hidden[0]} if 0 in wanted else {}
    for number, layer in enumerate(model.encoder.layers[: max(wanted)], start=1):
        hidden = layer(hidden, rows)
        if number in wanted:
            states[number] = hidden[0]
    return states


def run_qwen(model: Any, cells: Tensor, grids: Grids, side: int, wanted: Collection[int]) -> States:
    """Run the encoder of Qwen2.5-VL (window attention) or Qwen3-VL (learnt positions): 2D rope on every patch.

    The two frames of a temporal patch are the same image twice, as the published processor does for pictures.
    """
    config = model.config
    pixels = _cut(cells, side, config.patch_size).unsqueeze(2)
    hidden = model.patch_embed(pixels.expand(-1, -1, config.temporal_patch_size, -1, -1).flatten(1))
    thw = torch.tensor([(1, height * side, width * side) for height, width in grids])
    lengths = [get_vision_cu_seqlens(thw)] * len(model.blocks)
    order = None
    if hasattr(model, "pos_embed"):
        indices, weights = get_vision_interpolation_indices_and_weights(
            thw, model.num_grid_per_side, mode="bilinear", align_corners=True, spatial_merge_size=side
        )
        taps = model.pos_embed(indices.to(hidden.device))
        hidden = hidden + (taps * weights.to(hidden.device)[:, :, None]).sum(1).to(hidden.dtype)
    if hasattr(config, "window_size"):
        order, windows = get_vision_window_index(
            thw, spatial_merge_size=side, window_size=config.window_size, patch_size=config.patch_size
        )
        whole = set(config.fullatt_block_indexes)
        lengths = [one if number in whole else windows for number, one in enumerate(lengths)]
    positions = model.rotary_pos_emb(hidden, get_vision_position_ids(thw, side).to(hidden.device))
    back = None if order is None else order.argsort().to(hidden.device)
    hidden, *positions = (_reordered(part, order, side) for part in (hidden, *positions))
    states = {0: _reordered(hidden, back, side)} if 0 in wanted else {}
    for number, block in enumerate(model.blocks[: max(wanted)], start=1):
        cu_seqlens = lengths[number - 1].to(hidden.device)
        hidden = block(hidden, cu_seqlens=cu_seqlens, position_embeddings=tuple(positions))
        if number in wanted:
            states[number] = _reordered(hidden, back, side)
    return states


def _cut(cells: Tensor, side: int, patch: int) -> Tensor:
    """Cut cells [U, 3, r p, r p] into patches [S, 3, p, p]."""
    num_cells = cells.shape[0]
    cut = cells.view(num_cells, 3, side, patch, side, patch).permute(0, 2, 4, 1, 3, 5)
    return cut.reshape(num_cells * side**2, 3, patch, patch)


def _reordered(rows: Tensor, order: Tensor | None, side: int) -> Tensor:
    """Put groups of r^2 rows [S, ...] in another order."""
    if order is None:
        return rows
    groups = rows.view(-1, side**2, *rows.shape[1:]).index_select(0, order.to(rows.device))
    return groups.flatten(0, 1)


def _resized_positions(table: nn.Module, grids: Grids, side: int) -> Tensor:
    """Return the position embeddings [S, V] of all images, in the order of the patches."""
    learnt: Any = table
    edge: int = learnt.position_embedding_size
    square = learnt.position_embedding.weight.view(edge, edge, -1).permute(2, 0, 1)[None]
    if square.device.type == "cpu":  # which resizes with antialiasing in float32 only
        square = square.float()
    resized = {
        (height, width): F.interpolate(
            square, (height * side, width * side), mode="bilinear", align_corners=False, antialias=True
        )[0]
        .unflatten(1, (height, side))
        .unflatten(3, (width, side))
        .permute(1, 3, 2, 4, 0)
        .reshape(height * width * side**2, -1)
        for height, width in dict.fromkeys(grids)
    }
    return torch.cat([resized[grid] for grid in grids])


SIGLIP2: Final = NativeEncoder("fill", run_naflex, lambda config: int(config.num_hidden_layers), lambda _: 1)
QWEN: Final = NativeEncoder(
    "round", run_qwen, lambda config: int(config.depth), lambda config: int(config.spatial_merge_size)
)
