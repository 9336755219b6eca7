"""Attention within each image of a row that holds the patches of many, registered with transformers' interface.

Encoder layers hand their mask through untouched, so the images' lengths travel in its place.

Shapes: S patches of all images, A heads, E head width.
"""

from dataclasses import dataclass
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

NAME: Final = "within_images"


@dataclass(eq=False)
class ImageRows:
    """Where images begin in a row of patches."""

    lengths: tuple[int, ...]
    """Patches of each image."""
    cu_seqlens: Tensor
    """[N + 1] int32, on the device."""

    @classmethod
    def of(cls, lengths: list[int], device: torch.device) -> "ImageRows":
        """Describe images of so many patches each."""
        ends = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
        return cls(tuple(lengths), ends.to(device, non_blocking=True))


def register() -> None:
    """Make the name known to transformers."""
    AttentionInterface.register(NAME, attend_within_images)
    AttentionMaskInterface.register(NAME, sdpa_mask)


def attend_within_images(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attend in the calling convention of transformers: [1, A, S, E] in, [1, S, A, E] out.

    `attention_mask` is an `ImageRows`. On CUDA in half precision torch's kernel for rows of many lengths runs;
    elsewhere one image follows the other.
    """
    rows: ImageRows = attention_mask
    if query.is_cuda and value.dtype in (torch.float16, torch.bfloat16) and not dropout:
        from torch.nn.attention.varlen import varlen_attn

        q, k, v = (part[0].transpose(0, 1).to(value.dtype) for part in (query, key, value))
        longest = max(rows.lengths)
        out: Any = varlen_attn(q, k, v, rows.cu_seqlens, rows.cu_seqlens, longest, longest, scale=scaling)
        return out[None], None
    parts = zip(*(part.split(list(rows.lengths), dim=2) for part in (query, key, value)), strict=True)
    outputs = [F.scaled_dot_product_attention(q, k, v, scale=scaling, dropout_p=dropout) for q, k, v in parts]
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None
