"""Forward and backward of a rank-step: tower features of all its images, then one micro-batch after the other."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from pipeline.config import ExperimentConfig
from pipeline.training.batches import PreparedStep
from pipeline.training.session import TrainingSession


def accumulate_gradients(session: TrainingSession, prepared: PreparedStep, num_targets: float) -> Tensor:
    """Forward and backward of every micro-batch; returns this rank's share of the loss, detached."""
    device = session.workers.device
    total = torch.zeros((), device=device)
    scale = 1.0 / max(num_targets, 1.0)
    with _autocast(session.config, device):
        features = session.model.encode_vision(prepared.pixels, session.config.training.vision_batch_size)
    for micro_batch in prepared.micro_batches:
        images = features[micro_batch.first_image : micro_batch.end_image].flatten(0, 1)
        with _autocast(session.config, device):
            loss = session.model.packed_loss(micro_batch.packed, images) * scale
        loss.backward()
        total += loss.detach()
    return total


def _autocast(config: ExperimentConfig, device: torch.device) -> AbstractContextManager[Any]:
    if config.training.precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)
