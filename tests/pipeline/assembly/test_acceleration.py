from collections.abc import Callable, Sequence
from functools import partialmethod
from typing import Literal

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPVisionConfig

from model.backbones.llama import LlavaConfig, LlavaLlamaForCausalLM
from model.fusion.packed import pack_samples
from model.hub.weights import set_trainable
from model.llava.attention import enable_packed_attention
from model.vision.vision_tower import VisionTower
from pipeline.assembly.acceleration import accelerate, compiled_layers
from pipeline.config import TrainingConfig

VOCAB = 97
PATCHES = 4


@pytest.fixture
def model() -> LlavaLlamaForCausalLM:
    torch.set_num_threads(1)
    torch.manual_seed(1)
    tower = CLIPVisionConfig(
        hidden_size=22, intermediate_size=26, num_hidden_layers=3, num_attention_heads=2, image_size=14, patch_size=7
    )
    config = LlavaConfig.from_dict(
        {
            "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 58, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.2, "mm_vision_tower": "random",
            "mm_vision_config": tower.to_dict(), "mm_vision_weights": "checkpoint", "mm_hidden_size": 22,
            "mm_projector_type": "mlp2x_gelu",
        }
    )  # fmt: skip
    model = LlavaLlamaForCausalLM(config)
    enable_packed_attention(model, "sdpa")
    set_trainable(model, "finetune")
    nn.Module.train(model)
    return model


def settings(gradient_checkpointing: bool | Literal["selective"] = False, compiled: bool = False) -> TrainingConfig:
    return TrainingConfig(
        global_batch_size=7, learning_rate=0.1, gradient_checkpointing=gradient_checkpointing, compile=compiled
    )


def gradients(model: LlavaLlamaForCausalLM, lengths: Sequence[int]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    rows = [torch.randint(0, VOCAB, (length,), generator=generator) for length in lengths]
    rows[0][1] = -200
    batch = pack_samples([(row, row.clamp(min=0)) for row in rows], [PATCHES])
    model.zero_grad()
    features = model.encode_vision(torch.randn(1, 3, 14, 14, generator=generator)).flatten(0, 1)
    model.packed_loss(batch, features).backward()
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("mode", [True, "selective"])
def test_accelerate_with_recomputation_keeps_gradients_and_runs_layers_again(
    model: LlavaLlamaForCausalLM, mode: bool | Literal["selective"]
) -> None:
    wanted = gradients(model, (5, 11))
    runs: list[nn.Module] = []
    for layer in model.model.layers:
        layer.mlp.act_fn.register_forward_hook(lambda module, *_: runs.append(module))
    accelerate(model, settings(mode))
    got = gradients(model, (5, 11))
    assert len(runs) == 2 * len(model.model.layers)
    assert len(got) == len(wanted)
    for ours, theirs in zip(got, wanted, strict=True):
        assert torch.equal(ours, theirs)


def test_accelerate_selective_recomputes_no_matrix_product(model: LlavaLlamaForCausalLM) -> None:
    operations: dict[bool | str, int] = {}
    modes: tuple[bool | Literal["selective"], ...] = (False, "selective", True)
    for mode in modes:
        accelerate(model, settings(mode))
        with FlopCounterMode(display=False) as counter:
            gradients(model, (5, 11))
        operations[mode] = counter.get_total_flops()
    assert operations["selective"] == operations[False] < operations[True]


def test_accelerate_compiled_layers_serve_other_samples_without_compiling_again(
    model: LlavaLlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    compilations = CompileCounter()
    eager: Callable[..., None] = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", partialmethod(eager, backend=compilations))
    wanted = [gradients(model, lengths) for lengths in ((5, 11), (17, 3, 7), (13,))]
    accelerate(model, settings(compiled=True))
    got = [gradients(model, (5, 11))]
    count = compilations.frame_count
    got += [gradients(model, lengths) for lengths in ((17, 3, 7), (13,))]
    assert compilations.frame_count == count > 0
    for ours, theirs in zip(got, wanted, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert torch.allclose(one, other, rtol=1e-4, atol=1e-5)


def test_compiled_layers_leave_out_tower_layers_that_are_never_run(model: LlavaLlamaForCausalLM) -> None:
    tower = model.get_vision_tower()
    assert isinstance(tower, VisionTower)
    used = list(tower.vision_tower.encoder.layers[:2])  # hidden state -2 of 3 layers
    assert compiled_layers(model) == [*model.model.layers, *used]
