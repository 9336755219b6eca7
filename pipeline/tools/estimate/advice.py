"""What to change when a run would not fit: the smallest changes of the config that the estimate says would do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from model.hub.weights import LlavaModel
from pipeline.config import ExperimentConfig
from pipeline.tools.estimate.memory import estimate_memory


class Change(NamedTuple):
    """A setting that lowers memory."""

    overrides: str
    """As on the command line."""
    total_bytes: int
    """Estimated peak with it."""


def changes_that_fit(
    model: LlavaModel, config: ExperimentConfig, num_ranks: int, tokens: int, usable_bytes: int
) -> list[Change]:
    """Return each single change that fits; when none does, the first changes that fit together, else nothing.

    Args:
        model: skeleton.
        config: the run that does not fit.
        num_ranks: number of workers W.
        tokens: fused tokens of its largest micro-batch.
        usable_bytes: memory of a rank.
    """
    singles = [_apply(model, config, num_ranks, tokens, [change]) for change in _candidates(config, num_ranks)]
    fitting = [change for change in singles if change.total_bytes <= usable_bytes]
    if fitting:
        return fitting
    together: list[dict[str, Any]] = []
    for candidate in _candidates(config, num_ranks):
        together.append(candidate)
        change = _apply(model, config, num_ranks, tokens, together)
        if change.total_bytes <= usable_bytes:
            return [change]
    return []


def _candidates(config: ExperimentConfig, num_ranks: int) -> Iterator[dict[str, Any]]:
    """Yield changes of the section `training`, those that cost least time first."""
    training = config.training
    if config.cluster.use_gpu and not training.compile:
        yield {"compile": True}
    is_plain = training.optimizer == "adamw"  # 8-bit AdamW goes with neither shards nor bfloat16 weights
    if num_ranks > 1 and training.sharding == "none" and config.lora.quantize_base is None and is_plain:
        yield {"sharding": "fsdp"}
    smaller = max(config.data.max_length, training.micro_batch_tokens // 2)
    if smaller < training.micro_batch_tokens:
        yield {"micro_batch_tokens": smaller}
    if not training.gradient_checkpointing and not training.compile:
        yield {"gradient_checkpointing": "selective"}
    if training.gradient_checkpointing is not True:
        yield {"gradient_checkpointing": True}
    if config.stage == "finetune" and training.master_dtype == "float32" and is_plain:
        yield {"master_dtype": "bfloat16"}


def _apply(
    model: LlavaModel, config: ExperimentConfig, num_ranks: int, tokens: int, changes: list[dict[str, Any]]
) -> Change:
    merged = {name: value for change in changes for name, value in change.items()}
    changed = config.model_copy(update={"training": config.training.model_copy(update=merged)})
    limit = min(tokens, changed.training.micro_batch_tokens)
    overrides = " ".join(f"training.{name}={str(value).lower()}" for name, value in merged.items())
    return Change(overrides, estimate_memory(model, changed, num_ranks, limit).total)
