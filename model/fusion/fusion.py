"""Fusion: image features spliced into text embeddings, for a whole batch at once.

Where everything goes is planned on the CPU from token ids (`plan_fusion`); the device then does one embedding lookup
and one scatter (`scatter_rows`) and is never asked for a value. Encoding images and embedding text is left to callers.

Shapes: B rows, T text length, S fused length, M image features used, K kept text tokens, D language-model width.
A *slot* is what one placeholder is replaced by: the features of one image, or of several images in sequence.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from model.fusion.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX

PaddingSide = Literal["left", "right"]


class FusionPlan(NamedTuple):
    """Index tensors that describe one fused batch; flat indices count row by row."""

    text_source: Tensor
    """[K] int64; flat index into [B, T] of every kept text token."""
    text_positions: Tensor
    """[K] int64; flat index into [B, S] of the same tokens."""
    image_positions: Tensor
    """[M] int64; flat index into [B, S] of every used image feature, in reading order."""
    feature_source: Tensor | None
    """[M] int64; which feature rows are used, or None when all of them are."""
    attention_mask: Tensor
    """[B, S] bool; False on padding."""
    position_ids: Tensor
    """[B, S] int64; 0 .. length - 1 in each row, 0 on padding."""
    is_padded: bool
    """Whether any position is padding."""

    def to(self, device: torch.device) -> "FusionPlan":
        """Return the plan with its tensors on `device`."""
        moved = [v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for v in self]
        return FusionPlan._make(moved)


class _Items(NamedTuple):
    """Kept tokens of all rows in reading order; a placeholder is one item as long as its slot."""

    source: Tensor
    row: Tensor
    is_image: Tensor


def plan_fusion(
    input_ids: Tensor,
    attention_mask: Tensor | None,
    slot_sizes: Sequence[int],
    padding_side: PaddingSide = "right",
    max_length: int | None = None,
) -> FusionPlan:
    """Plan where every text token and image feature of a batch goes.

    Tokens whose mask is False are dropped first. There must be one slot per placeholder, or one per placeholder plus
    one per row without placeholders (a dummy, which is skipped). Rows longer than `max_length` lose text at their
    end; an image is never cut or dropped.

    Args:
        input_ids: [B, T] int64 on the CPU, IMAGE_TOKEN_INDEX once per slot.
        attention_mask: [B, T] on the CPU, true where a token counts; None keeps all.
        slot_sizes: feature rows of each slot, in reading order.
        padding_side: where shorter rows are filled up.
        max_length: longest allowed fused row, tokens.

    Raises:
        ValueError: shapes do not fit, a row has no tokens, the number of slots does not fit the placeholders, or an
            image would not fit within `max_length`.
    """
    # 1. Which items each row has, and which image slot each placeholder takes.
    num_rows, _ = _check_shapes(input_ids, attention_mask)
    items = _kept_items(input_ids, attention_mask)
    sizes = torch.tensor(list(slot_sizes), dtype=torch.int64)
    used_slots = _assign_slots(items, num_rows, len(sizes))

    # 2. Where each item begins in its row, and what is cut off.
    lengths = torch.ones_like(items.row).masked_scatter_(items.is_image, sizes[used_slots])
    row_lengths = torch.zeros(num_rows, dtype=torch.int64).index_add_(0, items.row, lengths)
    row_begin = row_lengths.cumsum(0) - row_lengths
    offsets = lengths.cumsum(0) - lengths - row_begin[items.row]
    kept = torch.ones_like(items.is_image)
    if max_length is not None:
        kept = offsets + lengths <= max_length
        _check_images_fit(items, kept, row_lengths, max_length)
        row_lengths = row_lengths.clamp(max=max_length)

    # 3. Where each item goes in the padded batch.
    width = int(row_lengths.max())
    shift = width - row_lengths if padding_side == "left" else torch.zeros_like(row_lengths)
    destination = items.row * width + shift[items.row] + offsets
    is_text = ~items.is_image & kept
    slot_begin = (sizes.cumsum(0) - sizes)[used_slots]
    all_used = len(used_slots) == len(sizes)
    column = torch.arange(width) - shift[:, None]
    mask = (column >= 0) & (column < row_lengths[:, None])
    return FusionPlan(
        text_source=items.source[is_text],
        text_positions=destination[is_text],
        image_positions=_ranges(destination[items.is_image], sizes[used_slots]),
        feature_source=None if all_used else _ranges(slot_begin, sizes[used_slots]),
        attention_mask=mask,
        position_ids=column.masked_fill(~mask, 0),
        is_padded=bool((row_lengths < width).any()),
    )


def scatter_rows(
    num_positions: int, text_embeds: Tensor, text_positions: Tensor, features: Tensor, image_positions: Tensor
) -> Tensor:
    """Lay text embeddings [K, D] and image features [M, D] into a zeroed [num_positions, D]; differentiable in both.

    Text and images never share a position, so the backward pass is one gather for each.
    """
    scattered: Tensor = _ScatterRows.apply(  # type: ignore[no-untyped-call]
        num_positions, text_embeds, text_positions, features.to(text_embeds.dtype), image_positions
    )
    return scattered


def fuse_labels(plan: FusionPlan, labels: Tensor) -> Tensor:
    """Carry labels [B, T] over to the fused positions [B, S]; IGNORE_INDEX at images and padding."""
    fused = labels.new_full((plan.attention_mask.numel(),), IGNORE_INDEX)
    kept = labels.reshape(-1).index_select(0, plan.text_source)
    return fused.index_copy_(0, plan.text_positions, kept).view(plan.attention_mask.shape)


def is_beside_image(is_image: Tensor) -> Tensor:
    """Mark the positions directly before or after an image: `<im_start>` and `<im_end>` when these are in use.

    Args:
        is_image: [..., S] bool, true where an image feature is.

    Returns:
        [..., S] bool, false at image positions.
    """
    neighbours = torch.zeros_like(is_image)
    neighbours[..., :-1] |= is_image[..., 1:]
    neighbours[..., 1:] |= is_image[..., :-1]
    return neighbours & ~is_image


def check_wrapped_images(input_ids: Tensor, attention_mask: Tensor | None) -> None:
    """Check that each placeholder is between its own two text tokens (`<im_start> IMAGE <im_end>`).

    Raises:
        ValueError: a placeholder is first or last in its row, or next to another placeholder.
    """
    for row, ids in enumerate(input_ids):
        kept = ids if attention_mask is None else ids[attention_mask[row].bool()]
        is_image = torch.nn.functional.pad(kept == IMAGE_TOKEN_INDEX, (1, 1), value=True)
        bad = (is_image[1:-1] & (is_image[:-2] | is_image[2:])).nonzero()
        if len(bad):
            raise ValueError(
                f"row {row}: the image placeholder at token {int(bad[0])} is not wrapped as <im_start> <image> "
                "<im_end>; with mm_use_im_start_end every image needs both tokens around it"
            )


class _ScatterRows(torch.autograd.Function):
    """Write both sources into one new tensor. Plain index_copy would copy every fused row once more each way."""

    @staticmethod
    def forward(
        ctx: Any,
        num_positions: int,
        text_embeds: Tensor,
        text_positions: Tensor,
        features: Tensor,
        image_positions: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(text_positions, image_positions)
        # Without padding every position is written below; zeros first would be one more pass over memory.
        is_full = len(text_positions) + len(image_positions) == num_positions
        new = text_embeds.new_empty if is_full else text_embeds.new_zeros
        fused = new(num_positions, text_embeds.shape[-1])
        fused.index_copy_(0, text_positions, text_embeds)
        return fused.index_copy_(0, image_positions, features)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[None, Tensor | None, None, Tensor | None, None]:
        (grad,) = grad_outputs
        text_positions, image_positions = ctx.saved_tensors
        text_grad = grad.index_select(0, text_positions) if ctx.needs_input_grad[1] else None
        feature_grad = grad.index_select(0, image_positions) if ctx.needs_input_grad[3] else None
        return None, text_grad, None, feature_grad, None


def _check_shapes(input_ids: Tensor, attention_mask: Tensor | None) -> tuple[int, int]:
    if input_ids.ndim != 2 or input_ids.numel() == 0:
        raise ValueError(f"expected input_ids [B, T] with at least one token, found {tuple(input_ids.shape)}")
    if attention_mask is not None and attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask {tuple(attention_mask.shape)} must have the shape of input_ids {tuple(input_ids.shape)}"
        )
    return input_ids.shape[0], input_ids.shape[1]


def _kept_items(input_ids: Tensor, attention_mask: Tensor | None) -> _Items:
    num_rows, width = input_ids.shape
    keep = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
    source = keep.reshape(-1).nonzero().squeeze(1)
    row = source // width
    ids = input_ids.reshape(-1)[source]
    is_image = ids == IMAGE_TOKEN_INDEX
    empty = (torch.bincount(row, minlength=num_rows) == 0).nonzero()
    if len(empty):
        raise ValueError(f"row {int(empty[0])}: attention_mask hides every token; leave such rows out of the batch")
    bad = ((ids < 0) & ~is_image).nonzero()
    if len(bad):
        index = int(bad[0])
        raise ValueError(
            f"row {int(row[index])}: input id {int(ids[index])} is neither a token id nor the image placeholder "
            f"{IMAGE_TOKEN_INDEX}"
        )
    return _Items(source, row, is_image)


def _assign_slots(items: _Items, num_rows: int, num_slots: int) -> Tensor:
    """Return the slot of every placeholder in reading order, skipping the dummies of text-only rows."""
    per_row = torch.bincount(items.row[items.is_image], minlength=num_rows)
    num_placeholders, num_text_rows = int(per_row.sum()), int((per_row == 0).sum())
    if num_slots == num_placeholders:
        return torch.arange(num_slots)
    if num_slots == num_placeholders + num_text_rows:
        has_image = (per_row > 0).repeat_interleave(per_row.clamp(min=1))
        return has_image.nonzero().squeeze(1)
    begin = (per_row.cumsum(0) - per_row).tolist()
    short = [row for row, count in enumerate(per_row.tolist()) if begin[row] + count > num_slots]
    where = f"row {short[0]} is the first without enough" if short else f"row {num_rows - 1} is followed by a surplus"
    raise ValueError(
        f"{num_slots} image slots for {num_placeholders} placeholders ({where}; per row {per_row.tolist()}); pass one "
        f"image per placeholder in reading order, or also one dummy per row without images ({num_text_rows} here): "
        "a 4-D tensor or a list of 3-D images"
    )


def _check_images_fit(items: _Items, kept: Tensor, row_lengths: Tensor, max_length: int) -> None:
    lost = (items.is_image & ~kept).nonzero()
    if len(lost):
        row = int(items.row[lost[0]])
        raise ValueError(
            f"row {row}: an image does not fit within the maximum length ({int(row_lengths[row])} fused tokens, "
            f"maximum {max_length}); images are never cut: shorten the text before it, leave the sample out, or raise "
            "tokenizer_model_max_length"
        )


def _ranges(begin: Tensor, sizes: Tensor) -> Tensor:
    """Concatenate `begin[i] .. begin[i] + sizes[i] - 1` over all i."""
    within = torch.arange(int(sizes.sum())) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    return begin.repeat_interleave(sizes) + within
