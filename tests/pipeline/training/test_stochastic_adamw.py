import pytest
import torch

from pipeline.training.stochastic_adamw import StochasticAdamW, round_stochastically

BETAS = (0.9, 0.999)


def build(parameter: torch.Tensor, lr: float, weight_decay: float = 0.0) -> StochasticAdamW:
    groups = [{"params": [parameter], "weight_decay": weight_decay}]
    return StochasticAdamW(groups, lr=lr, betas=BETAS, eps=1e-8, compiled=False)


def test_round_stochastically_between_two_values_is_exact_on_average_and_neighbouring() -> None:
    torch.manual_seed(1)
    exact = torch.tensor([1.0 + 3 / 1024, -0.3, 0.1, 7.0]).repeat(40_003, 1)
    rounded = round_stochastically(exact).float()
    assert torch.allclose(rounded.mean(0), exact[0], rtol=2e-4)
    assert set(rounded[:, 0].tolist()) == {1.0, 1.0078125}
    assert rounded[:, 3].unique().tolist() == [7.0]


def test_round_stochastically_keeps_infinity_and_zero() -> None:
    special = torch.tensor([torch.inf, -torch.inf, 0.0])
    assert round_stochastically(special).tolist() == [torch.inf, -torch.inf, 0.0]


def test_step_updates_far_below_bfloat16_resolution_survive() -> None:
    torch.manual_seed(2)
    ours, nearest = (torch.nn.Parameter(torch.ones(5003, dtype=torch.bfloat16)) for _ in range(2))
    optimizers = [build(ours, lr=1e-4), torch.optim.AdamW([nearest], lr=1e-4, weight_decay=0.0)]
    for _ in range(100):
        for parameter, optimizer in zip((ours, nearest), optimizers, strict=True):
            parameter.grad = torch.full_like(parameter, 0.5)
            optimizer.step()
    assert nearest.unique().tolist() == [1.0]
    assert ours.float().mean().item() == pytest.approx(1.0 - 100 * 1e-4, abs=1e-3)


def test_step_follows_float32_adamw_within_bfloat16_rounding() -> None:
    generator = torch.Generator().manual_seed(3)
    torch.manual_seed(4)
    start = torch.randn(31, 37, generator=generator).bfloat16()
    ours, exact = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.float())
    optimizer = build(ours, lr=0.01, weight_decay=0.1)
    reference = torch.optim.AdamW([exact], lr=0.01, betas=BETAS, eps=1e-8, weight_decay=0.1)
    for _ in range(11):
        gradient = torch.randn(31, 37, generator=generator)
        ours.grad, exact.grad = gradient.bfloat16(), gradient.bfloat16().float()
        optimizer.step()
        reference.step()
    moved = (exact - start.float()).norm()
    assert (ours.float() - exact).norm() < 0.2 * moved
    assert (optimizer.state[ours]["exp_avg_sq"].float() - reference.state[exact]["exp_avg_sq"]).norm() < (
        0.02 * reference.state[exact]["exp_avg_sq"].norm()
    )


def test_step_of_replicas_is_equal_whatever_each_has_drawn_and_draws_nothing_from_others() -> None:
    torch.manual_seed(5)
    start, gradients = torch.randn(1009).bfloat16(), [torch.randn(1009).bfloat16() for _ in range(3)]
    replicas = [torch.nn.Parameter(start.clone()) for _ in range(2)]
    for replica, drawn in zip(replicas, (0, 7), strict=True):
        torch.manual_seed(6)
        optimizer = build(replica, lr=1e-3)
        for gradient in gradients:
            torch.rand(drawn)  # dropout, or a rank that joined later
            before = torch.get_rng_state()
            replica.grad = gradient
            optimizer.step()
            assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(*replicas)
    torch.manual_seed(8)
    other = torch.nn.Parameter(start.clone())
    other.grad = gradients[0]
    build(other, lr=1e-3).step()
    first = torch.nn.Parameter(start.clone())
    torch.manual_seed(6)
    first.grad = gradients[0]
    build(first, lr=1e-3).step()
    assert not torch.equal(other, first)


def test_float32_parameter_is_refused() -> None:
    with pytest.raises(ValueError, match=r"found torch\.float32; use AdamW"):
        build(torch.nn.Parameter(torch.ones(3)), lr=0.1)
