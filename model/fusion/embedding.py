"""From token ids and projected image features to the embeddings a decoder body reads, padded or packed.

Leaves planning and scattering to `fusion`, encoding images to the model.

Shapes: B rows, T text length, S fused length, M features of all images, D width.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from model.fusion.constants import IMAGE_TOKEN_INDEX
from model.fusion.fusion import (
    PaddingSide,
    check_wrapped_images,
    fuse_labels,
    is_beside_image,
    plan_fusion,
    scatter_rows,
)
from model.fusion.packed import PackedBatch

Embed = Callable[[Tensor], Tensor]
"""Input embedding: ids [...] -> [..., D]."""


class FusedInputs(NamedTuple):
    """What the decoder body is given in place of token ids."""

    inputs_embeds: Tensor
    """[B, S, D]."""
    attention_mask: Tensor
    """[B, S] bool."""
    position_ids: Tensor
    """[B, S] int64."""
    labels: Tensor | None
    """[B, S] int64."""
    is_padded: bool
    """Whether any position is padding."""


class FusionSettings(NamedTuple):
    """The part of a model config that shapes fusion."""

    padding_side: PaddingSide
    """Where shorter rows are filled up."""
    max_length: int | None
    """Longest fused row, tokens; None for no limit."""
    train_wrapping_only: bool
    """Let gradients through only to the tokens next to images (`<im_start>`, `<im_end>`)."""

    @classmethod
    def of(cls, config: Any) -> "FusionSettings":
        """Read the settings; published checkpoints and plain backbone configs carry only some of the attributes."""

        def optional(name: str, default: Any) -> Any:
            return getattr(config, name, default)

        return cls(
            padding_side=optional("tokenizer_padding_side", "right"),
            max_length=optional("tokenizer_model_max_length", None),
            train_wrapping_only=bool(optional("tune_mm_mlp_adapter", False) and optional("mm_use_im_start_end", False)),
        )


def fuse_inputs(
    embed: Embed,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    labels: Tensor | None,
    features: Tensor | None,
    slot_sizes: Sequence[int],
    settings: FusionSettings,
) -> FusedInputs:
    """Embed a padded batch with image features in the places of its placeholders.

    Ids that live on a device are copied to the host once, because the plan depends on their values; nothing else
    synchronises. Training should plan on the CPU side with `pack_samples` instead.

    Args:
        embed: the input embedding.
        input_ids: [B, T] int64.
        attention_mask: [B, T] or None.
        labels: [B, T] int64 or None.
        features: [M, D] in reading order, None without images.
        slot_sizes: how many of them each placeholder stands for.
        settings: padding, truncation, gradient rule.

    Raises:
        ValueError: see `plan_fusion` and `check_wrapped_images`.
    """
    host_ids, host_mask = _to_host(input_ids, attention_mask)
    plan = plan_fusion(host_ids, host_mask, slot_sizes, settings.padding_side, settings.max_length)
    if settings.train_wrapping_only:
        check_wrapped_images(host_ids, host_mask)
    plan = plan.to(input_ids.device)

    text = embed(input_ids.reshape(-1).index_select(0, plan.text_source))
    rows = text.new_zeros(0, text.shape[-1]) if features is None else features.to(text.device)
    if plan.feature_source is not None:
        rows = rows.index_select(0, plan.feature_source)
    shape = plan.attention_mask.shape
    if settings.train_wrapping_only:
        is_image = torch.zeros_like(plan.attention_mask).view(-1).index_fill(0, plan.image_positions, True)
        beside_image = is_beside_image(is_image.view(shape)).view(-1).index_select(0, plan.text_positions)
        text = _detach_except(text, beside_image)
    embeds = scatter_rows(shape.numel(), text, plan.text_positions, rows, plan.image_positions)
    return FusedInputs(
        inputs_embeds=embeds.view(*shape, -1),
        attention_mask=plan.attention_mask,
        position_ids=plan.position_ids,
        labels=None if labels is None else fuse_labels(plan, labels),
        is_padded=plan.is_padded,
    )


def embed_packed(embed: Embed, batch: PackedBatch, features: Tensor, train_wrapping_only: bool) -> Tensor:
    """Embed a packed micro-batch.

    Args:
        embed: the input embedding.
        batch: on the embedding's device.
        features: [M, D] in the order of the batch's `image_positions`.
        train_wrapping_only: see `FusionSettings`.

    Returns:
        [S, D].
    """
    text = embed(batch.input_ids.index_select(0, batch.text_positions))
    if train_wrapping_only:
        beside_image = is_beside_image(batch.input_ids == IMAGE_TOKEN_INDEX).index_select(0, batch.text_positions)
        text = _detach_except(text, beside_image)
    return scatter_rows(batch.input_ids.shape[0], text, batch.text_positions, features, batch.image_positions)


def decoding_mask(attention_mask: Tensor | None, past_length: int, num_new: int) -> Tensor | None:
    """Make the mask cover the cache and `num_new` tokens: [B, past_length (+ num_new)] -> [B, past_length + num_new].

    Raises:
        ValueError: the mask covers neither the cache nor cache and new tokens.
    """
    if attention_mask is None or attention_mask.shape[1] == past_length + num_new:
        return attention_mask
    if attention_mask.shape[1] != past_length:
        raise ValueError(
            f"attention_mask covers {attention_mask.shape[1]} positions, but the cache holds {past_length} and "
            f"{num_new} are new; pass the fused mask that the first step returned, extended or not"
        )
    return torch.cat([attention_mask, attention_mask.new_ones(attention_mask.shape[0], num_new)], dim=1)


def refuse_placeholders(input_ids: Tensor) -> None:
    """Raise ValueError if a text-only call contains image placeholders. Copies ids from a device once."""
    per_row = (input_ids == IMAGE_TOKEN_INDEX).sum(dim=1).cpu()
    if bool(per_row.any()):
        row = int(per_row.nonzero()[0])
        raise ValueError(
            f"row {row} has {int(per_row[row])} image placeholders but no images can be used; pass images, and "
            "attach a vision tower with initialize_vision_modules if the model has none"
        )


def refuse_long_prompts(fused: FusedInputs, max_length: int | None) -> None:
    """Raise ValueError if a row is longer than `max_length`: the end that cutting would take is the question."""
    if max_length is None or fused.attention_mask.shape[1] <= max_length:
        return
    lengths = fused.attention_mask.sum(dim=1).tolist()
    row = max(range(len(lengths)), key=lengths.__getitem__)
    raise ValueError(
        f"the prompt of row {row} takes {lengths[row]} tokens, {lengths[row] - max_length} more than the model's "
        f"tokenizer_model_max_length {max_length}; shorten it or use fewer images"
    )


def _to_host(input_ids: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    if attention_mask is None or attention_mask.shape != input_ids.shape:
        return input_ids.cpu(), None if attention_mask is None else attention_mask.cpu()
    ids, mask = torch.stack([input_ids, attention_mask.to(input_ids)]).cpu()
    return ids, mask.bool()


def _detach_except(text: Tensor, trainable: Tensor) -> Tensor:
    return torch.where(trainable[:, None], text, text.detach())
