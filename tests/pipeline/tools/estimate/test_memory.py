"""Estimated memory against peaks that were measured on one H200 (docs/benchmarks), and what it says of changes."""

from typing import Any

import pytest
import torch

from benchmarks.step.shapes import llava_config
from model.backbones.llama import LlavaLlamaForCausalLM
from model.hub.weights import LlavaModel, set_trainable
from pipeline.config import ExperimentConfig, parse_config
from pipeline.tools.estimate.advice import changes_that_fit
from pipeline.tools.estimate.devices import device_named
from pipeline.tools.estimate.memory import estimate_memory

GIB = 2**30
OPTIMIZERS = ("adamw", "adamw_8bit")


def skeleton(shape: str, stage: Any) -> LlavaModel:
    with torch.device("meta"):
        model = LlavaLlamaForCausalLM(llava_config(shape))
    set_trainable(model, stage)
    return model


def make_config(stage: str, **training: Any) -> ExperimentConfig:
    return parse_config(
        {
            "name": "run", "run_dir": "run", "stage": stage, "data": {"shards": ["a.tar"]},
            "model": {"language_model": "lm"}, "cluster": {"use_gpu": True},
            "training": {
                "global_batch_size": 128, "learning_rate": 1, "micro_batch_tokens": 16384, "precision": "bfloat16",
                **training,
            },
        },
        where="test",
    )  # fmt: skip


FULL: Any = {"gradient_checkpointing": True}
SELECTIVE: Any = {"gradient_checkpointing": "selective"}
COMPILED: Any = {"compile": True}
NARROW: Any = {"master_dtype": "bfloat16"}


@pytest.mark.parametrize(
    ("shape", "stage", "ranks", "tokens", "training", "measured_gib"),
    [
        ("7b", "pretrain", 1, 25440, COMPILED, 87.6),
        ("7b", "pretrain", 1, 19022, COMPILED, 68.8),
        ("7b", "pretrain", 1, 25440, {}, 116.8),
        ("7b", "finetune", 1, 14443, COMPILED | NARROW, 109.8),
        ("7b", "finetune", 1, 14443, SELECTIVE | NARROW, 97.2),
        ("7b", "finetune", 1, 14443, COMPILED | FULL | NARROW, 57.0),
        ("7b", "finetune", 1, 5781, COMPILED | NARROW, 75.0),
        ("7b", "finetune", 2, 5719, COMPILED | NARROW, 50.5),
        ("7b", "finetune", 2, 11403, COMPILED | NARROW, 73.1),
        ("1.5b", "finetune", 1, 38006, COMPILED, 103.5),
        ("1.5b", "finetune", 1, 22807, COMPILED, 74.1),
        ("1.5b", "finetune", 2, 22804, COMPILED, 60.2),
        ("1.5b", "finetune", 1, 16191, {}, 78.2),
    ],
)
def test_estimate_meets_measured_peaks(
    shape: str, stage: str, ranks: int, tokens: int, training: dict[str, Any], measured_gib: float
) -> None:
    """Tokens are those of the longest row in the measured steps, which is not the budget."""
    sharding = {"sharding": "fsdp"} if ranks > 1 else {}
    config = make_config(stage, micro_batch_tokens=tokens, **training, **sharding)
    estimate = estimate_memory(skeleton(shape, stage), config.recipe, ranks, tokens, use_gpu=True)
    allocated = estimate.total - estimate.runtime  # measured was what torch allocated
    assert allocated / GIB == pytest.approx(measured_gib, rel=0.05)


def test_estimate_of_sharded_ranks_divides_what_is_sharded() -> None:
    model, config = skeleton("7b", "finetune"), make_config("finetune", sharding="fsdp")
    one, eight = (estimate_memory(model, config.recipe, ranks, 7919, use_gpu=True) for ranks in (1, 8))
    assert eight.gradients == one.gradients // 8
    assert eight.optimizer == 2 * eight.gradients
    assert one.weights // 8 < eight.weights < one.weights // 6  # the frozen tower stays whole
    assert eight.activations == one.activations


def test_estimate_of_eight_bit_moments_is_a_quarter_and_their_scales() -> None:
    model = skeleton("7b", "finetune")
    whole, ours = (
        estimate_memory(
            model,
            make_config("finetune", optimizer=name).recipe,
            1,
            7919,
            use_gpu=True,
        )
        for name in OPTIMIZERS
    )
    assert ours.optimizer / whole.optimizer == pytest.approx((1 + 4 / 256) / 4, rel=1e-3)  # norms stay in float32
    assert ours.total - ours.optimizer == whole.total - whole.optimizer


def test_changes_that_fit_to_eight_bit_moments_keep_them_possible() -> None:
    model, small = skeleton("7b", "finetune"), device_named("NVIDIA GeForce RTX 4090")
    config = make_config("finetune", optimizer="adamw_8bit")
    assert (
        changes_that_fit(model, config.recipe, 16, 16384, small.usable_bytes, use_gpu=True) == []
    )  # neither shards nor bfloat16 weights


def test_changes_that_fit_are_the_single_ones_that_would_do_else_the_first_ones_together() -> None:
    model, config = skeleton("7b", "finetune"), make_config("finetune", master_dtype="bfloat16")
    h100, small = device_named("H100"), device_named("NVIDIA GeForce RTX 4090")
    assert estimate_memory(model, config.recipe, 1, 16384, use_gpu=True).total > h100.usable_bytes
    fitting = changes_that_fit(model, config.recipe, 1, 16384, h100.usable_bytes, use_gpu=True)
    assert [change.overrides for change in fitting] == ["training.gradient_checkpointing=true"]
    assert all(change.total_bytes <= h100.usable_bytes for change in fitting)
    assert changes_that_fit(model, config.recipe, 1, 16384, small.usable_bytes, use_gpu=True) == []
    (together,) = changes_that_fit(
        model,
        make_config("finetune").recipe,
        16,
        16384,
        small.usable_bytes,
        use_gpu=True,
    )
    assert together.overrides.startswith("training.compile=true training.sharding=fsdp")
    assert together.total_bytes <= small.usable_bytes


def test_device_named_unknown_lists_what_is_known() -> None:
    with pytest.raises(ValueError, match=r"device 'Z9' is not known; known: B200, .*H100"):
        device_named("Z9")
