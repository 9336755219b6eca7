"""Grouped experts follow autocast, and compute what transformers' loop over experts computes."""

from pathlib import Path
from typing import Any

import pytest
import torch

from model.hub.weights import LlavaModel, build_llava
from model.llava.experts import experts_of
from tests.model.tiny import WIDTH, save_tiny_backbone


@pytest.fixture(params=["qwen3_moe", "gpt_oss"])
def model(request: pytest.FixtureRequest, tower_path: str, tmp_path: Path) -> LlavaModel:
    model = build_llava(save_tiny_backbone(request.param, tmp_path), tower_path)
    model.train(False)
    return model


def route(experts: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randn(17, WIDTH, generator=generator)
    chosen = torch.stack([torch.randperm(experts.num_experts, generator=generator)[:2] for _ in range(17)])
    return tokens, chosen, torch.rand(17, 2, generator=generator)


def run(experts: Any, implementation: str) -> tuple[torch.Tensor, torch.Tensor]:
    experts.config._experts_implementation = implementation
    out = experts(*route(experts))
    (gradient,) = torch.autograd.grad(out.float().square().sum(), [experts.gate_up_proj])
    return out, gradient


def test_grouped_products_equal_a_loop_over_experts(model: LlavaModel) -> None:
    experts: Any = experts_of(model)[0]
    assert experts.config._experts_implementation == "autocast_grouped_mm"
    got, wanted = run(experts, "autocast_grouped_mm"), run(experts, "eager")
    for ours, theirs in zip(got, wanted, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_experts_compute_in_the_type_of_autocast_and_learn_in_their_own(
    model: LlavaModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    experts: Any = experts_of(model)[0]
    types: list[torch.dtype] = []
    grouped = torch.nn.functional.grouped_mm

    def note(left: torch.Tensor, right: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        types.append(left.dtype)
        return grouped(left, right, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "grouped_mm", note)
    wanted, _ = run(experts, "autocast_grouped_mm")
    with torch.autocast("cpu", torch.bfloat16):
        got, gradient = run(experts, "autocast_grouped_mm")
    assert types == [torch.float32] * 2 + [torch.bfloat16] * 2
    assert gradient.dtype == torch.float32
    assert (got.float() - wanted).abs().max() / wanted.abs().max() < 0.03
