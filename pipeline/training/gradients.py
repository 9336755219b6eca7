"""Forward and backward of a rank-step: tower features of all its tiles, then one micro-batch after the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from model.llava.expert_balance import ExpertBalance
from model.llava.experts import num_experts
from pipeline.assembly.precision import autocast
from pipeline.training.batches import MicroBatch, PreparedStep
from pipeline.training.measures.sources import sum_by_source
from pipeline.training.session import TrainingSession
from pipeline.training.sharding import choose_reduction

TileFeatures = Callable[[MicroBatch], Tensor]
"""Gives the tower features [U, P, V] of a micro-batch's tiles."""


class LocalLoss(NamedTuple):
    """This rank's part of a step's loss, detached, on the device."""

    share: Tensor
    """float32 scalar; the ranks' shares add up to the loss of the step."""
    by_source: Tensor
    """float32 `[n]`, cross-entropy summed by source of the mix, not divided; n = 0 without a mix."""
    experts: Tensor
    """float32 `[1 + E]`, this rank's part of the balancing loss, then the loads of the experts; empty without it."""

    def tolist(self) -> list[float]:
        """Return the share, then the sources, then the experts, with a single copy from the device."""
        return torch.cat([self.share[None], self.by_source, self.experts]).tolist()


def accumulate_gradients(
    session: TrainingSession, prepared: PreparedStep, num_targets: float, num_tokens: float
) -> LocalLoss:
    """Forward and backward of every micro-batch; returns this rank's part of the loss.

    Args:
        session: of this rank.
        prepared: its part of the step.
        num_targets: supervised tokens of the step, over all ranks.
        num_tokens: fused tokens of the step, over all ranks.
    """
    device, num_sources = session.workers.device, len(session.plan.sources.names)
    experts, weight = _no_loads(session), session.training.expert_balance * num_targets / max(num_tokens, 1.0)
    share, by_source = torch.zeros((), device=device), torch.zeros(num_sources, device=device)
    scale = 1.0 / max(num_targets, 1.0)
    tower = session.model.get_vision_tower()
    is_frozen = tower is None or tower.frozen
    tile_features = frozen_features(session, prepared) if is_frozen else trained_features(session, prepared)
    last = len(prepared.micro_batches) - 1
    once_per_step = session.training.reduce_gradients == "step"
    for number, micro_batch in enumerate(prepared.micro_batches):
        choose_reduction(session.model, is_last=number == last, once_per_step=once_per_step)
        with autocast(session.training.precision, device):
            features = tile_features(micro_batch)
            target_losses = torch.zeros(micro_batch.target_sources.shape, device=device)
            balance = _balance(session, micro_batch, weight)
            loss = session.model.packed_loss(micro_batch.packed, features, target_losses, balance) * scale
        loss.backward()
        share += loss.detach()
        if balance is not None:
            share -= balance.loss * scale
            experts += torch.cat([balance.loss[None] * scale, balance.loads])
        by_source += sum_by_source(target_losses, micro_batch.target_sources, num_sources)
    return LocalLoss(share, by_source, experts)


def _no_loads(session: TrainingSession) -> Tensor:
    """Return zeros for the balancing loss and the load of every expert, nothing when loads are not balanced."""
    balanced = session.training.expert_balance > 0
    size = 1 + num_experts(session.model) if balanced else 0
    return torch.zeros(size, device=session.workers.device)


def _balance(session: TrainingSession, micro_batch: MicroBatch, weight: float) -> ExpertBalance | None:
    """Return what balances the experts of a micro-batch; the one token of an empty micro-batch does not count."""
    if session.training.expert_balance == 0 or micro_batch.packed.input_ids.shape[0] == 1:
        return None
    return ExpertBalance(weight, session.model.config.num_experts_per_tok)


def frozen_features(session: TrainingSession, prepared: PreparedStep) -> TileFeatures:
    """Encode all tiles of a rank-step at once, in full batches however its text is cut, without a graph.

    Features from a cache are taken as they are: they were computed in the same way.
    """
    if prepared.features is not None:
        features = prepared.features
    else:
        with autocast(session.training.precision, session.workers.device):
            features = session.model.encode_vision(prepared.pixels, session.training.vision_batch_size, prepared.grids)
    return lambda micro_batch: features.index_select(0, micro_batch.tiles)


def trained_features(session: TrainingSession, prepared: PreparedStep) -> TileFeatures:
    """Encode the tiles of a micro-batch when it is reached, with a graph that its backward pass frees again.

    A tile in several micro-batches is encoded for each, and one without tiles encodes a dummy: every rank's tower takes
    part in the same collectives.
    """
    chunk = session.training.vision_batch_size
    return lambda micro_batch: session.model.encode_vision(
        prepared.pixels.index_select(0, micro_batch.tiles), chunk, micro_batch.grids
    )
