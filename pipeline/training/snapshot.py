"""Taking a snapshot of a run: what of it goes into a checkpoint. How the folder is written is left to `checkpoint`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pipeline.training.session import TrainingSession
from pipeline.training.state import collect


def save_checkpoint(session: TrainingSession, next_step: int) -> None:
    """Save weights, optimizer, RNG and position as one transaction; all ranks take part, rank 0 writes.

    Raises:
        LedgerError: samples planned and samples accounted for differ.
    """
    session.ledger.check(session.plan.num_planned(next_step))
    tensors: dict[str, dict[str, Tensor]] = collect(session.model, session.optimizer, keep=session.workers.is_first)
    generators = session.workers.gather(random_state(session.workers.device))
    if session.workers.is_first:
        tensors["random"] = {
            f"{name}.{rank}": state for rank, own in enumerate(generators) for name, state in own.items()
        }
        session.store.save(next_step, tensors, _checkpoint_facts(session))
    session.workers.barrier()


def random_state(device: torch.device) -> dict[str, Tensor]:
    """Return this process's generator states."""
    states = {"cpu": torch.get_rng_state()}
    return states | {"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else states


def _checkpoint_facts(session: TrainingSession) -> Mapping[str, Any]:
    return {
        "plan_fingerprint": session.plan.fingerprint,
        "ledger": session.ledger.to_json(),
        "world_size": session.workers.world_size,
        "config": session.config.model_dump(mode="json"),
    }
