"""A stage set up with FP8 layers, on the CPU: what is replaced, what learns, and that losses stay near bfloat16's."""

from typing import Any

import pytest
import torch
from transformers import CLIPVisionConfig

from model.backbones.llama import LlavaConfig, LlavaLlamaForCausalLM
from model.fusion.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from model.fusion.packed import pack_samples
from model.llava.attention import enable_packed_attention
from model.llava.fp8_linear import Fp8Linear, fp8_layers
from pipeline.assembly.parts import set_up_stage
from pipeline.config import ExperimentConfig
from pipeline.training.measures.flops import FlopModel

CPU = torch.device("cpu")
TOWER = CLIPVisionConfig(
    hidden_size=22, intermediate_size=26, num_hidden_layers=3, num_attention_heads=2, image_size=21, patch_size=7
)


def config_of(stage: str, linear_precision: str | None, **changes: Any) -> ExperimentConfig:
    training = {
        "global_batch_size": 2,
        "learning_rate": 1e-3,
        "precision": "bfloat16",
        "linear_precision": linear_precision,
        "compile": False,
    }
    return ExperimentConfig.model_validate(
        {
            "name": "tiny",
            "run_dir": "runs/tiny",
            "stage": stage,
            "data": {"shards": ["a.tar"], "max_length": 64},
            "model": {"language_model": "lm"},
            "training": training | {"master_dtype": changes.get("master", "float32")},
            "lora": {"rank": changes.get("rank"), "dropout": 0.0},
            "cluster": {"use_gpu": True},
        }
    )


def build(config: ExperimentConfig) -> LlavaLlamaForCausalLM:
    torch.manual_seed(5)
    config_values = {
        "vocab_size": 97,
        "hidden_size": 64,
        "intermediate_size": 112,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "mm_vision_tower": "random",
        "mm_vision_config": TOWER.to_dict(),
        "mm_vision_weights": "checkpoint",
        "mm_hidden_size": 22,
        "mm_projector_type": "mlp2x_gelu",
    }
    model = LlavaLlamaForCausalLM(LlavaConfig.from_dict(config_values))
    enable_packed_attention(model, "sdpa")
    torch.manual_seed(6)  # of the adapters
    set_up_stage(model, config.recipe, CPU)
    return model


def losses(config: ExperimentConfig, num_steps: int = 8) -> list[float]:
    """Train on the same few samples."""
    model = build(config)
    generator = torch.Generator().manual_seed(7)
    rows = [torch.randint(3, 97, (n,), generator=generator) for n in (9, 5, 14)]
    for row in rows[:2]:
        row[1] = IMAGE_TOKEN_INDEX
    labels = [row.masked_fill(row == IMAGE_TOKEN_INDEX, IGNORE_INDEX) for row in rows]
    batch = pack_samples(list(zip(rows, labels, strict=True)), [9, 9])
    pixels = torch.randn(2, 3, 21, 21, generator=generator)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=3e-3)
    found = []
    for _ in range(num_steps):
        for layer in fp8_layers(model):
            if layer.learns:
                layer.refresh()
        with torch.autocast("cpu", torch.bfloat16):
            loss = model.packed_loss(batch, model.encode_vision(pixels).flatten(0, 1)) / len(batch.targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


@pytest.mark.parametrize(
    ("stage", "changes"),
    [
        ("pretrain", {}),
        ("finetune", {"rank": 16}),
        ("finetune", {}),
        ("finetune", {"master": "bfloat16"}),
    ],
    ids=["pretrain", "adapters", "finetune", "finetune-bfloat16"],
)
def test_training_goes_like_in_bfloat16(stage: str, changes: dict[str, Any]) -> None:
    plain, got = losses(config_of(stage, None, **changes)), losses(config_of(stage, "fp8", **changes))
    assert got != plain
    assert got == pytest.approx(plain, rel=0.05)
    assert got[-1] < got[0] - 0.1


def test_all_of_the_decoder_and_nothing_else_is_replaced() -> None:
    model = build(config_of("pretrain", "fp8"))
    replaced = {name for name, part in model.named_modules() if isinstance(part, Fp8Linear)}
    assert len(replaced) == 7 * 2
    assert all(".layers." in name and "vision_tower" not in name for name in replaced)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        f"model.mm_projector.{part}" for part in ("0.weight", "0.bias", "2.weight", "2.bias")
    }


@pytest.mark.parametrize(("stage", "rank"), [("pretrain", None), ("finetune", None), ("finetune", 16)])
def test_flops_are_those_of_the_same_model(stage: str, rank: int | None) -> None:
    plain, fp8 = (FlopModel.of(build(config_of(stage, precision, rank=rank))) for precision in (None, "fp8"))
    assert fp8 == plain


def test_trained_parameters_keep_their_names() -> None:
    plain, fp8 = (build(config_of("finetune", precision)) for precision in (None, "fp8"))
    assert fp8.state_dict().keys() == plain.state_dict().keys()
    for (name, mine), (_, theirs) in zip(fp8.named_parameters(), plain.named_parameters(), strict=True):
        assert torch.equal(mine, theirs), name
