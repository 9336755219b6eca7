"""Cross-entropy over supervised positions, summed, without holding all logits at once.

The caller divides by the token count of the whole global batch; a per-micro-batch mean would overweight ranks and
micro-batches with few targets.

Shapes: K targets, D language-model width, V vocabulary, C rows of one chunk.
"""

from typing import Any

import torch
from torch import Tensor

CHUNK_ROWS = 1024
"""Rows of logits alive at once on an accelerator: 1024 x 32000 float32 values are 125 MiB."""
CPU_CHUNK_ROWS = 256
"""On the CPU, where products this small already run at full speed."""


def cross_entropy_sum(
    hidden: Tensor,
    head_weight: Tensor,
    targets: Tensor,
    chunk_rows: int | None = None,
    target_losses: Tensor | None = None,
    *,
    head_bias: Tensor | None = None,
    cap: float | None = None,
) -> Tensor:
    """Return the sum over K of the cross-entropy of `hidden @ head_weight.T` against `targets`, float32 scalar.

    Only `chunk_rows` rows of logits exist at a time, also for the backward pass: gradients are formed while a chunk's
    logits are in memory and scaled later. A frozen `head_weight` costs no gradient. With K = 0 the result is a zero
    that is still attached to its inputs.

    Args:
        hidden: [K, D] hidden rows at the positions that predict a target.
        head_weight: [V, D] output embedding.
        targets: [K] int64 in 0..V-1.
        chunk_rows: C; None takes what suits the device.
        target_losses: [K] float32 without gradient; filled with the cross-entropy of each target.
        head_bias: [V] added to the logits (Phi 1 and 2).
        cap: logits l become cap * tanh(l / cap) (Gemma 2 to 4); None leaves them.
    """
    if chunk_rows is None:
        chunk_rows = CPU_CHUNK_ROWS if hidden.device.type == "cpu" else CHUNK_ROWS
    if hidden.shape[0] != targets.shape[0]:
        raise ValueError(f"{hidden.shape[0]} hidden rows but {targets.shape[0]} targets")
    needs_grad = torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in (hidden, head_weight, head_bias)
    )
    loss: Tensor = _CrossEntropySum.apply(  # type: ignore[no-untyped-call]
        hidden, head_weight, head_bias, targets, chunk_rows, needs_grad, target_losses, cap
    )
    return loss


class _CrossEntropySum(torch.autograd.Function):
    """Forward also forms d loss / d inputs for an upstream gradient of one; backward multiplies by the real one."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        head_weight: Tensor,
        head_bias: Tensor | None,
        targets: Tensor,
        chunk_rows: int,
        needs_grad: bool,
        target_losses: Tensor | None,
        cap: float | None,
    ) -> Tensor:
        loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
        compute = torch.get_autocast_dtype(hidden.device.type) if _is_autocast(hidden) else head_weight.dtype
        weight = head_weight.to(compute)
        wants_hidden = needs_grad and ctx.needs_input_grad[0]
        wants_weight = needs_grad and ctx.needs_input_grad[1]
        hidden_grad = torch.empty_like(hidden) if wants_hidden else None
        weight_grad: Tensor | None = None
        bias_grad = None
        if needs_grad and head_bias is not None and ctx.needs_input_grad[2]:
            bias_grad = torch.zeros_like(head_bias, dtype=torch.float32)
        for begin in range(0, hidden.shape[0], chunk_rows):
            rows, wanted = hidden[begin : begin + chunk_rows].to(compute), targets[begin : begin + chunk_rows, None]
            logits, slope = _finish_logits(rows @ weight.T, head_bias, cap)
            log_p = torch.log_softmax(logits, dim=-1, dtype=torch.float32)  # reads the logits only once
            picked = log_p.gather(1, wanted)
            loss -= picked.sum()
            if target_losses is not None:
                torch.neg(picked[:, 0], out=target_losses[begin : begin + chunk_rows])
            if not wants_hidden and not wants_weight and bias_grad is None:
                continue
            logits_grad = log_p.exp_().scatter_add_(1, wanted, log_p.new_full(wanted.shape, -1.0))
            if slope is not None:
                logits_grad *= slope
            if bias_grad is not None:
                bias_grad += logits_grad.sum(dim=0)
            logits_grad = logits_grad.to(compute)
            if hidden_grad is not None:
                hidden_grad[begin : begin + chunk_rows] = logits_grad @ weight
            if wants_weight:
                weight_grad = _add_product(weight_grad, logits_grad.T, rows)
        if wants_weight and weight_grad is None:  # no targets
            weight_grad = torch.zeros_like(head_weight, dtype=torch.float32)
        ctx.save_for_backward(hidden_grad, weight_grad, bias_grad)
        ctx.weight_dtype = head_weight.dtype
        return loss

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (scale,) = grad_outputs
        hidden_grad, weight_grad, bias_grad = ctx.saved_tensors
        # In place: a vocabulary's gradient is too large to be copied, and a second backward stops with torch's error.
        return (
            None if hidden_grad is None else hidden_grad * scale.to(hidden_grad.dtype),
            None if weight_grad is None else weight_grad.mul_(scale).to(ctx.weight_dtype),
            None if bias_grad is None else bias_grad.mul_(scale).to(ctx.weight_dtype),
            *(None,) * 5,
        )


def _finish_logits(logits: Tensor, bias: Tensor | None, cap: float | None) -> tuple[Tensor, Tensor | None]:
    """Add the bias and cap [C, V] logits; returns them, and the slope of the cap at each when there is one."""
    if bias is not None:
        logits = logits + bias.to(logits.dtype)
    if cap is None:
        return logits, None
    bent = torch.tanh(logits.float() / cap)
    return bent * cap, 1 - bent.square()


def _add_product(total: Tensor | None, left: Tensor, right: Tensor) -> Tensor:
    """Return total + left @ right in float32: in bfloat16 the sum would lose what the later chunks add."""
    if total is None:
        return (left @ right).float()
    if left.dtype == torch.float32:
        return total.addmm_(left, right)
    return total.add_(left @ right)


def _is_autocast(tensor: Tensor) -> bool:
    return torch.is_autocast_enabled(tensor.device.type)
