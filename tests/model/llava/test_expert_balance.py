"""The balancing loss of experts: transformers' own for one sample, and the same however samples are packed."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.models.qwen3_moe.modeling_qwen3_moe import load_balancing_loss_func

from model.fusion.packed import PackedBatch, pack_samples
from model.hub.weights import LlavaModel, build_llava, set_trainable
from model.llava.expert_balance import ExpertBalance
from tests.model.tiny import save_tiny_backbone

ROWS = [[1, 5, 6, 7, 8], [7, 8, 9], [4, 5, 9, 2, 3, 3, 1]]


@pytest.fixture(params=["qwen3_moe", "gpt_oss", "qwen3_next"])
def model(request: pytest.FixtureRequest, tower_path: str, tmp_path: Path) -> LlavaModel:
    model = build_llava(save_tiny_backbone(request.param, tmp_path), tower_path)
    set_trainable(model, "finetune")
    model.train(False)
    return model


def packed(rows: list[list[int]]) -> PackedBatch:
    return pack_samples([(torch.tensor(row), torch.tensor(row)) for row in rows], [])


def balance_of(model: LlavaModel, rows: list[list[int]], weight: float = 1.0) -> tuple[torch.Tensor, ExpertBalance]:
    balance = ExpertBalance(weight, model.config.num_experts_per_tok)
    with_it = model.packed_loss(packed(rows), None, None, balance)
    return with_it - model.packed_loss(packed(rows), None), balance


def test_one_sample_has_the_loss_and_gradients_of_transformers(model: LlavaModel) -> None:
    own, _ = balance_of(model, ROWS[2:])
    router = next(p for name, p in model.named_parameters() if name.endswith(("mlp.gate.weight", "router.weight")))
    (got,) = torch.autograd.grad(own, [router])
    out: Any = model.get_model()(
        input_ids=torch.tensor([ROWS[2]]), output_router_logits=True, use_cache=False, attention_mask=None
    )
    experts = out.router_logits[0].shape[-1]
    theirs: Any = load_balancing_loss_func(out.router_logits, experts, model.config.num_experts_per_tok)
    (wanted,) = torch.autograd.grad(theirs, [router])
    assert torch.allclose(own, len(ROWS[2]) * theirs, rtol=1e-4)
    assert wanted.abs().max() > 0
    assert torch.allclose(got, len(ROWS[2]) * wanted, rtol=1e-3, atol=1e-5)


def test_packing_changes_neither_loss_nor_loads(model: LlavaModel) -> None:
    together, tally = balance_of(model, ROWS, weight=0.3)
    alone = [balance_of(model, [row], weight=0.3) for row in ROWS]
    assert torch.allclose(together, sum((loss for loss, _ in alone), torch.zeros(())), rtol=1e-4)
    assert torch.allclose(tally.loss, together.detach(), rtol=1e-3)
    assert torch.equal(tally.loads, sum((one.loads for _, one in alone), torch.zeros_like(tally.loads)))
    layers, top_k = model.config.num_hidden_layers, model.config.num_experts_per_tok
    assert tally.loads.sum() == sum(map(len, ROWS)) * layers * top_k
