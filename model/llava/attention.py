"""Block-diagonal causal attention for packed rows, registered with transformers' attention interface.

A packed call hands `Segments` to the decoder as the keyword `segments`; each token then sees only earlier tokens of its
own sample. Without `segments` (padded batches, generation, vision towers) the same names behave as plain `sdpa`.

Shapes: S tokens of all samples, A query heads, G key/value heads (A a multiple of G), E head width.
"""

import importlib.util
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, Literal, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from model.fusion.packed import PackedBatch

AttentionKernel = Literal["auto", "sdpa", "varlen", "flash_attention_2", "flex"]
ChosenKernel = Literal["sdpa", "varlen", "flash_attention_2", "flex"]
_PREFIX: Final = "packed_"


@dataclass(eq=False)
class Segments:
    """The samples of a packed row, on the device and on the host.

    A plain object rather than a tuple, of which torch.compile would guard every length and compile a layer again for
    each new number of samples; compiled layers read the kernel, `cu_seqlens` and `max_seqlen` only.
    """

    kernel: ChosenKernel
    """What runs."""
    cu_seqlens: Tensor
    """[B + 1] int32."""
    max_seqlen: int
    seqlens: tuple[int, ...]
    block_mask: BlockMask | None
    """Only for `flex`, where it is made once for all layers."""


def enable_packed_attention(model: PreTrainedModel, kernel: AttentionKernel = "auto") -> None:
    """Make `model` accept packed rows, computed with `kernel`.

    Args:
        model: any transformers model that dispatches through the attention interface.
        kernel: `sdpa` runs scaled_dot_product_attention sample by sample (every device and dtype), `varlen` torch's
            own flash kernel (CUDA, half precision), `flash_attention_2` the flash-attn package, `flex` compiled
            flex_attention. `auto` takes `varlen`, else `flash_attention_2`, on CUDA in half precision, else `sdpa`.

    Raises:
        ValueError: `kernel` is unknown or not installed.
    """
    if kernel not in get_args(AttentionKernel):
        raise ValueError(f"attention kernel {kernel!r} is unknown; known: {', '.join(get_args(AttentionKernel))}")
    if kernel == "varlen" and not _has_varlen():
        raise ValueError("attention kernel 'varlen' needs torch.nn.attention.varlen of torch 2.11 or newer; use 'sdpa'")
    if kernel == "flash_attention_2" and not _has_flash_attn():
        raise ValueError("attention kernel 'flash_attention_2' needs the flash-attn package; install it or use 'auto'")
    for name in get_args(AttentionKernel):
        AttentionInterface.register(_PREFIX + name, attention_forward)
        AttentionMaskInterface.register(_PREFIX + name, sdpa_mask)
    model.set_attn_implementation(_PREFIX + kernel)


def packed_kernel(model: PreTrainedModel) -> AttentionKernel | None:
    """Return the kernel chosen by `enable_packed_attention`, or None."""
    name: str = model.config._attn_implementation or ""
    return name.removeprefix(_PREFIX) if name.startswith(_PREFIX) else None  # type: ignore[return-value]


def segments_of(batch: PackedBatch, kernel: AttentionKernel, dtype: torch.dtype = torch.float32) -> Segments:
    """Describe the samples of `batch` for the given kernel; `dtype` is what attention computes in."""
    chosen = choose_kernel(kernel, batch.cu_seqlens.device, dtype)
    block_mask = _document_mask(batch) if chosen == "flex" else None
    return Segments(chosen, batch.cu_seqlens, batch.max_seqlen, batch.seqlens, block_mask)


def choose_kernel(kernel: AttentionKernel, device: torch.device, dtype: torch.dtype) -> ChosenKernel:
    """Resolve `auto`: the fastest installed kernel for `device` and `dtype`."""
    if kernel != "auto":
        return kernel
    if device.type == "cuda" and dtype in (torch.float16, torch.bfloat16):
        if _has_varlen():
            return "varlen"
        if _has_flash_attn():
            return "flash_attention_2"
    return "sdpa"


def no_mask(device: torch.device) -> Tensor:
    """Return the empty 4-D mask to pass with a packed row.

    transformers hands a 4-D mask through untouched. With None it would detect the packing from the position ids,
    which synchronises the device, and build an [S, S] mask that no kernel here reads.
    """
    return torch.empty(0, 0, 0, 0, dtype=torch.bool, device=device)


# Not traced: the lengths are Python numbers, and a compiled layer would be compiled again for every batch.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def _sdpa(query: Tensor, key: Tensor, value: Tensor, segments: Segments, scale: float) -> Tensor:
    parts = zip(*(torch.split(x, list(segments.seqlens), dim=2) for x in (query, key, value)), strict=True)
    grouped = query.shape[1] != key.shape[1]
    outputs = [
        F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=grouped) for q, k, v in parts
    ]
    return torch.cat(outputs, dim=2).transpose(1, 2)


def _varlen(query: Tensor, key: Tensor, value: Tensor, segments: Segments, scale: float) -> Tensor:
    from torch.nn.attention import varlen

    options: dict[str, Any] = {"window_size": (-1, 0), "scale": scale}
    if query.shape[1] != key.shape[1] and _varlen_names_grouped_heads():
        options["enable_gqa"] = True
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    longest = segments.max_seqlen
    out = varlen.varlen_attn(q, k, v, segments.cu_seqlens, segments.cu_seqlens, longest, longest, **options)
    return cast(Tensor, out)[None]


def _flash_attention_2(query: Tensor, key: Tensor, value: Tensor, segments: Segments, scale: float) -> Tensor:
    from flash_attn import flash_attn_varlen_func  # type: ignore[import-not-found]

    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    longest = segments.max_seqlen
    out: Tensor = flash_attn_varlen_func(
        q, k, v, segments.cu_seqlens, segments.cu_seqlens, longest, longest, softmax_scale=scale, causal=True
    )
    return out[None]


def _flex(query: Tensor, key: Tensor, value: Tensor, segments: Segments, scale: float) -> Tensor:
    is_eager_on_gpu = query.is_cuda and not torch.compiler.is_compiling()
    attend: Callable[..., Tensor] = _compiled_flex() if is_eager_on_gpu else cast(Any, flex_attention)
    grouped = query.shape[1] != key.shape[1]
    out = attend(query, key, value, block_mask=segments.block_mask, scale=scale, enable_gqa=grouped)
    return out.transpose(1, 2)


Kernel = Callable[[Tensor, Tensor, Tensor, Segments, float], Tensor]


_KERNELS: Final[dict[ChosenKernel, Kernel]] = {
    "sdpa": _sdpa,
    "varlen": _varlen,
    "flash_attention_2": _flash_attention_2,
    "flex": _flex,
}


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    segments: Segments | None = None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend in the calling convention of transformers: [1, A, S, E] in, [1, S, A, E] out."""
    if segments is None:
        out, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return out, None
    if dropout:
        raise ValueError(f"packed attention has no dropout, but attention_dropout is {dropout}; set it to 0")
    if torch.is_autocast_enabled(query.device.type):
        # Rotary embedding leaves q and k in float32 under autocast; v is already in the low precision.
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return _KERNELS[segments.kernel](query, key, value, segments, scale).contiguous(), None


def _document_mask(batch: PackedBatch) -> BlockMask:
    total = batch.input_ids.shape[0]
    device = batch.input_ids.device
    steps = torch.arange(total, device=device)
    document = torch.searchsorted(batch.cu_seqlens[1:].contiguous(), steps.to(torch.int32), right=True)

    def same_sample_and_earlier(_b: Tensor, _h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return (document[q_idx] == document[kv_idx]) & (q_idx >= kv_idx)

    return create_block_mask(same_sample_and_earlier, None, None, total, total, device=device)


@lru_cache(maxsize=1)
def _compiled_flex() -> Callable[..., Tensor]:
    return cast(Callable[..., Tensor], torch.compile(flex_attention, dynamic=True))


@lru_cache(maxsize=1)
def _has_varlen() -> bool:
    if importlib.util.find_spec("torch.nn.attention.varlen") is None:
        return False
    from torch.nn.attention.varlen import varlen_attn

    return {"window_size", "scale"} <= set(inspect.signature(varlen_attn).parameters)  # since torch 2.11


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _varlen_names_grouped_heads() -> bool:
    """Whether grouped heads must be announced; torch 2.11 takes them without being told."""
    from torch.nn.attention.varlen import varlen_attn

    return "enable_gqa" in inspect.signature(varlen_attn).parameters


@lru_cache(maxsize=1)
def _has_flash_attn() -> bool:
    return importlib.util.find_spec("flash_attn") is not None
