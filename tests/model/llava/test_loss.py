import pytest
import torch
import torch.nn.functional as F

from model.llava.loss import cross_entropy_sum

K, D, V = 23, 11, 37


def inputs(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    hidden = torch.randn(K, D, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(V, D, generator=generator).to(dtype).requires_grad_()
    return hidden, weight, torch.randint(0, V, (K,), generator=generator)


@pytest.mark.parametrize("chunk_rows", [1, 5, K, 1000])
def test_loss_and_gradients_equal_full_cross_entropy(chunk_rows: int) -> None:
    hidden, weight, targets = inputs()
    full = F.cross_entropy(hidden @ weight.T, targets, reduction="sum")
    wanted = torch.autograd.grad(0.3 * full, [hidden, weight])
    loss = cross_entropy_sum(hidden, weight, targets, chunk_rows)
    got = torch.autograd.grad(0.3 * loss, [hidden, weight])
    assert torch.allclose(loss, full, rtol=1e-6)
    for ours, theirs in zip(got, wanted, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("cap", [None, 2.5])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("learns", ["all", "hidden", "bias"])
def test_bias_and_cap_equal_full_logits(cap: float | None, has_bias: bool, learns: str) -> None:
    hidden, weight, targets = inputs()
    bias = torch.linspace(-2, 3, V).requires_grad_() if has_bias else None
    hidden.requires_grad_(learns != "bias")
    weight.requires_grad_(learns == "all")
    tensors = [tensor for tensor in (hidden, weight, bias) if tensor is not None and tensor.requires_grad]
    logits = F.linear(hidden, weight, bias)
    logits = logits if cap is None else cap * torch.tanh(logits / cap)
    full = F.cross_entropy(logits, targets, reduction="sum")
    each = torch.zeros(K)
    loss = cross_entropy_sum(hidden, weight, targets, 5, each, head_bias=bias, cap=cap)
    assert torch.allclose(loss, full, rtol=1e-6)
    assert torch.allclose(each, F.cross_entropy(logits, targets, reduction="none"), rtol=1e-5)
    if not tensors:
        assert not loss.requires_grad
        return
    wanted, got = torch.autograd.grad(0.3 * full, tensors), torch.autograd.grad(0.3 * loss, tensors)
    for ours, theirs in zip(got, wanted, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def test_frozen_head_gets_no_gradient() -> None:
    hidden, weight, targets = inputs()
    (wanted,) = torch.autograd.grad(F.cross_entropy(hidden @ weight.T, targets, reduction="sum"), [hidden])
    cross_entropy_sum(hidden, weight.requires_grad_(False), targets, 5).backward()
    assert weight.grad is None
    torch.testing.assert_close(hidden.grad, wanted, rtol=1e-5, atol=1e-6)


def test_no_targets_is_an_attached_zero() -> None:
    hidden, weight, _ = inputs()
    loss = cross_entropy_sum(hidden[:0], weight, torch.zeros(0, dtype=torch.int64))
    loss.backward()
    assert loss.item() == 0.0
    assert hidden.grad is not None
    assert weight.grad is not None
    assert not hidden.grad.any()
    assert not weight.grad.any()


def test_loss_of_bfloat16_is_float32_and_gradients_keep_their_type() -> None:
    hidden, weight, targets = inputs(torch.bfloat16)
    loss = cross_entropy_sum(hidden, weight, targets, 4)
    loss.backward()
    full = F.cross_entropy(hidden.float() @ weight.float().T, targets, reduction="sum")
    assert loss.dtype == torch.float32
    assert torch.allclose(loss, full, rtol=2e-2)
    assert weight.grad is not None
    assert weight.grad.dtype == torch.bfloat16


def test_row_count_mismatch_is_refused() -> None:
    hidden, weight, targets = inputs()
    with pytest.raises(ValueError, match="22 hidden rows but 23 targets"):
        cross_entropy_sum(hidden[1:], weight, targets)


def test_frozen_rows_get_no_gradient_while_the_head_learns() -> None:
    hidden, weight, targets = inputs()
    (wanted,) = torch.autograd.grad(F.cross_entropy(hidden @ weight.T, targets, reduction="sum"), [weight])
    cross_entropy_sum(hidden.requires_grad_(False), weight, targets, 5).backward()
    assert hidden.grad is None
    torch.testing.assert_close(weight.grad, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("chunk_rows", [5, 1000, None])
@pytest.mark.parametrize("needs_grad", [False, True])
def test_loss_of_each_target_is_written_in_order(chunk_rows: int | None, needs_grad: bool) -> None:
    hidden, weight, targets = inputs()
    each = torch.full((K,), 99.0)
    with torch.set_grad_enabled(needs_grad):
        loss = cross_entropy_sum(hidden, weight, targets, chunk_rows, each)
    wanted = F.cross_entropy(hidden @ weight.T, targets, reduction="none").detach()
    torch.testing.assert_close(each, wanted)
    torch.testing.assert_close(loss.detach(), wanted.sum())
    assert (loss.requires_grad, each.requires_grad) == (needs_grad, False)


def test_autocast_computes_in_its_type_and_keeps_the_types_of_the_gradients() -> None:
    hidden, weight, targets = inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = cross_entropy_sum(hidden, weight, targets, 5)
    rounded = [one.detach().bfloat16() for one in (hidden, weight)]
    wanted = F.cross_entropy((rounded[0] @ rounded[1].T).float(), targets, reduction="sum")
    torch.testing.assert_close(loss.detach(), wanted, rtol=1e-5, atol=1e-4)
    loss.backward()
    assert hidden.grad is not None
    assert weight.grad is not None
    assert (hidden.grad.dtype, weight.grad.dtype) == (torch.float32, torch.float32)
