"""Triton kernels of the gated MLP in FP8: activation, product and quantisation in one pass over memory.

Generated code passes over each row twice, at a third of the bandwidth; here a program holds a row in registers.
Imported on GPUs only, where triton comes with torch. Shapes: M rows, I width of the MLP.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

MAX_WIDTH = 16384
_NUM_WARPS = 16


def gate_to_fp8(gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Return `silu(gate) * up` `[M, I]` as e4m3 values and scales `[M, 1]`."""
    rows, width = gate.shape
    values = torch.empty_like(gate, dtype=torch.float8_e4m3fn)
    scales = torch.empty(rows, 1, dtype=torch.float32, device=gate.device)
    if rows:
        _gate_kernel[(rows,)](
            gate, up, values, scales, width, block=triton.next_power_of_2(width), num_warps=_NUM_WARPS
        )
    return values, scales


def gate_gradients_to_fp8(upstream: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of gate and up, each as e4m3 values and scales, from that of `silu(gate) * up`."""
    rows, width = gate.shape
    gate_values, up_values = (torch.empty_like(gate, dtype=torch.float8_e4m3fn) for _ in range(2))
    gate_scales, up_scales = (torch.empty(rows, 1, dtype=torch.float32, device=gate.device) for _ in range(2))
    if rows:
        _gate_gradient_kernel[(rows,)](
            upstream,
            gate,
            up,
            gate_values,
            gate_scales,
            up_values,
            up_scales,
            width,
            block=triton.next_power_of_2(width),
            num_warps=_NUM_WARPS,
        )
    return gate_values, gate_scales, up_values, up_scales


@triton.jit  # type: ignore[untyped-decorator]
def _gate_kernel(gate_ptr, up_ptr, values_ptr, scales_ptr, width, block: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, block)
    inside = columns < width
    place = row * width + columns
    gate = tl.load(gate_ptr + place, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + place, mask=inside, other=0.0).to(tl.float32)
    result = gate * tl.sigmoid(gate) * up
    _store_row(result, values_ptr + place, scales_ptr + row, inside)


@triton.jit  # type: ignore[untyped-decorator]
def _gate_gradient_kernel(  # type: ignore[no-untyped-def]
    upstream_ptr,
    gate_ptr,
    up_ptr,
    gate_values_ptr,
    gate_scales_ptr,
    up_values_ptr,
    up_scales_ptr,
    width,
    block: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, block)
    inside = columns < width
    place = row * width + columns
    upstream = tl.load(upstream_ptr + place, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(gate_ptr + place, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + place, mask=inside, other=0.0).to(tl.float32)
    share = tl.sigmoid(gate)
    _store_row(upstream * gate * share, up_values_ptr + place, up_scales_ptr + row, inside)
    slope = share * (1.0 + gate * (1.0 - share))
    _store_row(upstream * up * slope, gate_values_ptr + place, gate_scales_ptr + row, inside)


@triton.jit
def _store_row(row, values_ptr, scale_ptr, inside):  # type: ignore[no-untyped-def]
    # as in `quantize_rows`; tl.max leaves NaN out, the values keep it
    scale = tl.maximum(tl.max(tl.abs(row), 0), 1e-30) / 448.0
    tl.store(values_ptr, (row / scale).to(tl.float8e4nv), mask=inside)
    tl.store(scale_ptr, scale)
