"""Block-diagonal causal attention for packed rows, registered with transformers' attention interface.

A packed call hands `Segments` to the decoder as the keyword `segments`; each token then sees only earlier tokens of its
own sample. Without `segments` (padded batches, generation, vision towers) the same names behave as plain `sdpa`.

Shapes: S tokens of all samples, A query heads, G key/value heads (A a multiple of G), E head width.
"""

import logging
from functools import lru_cache
from typing import Any, Final, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from model.fusion.packed import PackedBatch
from model.llava.attention_kernels import (
    ATTEND_PLAINLY,
    KERNELS,
    ChosenKernel,
    Rule,
    Segments,
    attend_explicitly,
    block_masks,
    has_flash_attn,
    has_varlen,
)
from model.llava.flash_attention_4 import is_installed, missing_for

logger = logging.getLogger(__name__)

AttentionKernel = Literal["auto", "sdpa", "varlen", "flash_attention_2", "flash_attention_4", "flex"]
_REGISTERED: Final[dict[AttentionKernel, str]] = {
    kernel: f"packed_{kernel.replace('flash_attention_', 'fa').replace('sdpa', 'plain')}"
    for kernel in get_args(AttentionKernel)
}
"""Kernel -> name in transformers, which treats every name with `flash` or `sdpa` in it as one of its own."""


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
    if kernel == "varlen" and not has_varlen():
        raise ValueError("attention kernel 'varlen' needs torch.nn.attention.varlen of torch 2.11 or newer; use 'sdpa'")
    if kernel == "flash_attention_2" and not has_flash_attn():
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
    if kernel in ATTEND_PLAINLY and not attends_plainly(model):
        raise ValueError(
            f"attention kernel {kernel!r} knows neither capped scores (attn_logit_softcapping) nor attention sinks, "
            f"which {model.config.model_type} has; use 'auto'"
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
    batch: PackedBatch,
    kernel: AttentionKernel,
    dtype: torch.dtype = torch.float32,
    heads: Heads | None = None,
    windows: tuple[int | None, ...] = (None,),
    *,
    is_plain: bool = True,
) -> Segments:
    """Describe the samples of `batch` for the given kernel.

    Args:
        batch: on the device.
        kernel: the choice of `enable_packed_attention`.
        dtype: what attention computes in.
        heads: of the decoder; without them `auto` does not take FlashAttention-4.
        windows: how far back layers see, each distance once; see `sliding_windows_of`.
        is_plain: whether attention neither caps its scores nor has sinks.
    """
    chosen = choose_kernel(kernel, batch.cu_seqlens.device, dtype, heads, is_plain=is_plain)
    masks = block_masks(batch, windows) if chosen == "flex" else {}
    return Segments(chosen, batch.cu_seqlens, batch.max_seqlen, batch.seqlens, masks)


def choose_kernel(
    kernel: AttentionKernel,
    device: torch.device,
    dtype: torch.dtype,
    heads: Heads | None = None,
    *,
    is_plain: bool = True,
) -> ChosenKernel:
    """Resolve `auto`: the fastest kernel that runs on `device` for `dtype` and `heads`.

    Attention with caps or sinks is computed by `flex` on CUDA devices, in every type, and by `sdpa` elsewhere.

    Raises:
        ValueError: FlashAttention-4 is asked for by name, and does not run here.
    """
    if kernel == "flash_attention_4" and heads is not None:
        if reason := missing_for(device, dtype, *heads):
            raise ValueError(f"attention kernel 'flash_attention_4' does not run here: {reason}; use 'auto'")
        return kernel
    if kernel != "auto":
        return kernel
    if not is_plain:
        return "flex" if device.type == "cuda" else "sdpa"
    if device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16):
        return "sdpa"
    reason = missing_for(device, dtype, *heads) if heads is not None else "sizes of the heads are not known"
    if reason is None:
        return "flash_attention_4"
    fallback: ChosenKernel = "varlen" if has_varlen() else "flash_attention_2" if has_flash_attn() else "sdpa"
    _log_fallback(fallback, reason)
    return fallback


def attends_plainly(model: Any) -> bool:
    """Whether the layers of a language model neither cap attention scores nor have attention sinks."""
    config = model.config
    has_cap = hasattr(config, "attn_logit_softcapping") and config.attn_logit_softcapping is not None
    return not (has_cap or (hasattr(model, "has_sinks") and model.has_sinks))


@lru_cache  # once for each reason, not at every micro-batch
def _log_fallback(kernel: ChosenKernel, reason: str) -> None:
    logger.warning("packed attention runs through %s, not FlashAttention-4: %s", kernel, reason)


def no_mask(device: torch.device) -> Tensor:
    """Return the empty 4-D mask to pass with a packed row.

    transformers hands a 4-D mask through untouched. With None it would detect the packing from the position ids,
    which synchronises the device, and build an [S, S] mask that no kernel here reads.
    """
    return torch.empty(0, 0, 0, 0, dtype=torch.bool, device=device)


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
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend in the calling convention of transformers: [1, A, S, E] in, [1, S, A, E] out."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if segments is None and (softcap is not None or s_aux is not None):
        if dropout:
            raise ValueError(_no_dropout(dropout))
        rule = Rule(scale, sliding_window, softcap, s_aux)
        return attend_explicitly(query, key, value, attention_mask, rule).transpose(1, 2).contiguous(), None
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
    rule = Rule(scale, sliding_window, softcap, s_aux)
    return KERNELS[segments.kernel](query, key, value, segments, rule).contiguous(), None
