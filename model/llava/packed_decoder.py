"""A packed row through a decoder body: by packed attention where the body allows it, else unpacked into padded rows.

Padded rows give the same result with more arithmetic; they serve bodies with attention of their own (MPT's ALiBi).

Shapes: B samples, S tokens of all samples, W longest sample, K targets, D language-model width.
"""

from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from model.fusion.packed import PackedBatch
from model.llava.attention import AttentionKernel, Heads, attends_plainly, no_mask, packed_kernel, segments_of
from model.llava.loss import cross_entropy_sum


class PackedModel(Protocol):
    """What this module needs of a LLaVA model (`model.llava_arch.LlavaMetaForCausalLM`)."""

    config: Any
    packs_rows: ClassVar[bool]

    def get_model(self) -> Any:
        """Return the decoder body."""
        ...


def decode_packed(
    model: PackedModel, embeds: Tensor, batch: PackedBatch, router_logits: list[Tensor] | None = None
) -> Tensor:
    """Run the body on fused embeddings [S, D] of a packed row and return its hidden states [S, D].

    Args:
        model: the LLaVA model.
        embeds: [S, D].
        batch: the packed row.
        router_logits: filled with those of each layer that has experts, [S, E].

    Raises:
        ValueError: the body could attend to packed rows but is not set up for it.
    """
    kernel = packed_kernel(model.config)
    if kernel is None and model.packs_rows:
        raise ValueError("packed rows need packed attention; call model.llava.attention.enable_packed_attention(model)")
    if kernel is None:
        return _decode_padded(model.get_model(), embeds, batch)
    return _decode_row(model, embeds, batch, kernel, router_logits)


def sum_loss(
    hidden: Tensor,
    head: nn.Linear,
    batch: PackedBatch,
    target_losses: Tensor | None = None,
    cap: float | None = None,
) -> Tensor:
    """Sum the cross-entropy over the targets of `batch`; float32 scalar.

    Args:
        hidden: [S, D].
        head: the output head.
        batch: on the device of `hidden`.
        target_losses: [K] float32; filled with the cross-entropy of each target.
        cap: see `logit_cap_of`.

    Raises:
        ValueError: the head is sharded on its own.
    """
    if isinstance(head.weight, DTensor):
        raise ValueError("lm_head must not be sharded on its own: leave it in the root group of fully_shard")
    rows = hidden.index_select(0, batch.target_positions)
    return cross_entropy_sum(
        rows, head.weight, batch.targets, target_losses=target_losses, head_bias=head.bias, cap=cap
    )


def logit_cap_of(config: Any) -> float | None:
    """Return the cap of the output logits (Gemma), None without one."""
    cap: float | None = config.final_logit_softcapping if hasattr(config, "final_logit_softcapping") else None
    return cap


def sliding_windows_of(config: Any) -> tuple[int | None, ...]:
    """Return how many tokens layers see, themselves included, each number once; None stands for a whole sample.

    Args:
        config: a backbone's config. `sliding_window` alone applies to all layers (Mistral, Phi); with
            `layer_types` only to those of type `sliding_attention` (Qwen, Gemma, gpt-oss).
    """
    window: int | None = config.sliding_window if hasattr(config, "sliding_window") else None
    if window is None:
        return (None,)
    if not hasattr(config, "layer_types") or not config.layer_types:
        return (window,)
    kinds = set(config.layer_types)
    return (*((None,) if kinds - {"sliding_attention"} else ()), *((window,) if "sliding_attention" in kinds else ()))


def _decode_row(
    model: PackedModel,
    embeds: Tensor,
    batch: PackedBatch,
    kernel: AttentionKernel,
    router_logits: list[Tensor] | None,
) -> Tensor:
    body = model.get_model()
    config = body.config
    segments = segments_of(
        batch, kernel, embeds.dtype, Heads.of(config), sliding_windows_of(config), is_plain=attends_plainly(model)
    )
    further = {} if router_logits is None else {"output_router_logits": True}
    out = body(
        inputs_embeds=torch.stack([embeds]),  # a view would make torch.compile build the first layer on its own
        position_ids=batch.position_ids[None],
        attention_mask=no_mask(embeds.device),
        use_cache=False,
        segments=segments,
        **further,
    )
    if router_logits is not None and hasattr(out, "router_logits"):
        router_logits += out.router_logits or ()
    hidden: Tensor = out.last_hidden_state[0]
    return hidden


def _decode_padded(body: nn.Module, embeds: Tensor, batch: PackedBatch) -> Tensor:
    num_rows, width = len(batch.seqlens), batch.max_seqlen
    begin = torch.arange(num_rows).mul_(width).repeat_interleave(torch.tensor(batch.seqlens))
    place = begin.to(embeds.device, non_blocking=True) + batch.position_ids
    padded = embeds.new_zeros(num_rows * width, embeds.shape[-1]).index_copy(0, place, embeds)
    mask = torch.zeros(num_rows * width, dtype=torch.bool, device=embeds.device).index_fill_(0, place, True)
    hidden: Tensor = body(
        inputs_embeds=padded.view(num_rows, width, -1), attention_mask=mask.view(num_rows, width), use_cache=False
    ).last_hidden_state
    return hidden.flatten(0, 1).index_select(0, place)


def computed_tokens(model: PackedModel, batch: PackedBatch) -> int:
    """Return the tokens that `decode_packed` takes through the body, padding included."""
    return sum(batch.seqlens) if model.packs_rows else len(batch.seqlens) * batch.max_seqlen
