"""FlashAttention-4 on packed rows, as a torch operator that compiled layers keep whole.

The package `flash-attn-4` builds its kernels for the present GPU on first use. torch.compile cannot trace its autograd
function, and torch's own registration of it expects another release; this wrapper needs two functions of it only.
Source: https://github.com/Dao-AILab/flash-attention, folder flash_attn/cute.

Shapes: S tokens of all samples, B samples, A query heads, G key/value heads (A a multiple of G), E head width.
"""

import importlib
import importlib.util
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

_NAMESPACE: Final = "flash_attn"
_FOLDER: Final = "cute"
_CAPABILITIES: Final = {9: "Hopper", 10: "Blackwell", 11: "Blackwell"}
"""Compute capabilities, first number, whose kernels the package has for packed rows in both directions."""
_WIDTH_STEP: Final = 8
_MAX_WIDTH: Final = 128
"""Widest heads whose backward pass was tried here; the package takes some wider ones on some GPUs."""
_TRIAL_LENGTHS: Final = (131, 1, 65)
_TRIAL_BOUND: Final = 0.02


def flash_attention_4(
    query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, max_seqlen: int, window: int | None, scale: float
) -> Tensor:
    """Attend causally within each sample.

    Args:
        query: `[S, A, E]`, float16 or bfloat16.
        key: `[S, G, E]`.
        value: `[S, G, E]`.
        cu_seqlens: `[B + 1]` int32, where samples begin and the last one ends.
        max_seqlen: tokens of the longest sample.
        window: how many tokens a token sees, itself included; None for all before it.
        scale: factor on the scores.

    Returns:
        `[S, A, E]`.
    """
    left = -1 if window is None else window - 1
    out: Tensor
    out, _ = _forward(query.contiguous(), key.contiguous(), value.contiguous(), cu_seqlens, max_seqlen, left, scale)
    return out


@lru_cache(maxsize=1)
def is_installed() -> bool:
    """Whether the package is there, without importing anything; it shares its namespace with flash-attn 2."""
    spec = importlib.util.find_spec(_NAMESPACE)
    places = (spec.submodule_search_locations if spec is not None else None) or ()
    return any((Path(place) / _FOLDER).is_dir() for place in places)


@lru_cache(maxsize=8)
def missing_for(device: torch.device, dtype: torch.dtype, head_width: int, heads_per_group: int) -> str | None:
    """Return why packed rows cannot use FlashAttention-4 here, or None if they can.

    On a GPU that should do it, the kernels are built and compared with plain attention once: a package that does not
    fit this torch, driver or GPU shows here, not in a training step.

    Args:
        device: where attention runs.
        dtype: of query, key and value.
        head_width: E.
        heads_per_group: A / G.
    """
    if device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16):
        return f"it needs an NVIDIA GPU and half precision, here are {device.type} and {dtype}"
    major = torch.cuda.get_device_capability(device)[0]
    if major not in _CAPABILITIES:
        return f"it needs a Hopper or Blackwell GPU, this one has compute capability {major}.x"
    if head_width % _WIDTH_STEP or head_width > _MAX_WIDTH:
        return f"it needs heads of at most {_MAX_WIDTH} in steps of {_WIDTH_STEP}, these have {head_width}"
    if not is_installed():
        return "flash-attn-4 is not installed (pip install 'ray-llava[flash4]')"
    try:
        error = _trial_error(device, dtype, head_width, heads_per_group)
    except Exception as failure:  # compilers, drivers and other releases raise many types
        return f"a trial failed with {type(failure).__name__}: {str(failure)[:300]}"
    return None if error <= _TRIAL_BOUND else f"a trial differs from plain attention by {error:.3f} of its norm"


def _trial_error(device: torch.device, dtype: torch.dtype, head_width: int, heads_per_group: int) -> float:
    """Return the largest relative error of output and gradients on a small packed row, against float32."""
    total = sum(_TRIAL_LENGTHS)
    generator = torch.Generator(device).manual_seed(0)
    shapes = [(total, heads, head_width) for heads in (2 * heads_per_group, 2, 2)]
    leaves = [torch.randn(s, device=device, dtype=dtype, generator=generator).requires_grad_() for s in shapes]
    upstream = torch.randn(shapes[0], device=device, dtype=dtype, generator=generator)
    bounds = torch.tensor((0, *_TRIAL_LENGTHS), device=device).cumsum(0).int()
    scale = head_width**-0.5
    with torch.enable_grad():
        query, key, value = leaves
        out = flash_attention_4(query, key, value, bounds, max(_TRIAL_LENGTHS), None, scale)
        got = [out, *torch.autograd.grad(out, leaves, upstream)]
        exact = [leaf.detach().float().requires_grad_() for leaf in leaves]
        reference = _plain_attention(exact, scale)
        wanted = [reference, *torch.autograd.grad(reference, exact, upstream.float())]
    errors = [float((a.float() - b).norm() / b.norm()) for a, b in zip(got, wanted, strict=True)]
    return max(error if error == error else float("inf") for error in errors)  # NaN counts as wrong


def _plain_attention(inputs: list[Tensor], scale: float) -> Tensor:
    parts = zip(*(x.transpose(0, 1).split(_TRIAL_LENGTHS, dim=1) for x in inputs), strict=True)
    attend = torch.nn.functional.scaled_dot_product_attention
    outputs = [attend(q, k, v, is_causal=True, scale=scale, enable_gqa=True) for q, k, v in parts]
    return torch.cat(outputs, dim=1).transpose(0, 1)


@torch.library.custom_op("ray_llava::flash_attention_4", mutates_args=())
def _forward(
    query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, max_seqlen: int, left: int, scale: float
) -> tuple[Tensor, Tensor]:
    """Return the output `[S, A, E]` and the log-sum-exp of the scores `[A, S]` float32; `left` -1 means no window."""
    out, lse, *_ = _package()._flash_attn_fwd(
        query,
        key,
        value,
        return_lse=True,
        **_layout(cu_seqlens, max_seqlen, left, scale),
    )
    return out, lse


@_forward.register_fake
def _(
    query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, max_seqlen: int, left: int, scale: float
) -> tuple[Tensor, Tensor]:
    lse = query.new_empty((query.shape[1], query.shape[0]), dtype=torch.float32)
    return torch.empty_like(query, memory_format=torch.contiguous_format), lse


@torch.library.custom_op("ray_llava::flash_attention_4_backward", mutates_args=())
def _backward(
    upstream: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    left: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of query, key and value."""
    query_grad, key_grad, value_grad, *_ = _package()._flash_attn_bwd(
        query,
        key,
        value,
        out,
        upstream,
        lse,
        deterministic=torch.are_deterministic_algorithms_enabled(),
        **_layout(cu_seqlens, max_seqlen, left, scale),
    )
    return query_grad, key_grad, value_grad


@_backward.register_fake
def _(
    upstream: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    left: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    query_grad, key_grad, value_grad = (
        torch.empty_like(x, memory_format=torch.contiguous_format) for x in (query, key, value)
    )
    return query_grad, key_grad, value_grad


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, cu_seqlens, ctx.max_seqlen, ctx.left, ctx.scale = inputs
    ctx.save_for_backward(query, key, value, cu_seqlens, *output)


def _differentiate(ctx: Any, upstream: Tensor, _lse: Tensor) -> tuple[Tensor | None, ...]:
    query, key, value, cu_seqlens, out, lse = ctx.saved_tensors
    gradients = _backward(
        upstream.contiguous(), query, key, value, out, lse, cu_seqlens, ctx.max_seqlen, ctx.left, ctx.scale
    )
    return (*gradients, None, None, None, None)


_forward.register_autograd(_differentiate, setup_context=_keep_for_backward)


def _layout(cu_seqlens: Tensor, max_seqlen: int, left: int, scale: float) -> dict[str, Any]:
    """Return the keywords that forward and backward share: causal attention within the samples of a packed row.

    Without a window, which is the kernel's faster path, when every sample fits into it.
    """
    return {
        "cu_seqlens_q": cu_seqlens,
        "cu_seqlens_k": cu_seqlens,
        "max_seqlen_q": max_seqlen,
        "max_seqlen_k": max_seqlen,
        "softmax_scale": scale,
        "causal": True,
        "window_size_left": None if left < 0 or left + 1 >= max_seqlen else left,
    }


@lru_cache(maxsize=1)
def _package() -> Any:
    """Import the package when its kernels are first needed: that alone takes seconds."""
    return importlib.import_module(f"{_NAMESPACE}.{_FOLDER}.interface")
