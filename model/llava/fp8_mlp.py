"""The gated MLP of a frozen decoder layer in FP8, with activation and quantisation in one pass over memory.

Numbers are those of three `Fp8Linear` around the activation, without the rounding to bfloat16 between them.

Shapes: M rows, D model width, I width of the MLP.
"""

import importlib
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.llava.fp8_linear import FP8, Fp8Linear, Quantized, multiply, quantize_rows

_MAX_WIDTH: Final = 16384
"""Of the rows that the kernels hold in registers."""
_SILU: Final = frozenset({"SiLU", "SiLUActivation"})
"""torch's class, and that of transformers."""


class Fp8GatedMlp(nn.Module):
    """`down(silu(gate(x)) * up(x))`, all three frozen; under the names that LLaMA's MLP has."""

    def __init__(self, gate: Fp8Linear, up: Fp8Linear, down: Fp8Linear) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = gate, up, down

    def forward(self, inputs: Tensor) -> Tensor:
        """Return `[..., D]` bfloat16."""
        gate, up, down = self.gate_proj, self.up_proj, self.down_proj
        out: Tensor = _GatedMlp.apply(  # type: ignore[no-untyped-call]
            inputs, *gate.weights, *up.weights, *down.weights
        )
        return out


def join_gated_mlps(layers: nn.ModuleList) -> None:
    """Put a joined MLP in the place of those of frozen FP8 layers without biases, with SiLU between them."""
    for parent in list(layers.modules()):
        for name, child in list(parent.named_children()):
            if _can_join(child):
                joined: Any = child
                setattr(parent, name, Fp8GatedMlp(joined.gate_proj, joined.up_proj, joined.down_proj))


def _can_join(module: nn.Module) -> bool:
    parts = dict(module.named_children())
    names = ("gate_proj", "up_proj", "down_proj")
    if parts.keys() != {*names, "act_fn"} or type(parts["act_fn"]).__name__ not in _SILU:
        return False
    linear = [part for name in names if isinstance(part := parts[name], Fp8Linear)]
    return len(linear) == len(names) and all(
        not part.learns and part.bias is None and part.out_features <= _MAX_WIDTH for part in linear
    )


class _GatedMlp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, *weights: Tensor) -> Tensor:
        gate_weight, gate_columns, up_weight, up_columns, down_weight, down_columns = _pairs(weights)
        rows = quantize_rows(inputs.reshape(-1, inputs.shape[-1]))
        gate, up = multiply(rows, gate_weight), multiply(rows, up_weight)
        ctx.save_for_backward(gate, up, *gate_columns, *up_columns, *down_columns)
        ctx.dtype = inputs.dtype
        out = multiply(Quantized(*_gate_to_fp8(gate, up)), down_weight)
        return out.view(inputs.shape)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        gate, up, *columns = ctx.saved_tensors
        gate_columns, up_columns, down_columns = _pairs(columns)
        (upstream,) = grad_outputs
        inner = multiply(quantize_rows(upstream.reshape(-1, upstream.shape[-1])), down_columns)
        gate_grad, up_grad = _pairs(_gate_gradients_to_fp8(inner, gate, up))
        inputs_grad = multiply(gate_grad, gate_columns) + multiply(up_grad, up_columns)
        return (inputs_grad.view(upstream.shape).to(ctx.dtype), *([None] * 12))


def _pairs(tensors: Any) -> list[Quantized]:
    return [Quantized(values, scales) for values, scales in zip(tensors[::2], tensors[1::2], strict=True)]


@torch.library.custom_op("ray_llava::gate_to_fp8", mutates_args=())
def _gate_to_fp8(gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Return `silu(gate) * up` `[M, I]` as e4m3 values and their scales `[M, 1]`."""
    if gate.is_cuda:
        values, scales = _kernels().gate_to_fp8(gate, up)
    else:
        values, scales = quantize_rows(F.silu(gate.float()) * up.float())
    return values, scales


@_gate_to_fp8.register_fake
def _(gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    return _empty_like_rows(gate)


@torch.library.custom_op("ray_llava::gate_gradients_to_fp8", mutates_args=())
def _gate_gradients_to_fp8(upstream: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of gate and up, each as values and scales, from that of `silu(gate) * up` `[M, I]`."""
    if gate.is_cuda:
        gate_values, gate_scales, up_values, up_scales = _kernels().gate_gradients_to_fp8(upstream, gate, up)
        return gate_values, gate_scales, up_values, up_scales
    wide, share = gate.float(), torch.sigmoid(gate.float())
    slope = share * (1 + wide * (1 - share))
    return (*quantize_rows(upstream * up.float() * slope), *quantize_rows(upstream * wide * share))


@_gate_gradients_to_fp8.register_fake
def _(upstream: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (*_empty_like_rows(gate), *_empty_like_rows(gate))


def _empty_like_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(rows, dtype=FP8), rows.new_empty((rows.shape[0], 1), dtype=torch.float32)


def _kernels() -> Any:
    return importlib.import_module("model.llava.fp8_kernels")
