import math

import pytest
import torch
from torch import nn

from pipeline.config import ConfigError, TrainingConfig
from pipeline.training.optim import build_optimizer, learning_rate_factor, set_learning_rate


class RMSNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(5))


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 7)
        self.norm = RMSNorm()
        self.mm_projector = nn.Sequential(nn.Linear(3, 5), nn.LayerNorm(5))
        self.frozen = nn.Linear(2, 2).requires_grad_(False)


def config(**changes: object) -> TrainingConfig:
    return TrainingConfig.model_validate({"global_batch_size": 4, "learning_rate": 2e-5, **changes})


def test_build_optimizer_groups_follow_the_published_recipe() -> None:
    model = Tiny()
    optimizer = build_optimizer(model, config(mm_projector_lr=1e-3, weight_decay=0.1))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = {
        tuple(names[id(parameter)] for parameter in group["params"]): (group["peak_lr"], group["weight_decay"])
        for group in optimizer.param_groups
    }
    assert groups == {
        ("layer.weight",): (2e-5, 0.1),
        ("layer.bias", "norm.weight"): (2e-5, 0.0),
        ("mm_projector.0.weight",): (1e-3, 0.1),
        ("mm_projector.0.bias", "mm_projector.1.weight", "mm_projector.1.bias"): (1e-3, 0.0),
    }


def test_build_optimizer_nothing_to_train_is_refused() -> None:
    with pytest.raises(ValueError, match="no parameter requires gradients"):
        build_optimizer(Tiny().requires_grad_(False), config())


def test_build_optimizer_eight_bit_without_its_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.training.optim._EIGHT_BIT_PACKAGE", "no_such_package")
    with pytest.raises(ConfigError, match=r"needs no_such_package, .* install ray-llava\[eightbit\]"):
        build_optimizer(Tiny(), config(optimizer="adamw_8bit"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"sharding": "fsdp"}, "cannot be sharded"), ({"master_dtype": "bfloat16"}, "rounds to nearest")],
)
def test_eight_bit_optimizer_with_what_it_cannot_do_is_refused(changes: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(optimizer="adamw_8bit", **changes)


def test_learning_rate_factor_warms_up_linearly_then_follows_a_cosine_to_zero() -> None:
    factors = [learning_rate_factor(step, 103, config(warmup_ratio=0.03)) for step in range(103)]
    assert factors[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert factors[4] == 1.0
    assert factors[4 + 33] == pytest.approx(0.5 * (1 + math.cos(math.pi / 3)))
    assert factors[-1] == pytest.approx(0.5 * (1 + math.cos(math.pi * 98 / 99)))
    assert factors[4:] == sorted(factors[4:], reverse=True)


def test_learning_rate_factor_constant_stays_at_the_peak() -> None:
    settings = config(warmup_ratio=0.0, lr_schedule="constant")
    assert {learning_rate_factor(step, 11, settings) for step in range(11)} == {1.0}


def test_set_learning_rate_scales_every_group_from_its_own_peak() -> None:
    optimizer = build_optimizer(Tiny(), config(mm_projector_lr=1e-3))
    assert set_learning_rate(optimizer, 0.5) == 5e-4
    assert sorted({group["lr"] for group in optimizer.param_groups}) == [1e-5, 5e-4]
