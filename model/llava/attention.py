"""Block-diagonal causal attention for packed rows, registered with transformers' attention interface.

A packed call hands `Segments` to the decoder as the keyword `segments`; each token then sees only earlier tokens of its
own sample. Without `segments` (padded batches, generation, vision towers) the same names behave as plain `sdpa`.

Shapes: S tokens of all samples, A query heads, G key/value heads (A a multiple of G), E head width.
"""

import importlib.util
import inspect
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, Literal, NamedTuple, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from model.fusion.packed import PackedBatch
from model.llava.flash_attention_4 import flash_attention_4, is_installed, missing_for

logger = logging.getLogger(__name__)

AttentionKernel = Literal["auto", "sdpa", "varlen", "flash_attention_2", "flash_attention_4", "flex"]
ChosenKernel = Literal["sdpa", "varlen", "flash_attention_2", "flash_attention_4", "flex"]
_REGISTERED: Final[dict[AttentionKernel, str]] = {
    kernel: f"packed_{kernel.replace('flash_attention_', 'fa')}" for kernel in get_args(AttentionKernel)
}
"""Kernel -> name in transformers, which treats every name with `flash` in it as one of its own."""


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
            own flash kernel (CUDA, half precision), `flash_attention_2` the flash-attn package, `flash_attention_4`
            the flash-attn-4 package (Hopper and Blackwell), `flex` compiled flex_attention. `auto` takes, on CUDA in
            half precision, the first that runs of `flash_attention_4`, `varlen`, `flash_attention_2`, else `sdpa`.

    Raises:
        ValueError: `kernel` is unknown or not installed.
    """
    if kernel not in get_args(AttentionKernel):
        raise ValueError(f"attention kernel {kernel!r} is unknown; known: {', '.join(get_args(AttentionKernel))}")
    if kernel == "varlen" and not _has_varlen():
        raise ValueError("attention kernel 'varlen' needs torch.nn.attention.varlen of torch 2.11 or newer; use 'sdpa'")
    if kernel == "flash_attention_2" and not _has_flash_attn():
        raise ValueError("attention kernel 'flash_attention_2' needs the flash-attn package; install it or use 'auto'")
    if kernel == "flash_attention_4" and not is_installed():
        raise ValueError(
            "attention kernel 'flash_attention_4' needs flash-attn-4; install ray-llava[flash4] or use 'auto'"
        )
    for name in _REGISTERED.values():
        AttentionInterface.register(name, attention_forward)
        AttentionMaskInterface.register(name, sdpa_mask)
    model.set_attn_implementation(_REGISTERED[kernel])


def check_training_kernel(
    model: PreTrainedModel, kernel: AttentionKernel, *, on_cuda: bool, dtype: torch.dtype
) -> None:
    """Refuse what would fail in the first step.

    Args:
        model: to be trained on packed rows.
        kernel: asked for.
        on_cuda: whether the workers have CUDA devices.
        dtype: what attention computes in.

    Raises:
        ValueError: the kernel does not train on such a device or in this type, or the model drops attention weights.
    """
    is_half = dtype in (torch.float16, torch.bfloat16)
    if kernel == "flex" and not on_cuda:
        raise ValueError(
            "attention kernel 'flex' trains on CUDA devices only, flex_attention has no backward on the CPU; use "
            "'auto', or set cluster.use_gpu=true"
        )
    if kernel in ("varlen", "flash_attention_2", "flash_attention_4") and not (on_cuda and is_half):
        found = f"{'CUDA' if on_cuda else 'the CPU'} and {str(dtype).removeprefix('torch.')}"
        raise ValueError(
            f"attention kernel {kernel!r} needs CUDA devices and half precision, the run has {found}; use 'auto', or "
            "set cluster.use_gpu=true and training.precision=bfloat16"
        )
    config: Any = model.config
    dropout = config.attention_dropout if hasattr(config, "attention_dropout") else 0.0
    if dropout:
        raise ValueError(_no_dropout(dropout))


def _no_dropout(dropout: float) -> str:
    return (
        f"packed attention has no dropout, but attention_dropout is {dropout}; set it to 0 in config.json of the "
        "language model"
    )


def packed_kernel(config: Any) -> AttentionKernel | None:
    """Return the kernel that `enable_packed_attention` noted in a model's config, or None."""
    name = config._attn_implementation
    return next((kernel for kernel, registered in _REGISTERED.items() if registered == name), None)


class Heads(NamedTuple):
    """Sizes that decide which kernels can run."""

    width: int
    """E."""
    per_group: int
    """A / G."""

    @classmethod
    def of(cls, config: Any) -> "Heads":
        """Read them from a decoder's config."""
        heads: int = config.num_attention_heads
        groups: int = (config.num_key_value_heads if hasattr(config, "num_key_value_heads") else None) or heads
        width: int = (config.head_dim if hasattr(config, "head_dim") else None) or config.hidden_size // heads
        return cls(width, heads // groups)


def segments_of(
    batch: PackedBatch, kernel: AttentionKernel, dtype: torch.dtype = torch.float32, heads: Heads | None = None
) -> Segments:
    """Describe the samples of `batch` for the given kernel.

    Args:
        batch: on the device.
        kernel: the choice of `enable_packed_attention`.
        dtype: what attention computes in.
        heads: of the decoder; without them `auto` does not take FlashAttention-4.
    """
    chosen = choose_kernel(kernel, batch.cu_seqlens.device, dtype, heads)
    block_mask = _document_mask(batch) if chosen == "flex" else None
    return Segments(chosen, batch.cu_seqlens, batch.max_seqlen, batch.seqlens, block_mask)


def choose_kernel(
    kernel: AttentionKernel, device: torch.device, dtype: torch.dtype, heads: Heads | None = None
) -> ChosenKernel:
    """Resolve `auto`: the fastest kernel that runs on `device` for `dtype` and `heads`.

    Raises:
        ValueError: FlashAttention-4 is asked for by name, and does not run here.
    """
    if kernel == "flash_attention_4" and heads is not None:
        if reason := missing_for(device, dtype, *heads):
            raise ValueError(f"attention kernel 'flash_attention_4' does not run here: {reason}; use 'auto'")
        return kernel
    if kernel != "auto":
        return kernel
    if device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16):
        return "sdpa"
    reason = missing_for(device, dtype, *heads) if heads is not None else "sizes of the heads are not known"
    if reason is None:
        return "flash_attention_4"
    fallback: ChosenKernel = "varlen" if _has_varlen() else "flash_attention_2" if _has_flash_attn() else "sdpa"
    _log_fallback(fallback, reason)
    return fallback


@lru_cache  # once for each reason, not at every micro-batch
def _log_fallback(kernel: ChosenKernel, reason: str) -> None:
    logger.warning("packed attention runs through %s, not FlashAttention-4: %s", kernel, reason)


def no_mask(device: torch.device) -> Tensor:
    """Return the empty 4-D mask to pass with a packed row.

    transformers hands a 4-D mask through untouched. With None it would detect the packing from the position ids,
    which synchronises the device, and build an [S, S] mask that no kernel here reads.
    """
    return torch.empty(0, 0, 0, 0, dtype=torch.bool, device=device)


# Not traced: the lengths are Python numbers, and a compiled layer would be compiled again for every batch.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def _sdpa(query: Tensor, key: Tensor, value: Tensor, segments: Segments, scale: float, window: int | None) -> Tensor:
    parts = zip(*(torch.split(x, list(segments.seqlens), dim=2) for x in (query, key, value)), strict=True)
    grouped = query.shape[1] != key.shape[1]
    outputs = []
    for q, k, v in parts:
        mask = None if window is None or q.shape[2] <= window else _window_mask(q.shape[2], window, q.device)
        outputs.append(
            F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=grouped
            )
        )
    return torch.cat(outputs, dim=2).transpose(1, 2)


def _window_mask(length: int, window: int, device: torch.device) -> Tensor:
    """Return bool [length, length], true where a token sees another: itself and `window - 1` before it."""
    steps = torch.arange(length, device=device)
    distance = steps[:, None] - steps
    return (distance >= 0) & (distance < window)


def _varlen(query: Tensor, key: Tensor, value: Tensor, segments: Segments, scale: float, window: int | None) -> Tensor:
    from torch.nn.attention import varlen

    options: dict[str, Any] = {"window_size": (_left(window), 0), "scale": scale}
    if query.shape[1] != key.shape[1] and _varlen_names_grouped_heads():
        options["enable_gqa"] = True
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    longest = segments.max_seqlen
    out = varlen.varlen_attn(q, k, v, segments.cu_seqlens, segments.cu_seqlens, longest, longest, **options)
    return cast(Tensor, out)[None]


def _flash_attention_2(
    query: Tensor, key: Tensor, value: Tensor, segments: Segments, scale: float, window: int | None
) -> Tensor:
    from flash_attn import flash_attn_varlen_func  # type: ignore[import-not-found]

    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    longest = segments.max_seqlen
    out: Tensor = flash_attn_varlen_func(
        q,
        k,
        v,
        segments.cu_seqlens,
        segments.cu_seqlens,
        longest,
        longest,
        softmax_scale=scale,
        causal=True,
        window_size=(_left(window), -1 if window is None else 0),
    )
    return out[None]


def _flash_attention_4(
    query: Tensor, key: Tensor, value: Tensor, segments: Segments, scale: float, window: int | None
) -> Tensor:
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    return flash_attention_4(q, k, v, segments.cu_seqlens, segments.max_seqlen, window, scale)[None]


def _left(window: int | None) -> int:
    """Return how many tokens before itself a token sees, as flash kernels count; -1 for all."""
    return -1 if window is None else window - 1


def _flex(query: Tensor, key: Tensor, value: Tensor, segments: Segments, scale: float, _window: int | None) -> Tensor:
    is_eager_on_gpu = query.is_cuda and not torch.compiler.is_compiling()
    attend: Callable[..., Tensor] = _compiled_flex() if is_eager_on_gpu else cast(Any, flex_attention)
    grouped = query.shape[1] != key.shape[1]
    out = attend(query, key, value, block_mask=segments.block_mask, scale=scale, enable_gqa=grouped)
    return out.transpose(1, 2)


Kernel = Callable[[Tensor, Tensor, Tensor, Segments, float, int | None], Tensor]


_KERNELS: Final[dict[ChosenKernel, Kernel]] = {
    "sdpa": _sdpa,
    "varlen": _varlen,
    "flash_attention_2": _flash_attention_2,
    "flash_attention_4": _flash_attention_4,
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
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend in the calling convention of transformers: [1, A, S, E] in, [1, S, A, E] out."""
    if segments is None:  # the mask excludes what is outside a window
        out, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return out, None
    if dropout:
        raise ValueError(_no_dropout(dropout))
    if torch.is_autocast_enabled(query.device.type):
        # Rotary embedding leaves q and k in float32 under autocast; v is already in the low precision.
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return _KERNELS[segments.kernel](query, key, value, segments, scale, sliding_window).contiguous(), None


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
    spec = importlib.util.find_spec("flash_attn")
    return spec is not None and spec.origin is not None  # flash-attn-4 alone leaves a bare namespace
