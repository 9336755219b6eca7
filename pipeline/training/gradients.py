"""Forward and backward of a rank-step: tower features of all its tiles, then one micro-batch after the other."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from pipeline.config import ExperimentConfig
from pipeline.training.batches import MicroBatch, PreparedStep
from pipeline.training.session import TrainingSession

TileFeatures = Callable[[MicroBatch], Tensor]
"""Gives the tower features [U, P, V] of a micro-batch's tiles."""


def accumulate_gradients(session: TrainingSession, prepared: PreparedStep, num_targets: float) -> Tensor:
    """Forward and backward of every micro-batch; returns this rank's share of the loss, detached."""
    device = session.workers.device
    total = torch.zeros((), device=device)
    scale = 1.0 / max(num_targets, 1.0)
    tile_features = frozen_features(session, prepared)
    for micro_batch in prepared.micro_batches:
        with _autocast(session.config, device):
            features = tile_features(micro_batch)
            loss = session.model.packed_loss(micro_batch.packed, features) * scale
        loss.backward()
        total += loss.detach()
    return total


def frozen_features(session: TrainingSession, prepared: PreparedStep) -> TileFeatures:
    """Encode all tiles of a rank-step at once, in full batches however its text is cut, without a graph."""
    with _autocast(session.config, session.workers.device):
        features = session.model.encode_vision(prepared.pixels, session.config.training.vision_batch_size)
    return lambda micro_batch: features.index_select(0, micro_batch.tiles)


def _autocast(config: ExperimentConfig, device: torch.device) -> AbstractContextManager[Any]:
    if config.training.precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)
