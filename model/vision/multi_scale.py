"""S2: one encoder on several scales of an image, their features joined along the width.

Larger scales are cut into tiles of the encoder's own size, encoded tile by tile, laid together again and averaged down
to the grid of the first. Source: Shi et al., "When Do We Not Need Larger Vision Models?", ECCV 2024 (`s2wrapper`).

Shapes: N images, H pixels per side of the encoder's input, s scale, g patches per side, P = g * g, V vision width.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def encode_scales(encode: Callable[[Tensor], Tensor], images: Tensor, scales: Sequence[int]) -> Tensor:
    """Encode images [N, 3, H * max(s), H * max(s)] to [N, P, V * number of scales], smallest scale first.

    Args:
        encode: images [N, 3, H, H] -> patch features [N, P, V].
        images: of the largest scale.
        scales: multiples of H, each at least 1.
    """
    side = images.shape[-1] // max(scales)
    features = [_encode_scale(encode, resize(images, side * scale), scale) for scale in scales]
    return torch.cat(features, dim=-1)


def resize(images: Tensor, side: int) -> Tensor:
    """Resize normalised square images [N, 3, H, H] bicubically, in float32, as `s2wrapper` does."""
    if images.shape[-1] == side:
        return images
    resized = F.interpolate(images.float(), size=(side, side), mode="bicubic", align_corners=False)
    return resized.to(images.dtype)


def _encode_scale(encode: Callable[[Tensor], Tensor], images: Tensor, scale: int) -> Tensor:
    if scale == 1:
        return encode(images)
    num_images, channels, size, _ = images.shape
    side = size // scale
    cut = images.view(num_images, channels, scale, side, scale, side).permute(0, 2, 4, 1, 3, 5)
    features = encode(cut.reshape(-1, channels, side, side))
    grid, width = round(features.shape[1] ** 0.5), features.shape[2]
    tiles = features.view(num_images, scale, scale, grid, grid, width)
    whole = tiles.permute(0, 5, 1, 3, 2, 4).reshape(num_images, width, scale * grid, scale * grid)
    pooled = F.avg_pool2d(whole.float(), scale).to(features.dtype)
    return pooled.flatten(2).transpose(1, 2)
