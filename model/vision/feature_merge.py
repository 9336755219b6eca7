"""Fewer image features without weights: square groups of neighbouring patches averaged or joined along the width.

Done in the tower, so that every count of features already is the count the language model sees. Joining is InternVL's
pixel shuffle (`modeling_internvl_chat.py`, `ps_version` v2); averaging is LLaVA-NeXT's 2 x 2 pooling of video frames.

Shapes: N images, P patches of a square grid, V vision width, r side of a group in patches.
"""

import re
from typing import Final, Literal, NamedTuple

from torch import Tensor

_PREFIX: Final = r"(?:(?P<way>pool|shuffle)(?P<side>[2-9])_)?(?P<rest>.+)"


class FeatureMerge(NamedTuple):
    """How groups of patches become one feature."""

    way: Literal["pool", "shuffle"] = "shuffle"
    """`pool` averages, `shuffle` joins along the width."""
    side: int = 1
    """r; 1 leaves features alone."""

    @property
    def width_factor(self) -> int:
        """How much wider features become."""
        return self.side**2 if self.way == "shuffle" else 1

    def check(self, grid: int, name: str) -> None:
        """Raise ValueError if a grid of that many patches per side cannot be cut into groups."""
        if grid % self.side:
            raise ValueError(
                f"projector {self.way}{self.side} groups {self.side} x {self.side} patches, but {name} gives a grid of "
                f"{grid} x {grid}; choose an image size whose number of patches per side is a multiple of {self.side}"
            )

    def apply(self, features: Tensor) -> Tensor:
        """Merge [N, P, V] to [N, P / r^2, V] or [N, P / r^2, V * r^2]."""
        if self.side == 1:
            return features
        num_images, num_patches, width = features.shape
        groups = int(num_patches**0.5) // self.side
        cut = features.view(num_images, groups, self.side, groups, self.side, width)
        if self.way == "pool":
            return cut.mean(dim=(2, 4)).flatten(1, 2)
        return cut.transpose(2, 3).reshape(num_images, groups**2, self.side**2 * width)


def split_projector_type(projector_type: str) -> tuple[FeatureMerge, str]:
    """Split `shuffle2_ln_mlp2x_gelu` into what the tower merges and the projector that follows."""
    match = re.fullmatch(_PREFIX, projector_type)
    if match is None or match["way"] is None:
        return FeatureMerge(), projector_type
    way: Literal["pool", "shuffle"] = "pool" if match["way"] == "pool" else "shuffle"
    return FeatureMerge(way, int(match["side"])), match["rest"]
