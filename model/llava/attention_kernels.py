"""The kernels that compute attention on packed rows: windows, capped scores and attention sinks included.

`attention` chooses among them and speaks transformers' calling convention.

Shapes: S tokens of all samples, T of one, A query heads, G key/value heads (A a multiple of G), E head width.
"""

import importlib.util
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final, Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, create_block_mask, flex_attention

from model.fusion.packed import PackedBatch
from model.llava.flash_attention_4 import flash_attention_4

ChosenKernel = Literal["sdpa", "varlen", "flash_attention_2", "flash_attention_4", "flex"]
ATTEND_PLAINLY: Final[tuple[ChosenKernel, ...]] = ("varlen", "flash_attention_2", "flash_attention_4")
"""Kernels that know windows, but neither caps nor sinks."""


class Rule(NamedTuple):
    """What a layer's attention does besides looking back."""

    scale: float
    """Scores are multiplied by it."""
    window: int | None = None
    """Tokens that a token sees, itself included; None for all."""
    cap: float | None = None
    """Scores s become cap * tanh(s / cap) (Gemma 2)."""
    sinks: Tensor | None = None
    """[A] score of a place that takes a share of the attention and gives nothing (gpt-oss)."""


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
    block_masks: dict[int | None, BlockMask] = field(default_factory=dict)
    """Window -> mask; only for `flex`, where each is made once for all layers that look back as far."""


def block_masks(batch: PackedBatch, windows: tuple[int | None, ...]) -> dict[int | None, BlockMask]:
    """Return the mask of `flex` for each window; None is the window of layers that see a whole sample."""
    total, device = batch.input_ids.shape[0], batch.input_ids.device
    steps = torch.arange(total, device=device)
    document = torch.searchsorted(batch.cu_seqlens[1:].contiguous(), steps.to(torch.int32), right=True)
    masks: dict[int | None, BlockMask] = {}
    for window in windows:
        reach = total if window is None else window

        def sees(_b: Tensor, _h: Tensor, q_idx: Tensor, kv_idx: Tensor, reach: int = reach) -> Tensor:
            in_reach = (q_idx >= kv_idx) & (q_idx - kv_idx < reach)
            return (document[q_idx] == document[kv_idx]) & in_reach

        masks[window] = create_block_mask(sees, None, None, total, total, device=device)
    return masks


def attend_explicitly(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, rule: Rule) -> Tensor:
    """Attend by forming all scores, which no fused kernel of torch caps or shares with sinks.

    Args:
        query: [B, A, T, E].
        key: [B, G, T', E].
        value: [B, G, T', E].
        mask: [B or 1, 1, T, T'], true (or 0, if floating) where a token sees another; None for all before it.
        rule: scale, cap and sinks; the window is the mask's.

    Returns:
        [B, A, T, E].
    """
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = (query @ key.transpose(2, 3)) * rule.scale
    if rule.cap is not None:
        scores = torch.tanh(scores / rule.cap) * rule.cap
    scores = scores.float()
    num_new, num_seen = scores.shape[2:]
    if mask is None and num_new > 1:
        mask = torch.ones(num_new, num_seen, dtype=torch.bool, device=scores.device).tril(num_seen - num_new)
    if mask is not None:
        # The lowest number rather than -inf: a row of padding sees nothing, and would become NaN.
        lowest = torch.finfo(scores.dtype).min
        scores = scores.masked_fill(~mask, lowest) if mask.dtype == torch.bool else scores + mask
    if rule.sinks is not None:
        sinks = rule.sinks.float().view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        weights = torch.cat([scores, sinks], dim=-1).softmax(dim=-1)[..., :-1]
    else:
        weights = scores.softmax(dim=-1)
    return weights.to(value.dtype) @ value


# Not traced: the lengths are Python numbers, and a compiled layer would be compiled again for every batch.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def _sdpa(query: Tensor, key: Tensor, value: Tensor, segments: Segments, rule: Rule) -> Tensor:
    parts = zip(*(torch.split(x, list(segments.seqlens), dim=2) for x in (query, key, value)), strict=True)
    grouped = query.shape[1] != key.shape[1]
    outputs = []
    for q, k, v in parts:
        length, window = q.shape[2], rule.window
        mask = None if window is None or length <= window else _window_mask(length, window, q.device)
        if rule.cap is not None or rule.sinks is not None:
            outputs.append(attend_explicitly(q, k, v, mask, rule))
            continue
        outputs.append(
            F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=mask is None, scale=rule.scale, enable_gqa=grouped
            )
        )
    return torch.cat(outputs, dim=2).transpose(1, 2)


def _window_mask(length: int, window: int, device: torch.device) -> Tensor:
    """Return bool [length, length], true where a token sees another: itself and `window - 1` before it."""
    steps = torch.arange(length, device=device)
    distance = steps[:, None] - steps
    return (distance >= 0) & (distance < window)


def _varlen(query: Tensor, key: Tensor, value: Tensor, segments: Segments, rule: Rule) -> Tensor:
    from torch.nn.attention import varlen

    options: dict[str, Any] = {"window_size": (_left(rule.window), 0), "scale": rule.scale}
    if query.shape[1] != key.shape[1] and _varlen_names_grouped_heads():
        options["enable_gqa"] = True
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    longest = segments.max_seqlen
    out = varlen.varlen_attn(q, k, v, segments.cu_seqlens, segments.cu_seqlens, longest, longest, **options)
    return cast(Tensor, out)[None]


def _flash_attention_2(query: Tensor, key: Tensor, value: Tensor, segments: Segments, rule: Rule) -> Tensor:
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
        softmax_scale=rule.scale,
        causal=True,
        window_size=(_left(rule.window), -1 if rule.window is None else 0),
    )
    return out[None]


def _flash_attention_4(query: Tensor, key: Tensor, value: Tensor, segments: Segments, rule: Rule) -> Tensor:
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    return flash_attention_4(q, k, v, segments.cu_seqlens, segments.max_seqlen, rule.window, rule.scale)[None]


def _left(window: int | None) -> int:
    """Return how many tokens before itself a token sees, as flash kernels count; -1 for all."""
    return -1 if window is None else window - 1


def _flex(query: Tensor, key: Tensor, value: Tensor, segments: Segments, rule: Rule) -> Tensor:
    is_eager_on_gpu = query.is_cuda and not torch.compiler.is_compiling()
    attend: Callable[..., Any] = _compiled_flex() if is_eager_on_gpu else cast(Any, flex_attention)
    options: dict[str, Any] = {"block_mask": segments.block_masks[rule.window], "scale": rule.scale}
    options["enable_gqa"] = query.shape[1] != key.shape[1]
    if rule.cap is not None:
        options["score_mod"] = _cap_by(rule.cap)
    if rule.sinks is None:
        return cast(Tensor, attend(query, key, value, **options)).transpose(1, 2)
    out: Tensor
    out, aux = attend(query, key, value, return_aux=AuxRequest(lse=True), **options)
    # Without the sink, attention was normalised by exp(lse); with it, the sum grows by exp(sink).
    share = torch.sigmoid(aux.lse - rule.sinks.float().view(1, -1, 1))
    return (out * share[..., None].to(out.dtype)).transpose(1, 2)


@lru_cache(maxsize=8)  # one function per cap: torch.compile compiles flex_attention again for every new one
def _cap_by(cap: float) -> Callable[..., Tensor]:
    def capped(score: Tensor, _b: Tensor, _h: Tensor, _q: Tensor, _k: Tensor) -> Tensor:
        return cap * torch.tanh(score / cap)

    return capped


Kernel = Callable[[Tensor, Tensor, Tensor, Segments, Rule], Tensor]


KERNELS: Final[dict[ChosenKernel, Kernel]] = {
    "sdpa": _sdpa,
    "varlen": _varlen,
    "flash_attention_2": _flash_attention_2,
    "flash_attention_4": _flash_attention_4,
    "flex": _flex,
}


@lru_cache(maxsize=1)
def _compiled_flex() -> Callable[..., Tensor]:
    return cast(Callable[..., Tensor], torch.compile(flex_attention, dynamic=True))


@lru_cache(maxsize=1)
def has_varlen() -> bool:
    """Whether torch has its own flash kernel for packed rows, with windows."""
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
def has_flash_attn() -> bool:
    """Whether the flash-attn package is installed."""
    spec = importlib.util.find_spec("flash_attn")
    return spec is not None and spec.origin is not None  # flash-attn-4 alone leaves a bare namespace
