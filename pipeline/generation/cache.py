"""Rows of a key-value cache: leaving out finished ones, and putting two batches together.

Rows end at the same position and are padded on the left, so caches of different lengths are joined by padding the
shorter one on the left. A layer with a window keeps only the newest positions and counts the others; one with linear
attention keeps running states.

Shapes: B rows, S positions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer, LinearAttentionLayer


def keep_rows(cache: DynamicCache, rows: Tensor, num_unused: int) -> None:
    """Keep some rows, in place, and drop the first positions, which are padding for all of them.

    Args:
        cache: of B rows.
        rows: int64 [up to B].
        num_unused: positions to drop.

    Raises:
        ValueError: a layer keeps something other than keys and values per position.
    """
    for layer in _layers(cache):
        if isinstance(layer, LinearAttentionLayer):
            for states in _running_states(layer):
                states.update({place: state[rows] for place, state in states.items() if state is not None})
            continue
        length = layer.get_seq_length() - num_unused
        if isinstance(layer, DynamicSlidingWindowLayer):
            layer.cumulative_length = length
            length = min(length, layer.sliding_window - 1)
        keys, values = _states(layer)
        surplus = keys.shape[-2] - length
        layer.keys, layer.values = keys[rows, :, surplus:], values[rows, :, surplus:]


def join_caches(first: DynamicCache, second: DynamicCache) -> None:
    """Append the rows of the second cache to the first, in place.

    Raises:
        ValueError: a layer keeps something other than keys and values per position.
    """
    for own, other in zip(_layers(first), _layers(second), strict=True):
        if isinstance(own, LinearAttentionLayer) or isinstance(other, LinearAttentionLayer):
            for states, more in zip(_running_states(own), _running_states(other), strict=True):
                both = ((place, state, more[place]) for place, state in states.items())
                states.update({place: torch.cat([a, b]) for place, a, b in both if a is not None and b is not None})
            continue
        own.keys, own.values = (_stack(*pair) for pair in zip(_states(own), _states(other), strict=True))
        if isinstance(own, DynamicSlidingWindowLayer):
            own.cumulative_length = max(own.cumulative_length, other.get_seq_length())


def join_masks(first: Tensor, second: Tensor) -> Tensor:
    """Put masks [B, S] of two batches over each other, the shorter one padded on the left."""
    width = max(first.shape[1], second.shape[1])
    return torch.cat([pad(mask, (width - mask.shape[1], 0)) for mask in (first, second)])


def _stack(first: Tensor, second: Tensor) -> Tensor:
    """Put [B, heads, S, width] of two batches over each other, the shorter one padded on the left."""
    length = max(first.shape[-2], second.shape[-2])
    return torch.cat([pad(states, (0, 0, length - states.shape[-2], 0)) for states in (first, second)])


def _layers(cache: DynamicCache) -> list[DynamicLayer | LinearAttentionLayer]:
    known = (DynamicLayer, DynamicSlidingWindowLayer, LinearAttentionLayer)
    layers: list[Any] = [layer for layer in cache.layers if type(layer) in known]
    if len(layers) < len(cache.layers):
        kinds = sorted({type(layer).__name__ for layer in cache.layers})
        raise ValueError(f"rows of a batch cannot be told apart in a cache with layers of {', '.join(kinds)}")
    return layers


def _running_states(layer: Any) -> tuple[dict[int, Tensor | None], dict[int, Tensor | None]]:
    """Return the states of linear attention, each [B, ...]; padding on the left leaves them at zero."""
    return layer.conv_states, layer.recurrent_states


def _states(layer: DynamicLayer) -> tuple[Tensor, Tensor]:
    """Return keys and values, both [B, heads, S, width]."""
    assert layer.keys is not None
    assert layer.values is not None
    return layer.keys, layer.values
