"""What to change when a run would not fit: the smallest changes of the config that fit by the estimate."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from model.hub.weights import LlavaModel
from pipeline.config import Recipe
from pipeline.tools.estimate.memory import estimate_memory


class Change(NamedTuple):
    """A setting that lowers memory."""

    overrides: str
    """As on the command line."""
    total_bytes: int
    """Estimated peak with it."""


def changes_that_fit(
    model: LlavaModel, recipe: Recipe, num_ranks: int, tokens: int, usable_bytes: int, *, use_gpu: bool
) -> list[Change]:
    """Return each single change that fits; when none does, the first changes that fit together, else nothing.

    Args:
        model: skeleton.
        recipe: of the run that does not fit.
        num_ranks: number of workers W.
        tokens: fused tokens of its largest micro-batch.
        usable_bytes: memory of a rank.
        use_gpu: whether it is a GPU's.
    """
    candidates = list(_candidates(recipe, num_ranks, use_gpu=use_gpu))
    singles = [_apply(model, recipe, num_ranks, tokens, [change], use_gpu=use_gpu) for change in candidates]
    fitting = [change for change in singles if change.total_bytes <= usable_bytes]
    if fitting:
        return fitting
    together: list[dict[str, Any]] = []
    for candidate in candidates:
        together.append(candidate)
        change = _apply(model, recipe, num_ranks, tokens, together, use_gpu=use_gpu)
        if change.total_bytes <= usable_bytes:
            return [change]
    return []


def _candidates(recipe: Recipe, num_ranks: int, *, use_gpu: bool) -> Iterator[dict[str, Any]]:
    """Yield changes of the section `training`, those that cost least time first."""
    training = recipe.training
    if use_gpu and not training.compile:
        yield {"compile": True}
    is_plain = training.optimizer == "adamw"  # 8-bit AdamW goes with neither shards nor bfloat16 weights
    if num_ranks > 1 and training.sharding == "none" and recipe.lora.quantize_base is None and is_plain:
        yield {"sharding": "fsdp"}
    smaller = max(recipe.data.max_length, training.micro_batch_tokens // 2)
    if smaller < training.micro_batch_tokens:
        yield {"micro_batch_tokens": smaller}
    if not training.gradient_checkpointing and not training.compile:
        yield {"gradient_checkpointing": "selective"}
    if training.gradient_checkpointing is not True:
        yield {"gradient_checkpointing": True}
    if recipe.stage == "finetune" and training.master_dtype == "float32" and is_plain:
        yield {"master_dtype": "bfloat16"}


def _apply(
    model: LlavaModel, recipe: Recipe, num_ranks: int, tokens: int, changes: list[dict[str, Any]], *, use_gpu: bool
) -> Change:
    merged = {name: value for change in changes for name, value in change.items()}
    changed = recipe._replace(training=recipe.training.model_copy(update=merged))
    limit = min(tokens, changed.training.micro_batch_tokens)
    overrides = " ".join(f"training.{name}={str(value).lower()}" for name, value in merged.items())
    return Change(overrides, estimate_memory(model, changed, num_ranks, limit, use_gpu=use_gpu).total)
