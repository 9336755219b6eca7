"""Several towers as one: each sees the same image, their features are joined along the width.

The data side sizes and normalises images for the first tower; the others get them resized to the size at which they
give as many patches, with their own normalisation.

Shapes: N images, H x W pixels, P features per image after selection, V width of all towers together.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.vision.pixels import PixelStats
from model.vision.vision_tower import VisionTower


class JoinedTowers(nn.Module):
    """Two towers or more with the interface of one."""

    def __init__(self, towers: Sequence[VisionTower], stats: Sequence[PixelStats | None]):
        """Join towers.

        Args:
            towers: the first decides how large images are.
            stats: normalisation of each; towers whose normalisation is not known get the first one's pixels.

        Raises:
            ValueError: they give different numbers of features at every size they accept.
        """
        super().__init__()
        if any(tower.kind.native is not None for tower in towers):
            raise ValueError(
                "towers of native resolution cannot be joined with others: their features stand for other parts of an "
                "image; name one tower"
            )
        self.towers = nn.ModuleList(towers)
        self.stats = tuple(stats)
        self.num_features_at(self.input_size)

    @property
    def members(self) -> list[VisionTower]:
        """The towers in order."""
        return [tower for tower in self.towers if isinstance(tower, VisionTower)]

    @property
    def first(self) -> VisionTower:
        """The tower that images are sized and normalised for."""
        return self.members[0]

    @property
    def sizing(self) -> None:
        """None: images are squares."""
        return

    @property
    def names(self) -> list[str]:
        """Folders or hub ids."""
        return [tower.spec.name for tower in self.members]

    @property
    def is_loaded(self) -> bool:
        """Whether all towers have weights."""
        return all(tower.is_loaded for tower in self.members)

    @property
    def frozen(self) -> bool:
        """Whether no tower learns."""
        return all(tower.frozen for tower in self.members)

    @property
    def hidden_size(self) -> int:
        """Width V of the joined features."""
        return sum(tower.hidden_size for tower in self.members)

    @property
    def image_size(self) -> int:
        """Side of the square input that the first encoder was trained with, pixels."""
        return self.first.image_size

    @property
    def input_size(self) -> int:
        """Side of the square image that the towers are given, pixels."""
        return self.first.input_size

    @property
    def num_features(self) -> int:
        """Features per image of `input_size`."""
        return self.num_features_at(self.input_size)

    def num_features_at(self, image_size: int) -> int:
        """Return the features P per square image of a size for the first tower, pixels.

        Raises:
            ValueError: the towers give different numbers of features.
        """
        counts = [
            tower.num_features_at(size) for tower, size in zip(self.members, self._sizes(image_size), strict=True)
        ]
        if len(set(counts)) > 1:
            listing = ", ".join(f"{name} {count}" for name, count in zip(self.names, counts, strict=True))
            raise ValueError(
                f"joined vision towers must give equally many features per image, found {listing} for images of "
                f"{image_size} pixels; choose towers with the same number of patches per side, without class tokens"
            )
        return counts[0]

    def feature_grid_at(self, image_size: int) -> int | None:
        """Return the features per side of a square image of that size, None when class tokens are among them."""
        return self.first.feature_grid_at(image_size)

    @property
    def layers(self) -> list[nn.Module]:
        """The encoder layers that are computed."""
        return [layer for tower in self.members for layer in tower.layers]

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return self.first.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.first.device

    def build(self) -> None:
        """Create the modules of every tower, see `VisionTower.build`."""
        for tower in self.members:
            tower.build()

    def load_model(self, dtype: torch.dtype | None = None) -> None:
        """Load every tower's weights, see `VisionTower.load_model`."""
        for tower in self.members:
            tower.load_model(dtype)

    def check(self) -> None:
        """Compare every tower's files with its encoder, see `VisionTower.check`."""
        for tower in self.members:
            tower.check()

    def unneeded_tensors(self) -> set[str]:
        """Return the tensors that no selected feature needs, as a model names them after `vision_tower.`."""
        return {
            f"towers.{number}.{name}" for number, tower in enumerate(self.members) for name in tower.unneeded_tensors()
        }

    def set_frozen(self, frozen: bool) -> None:
        """Freeze all towers or make them trainable."""
        for tower in self.members:
            tower.set_frozen(frozen)

    def forward(self, images: Tensor | Sequence[Tensor]) -> Tensor | list[Tensor]:
        """Encode images [N, 3, H, W], normalised for the first tower, to [N, P, V]; a list to a list of [1, P, V]."""
        if not isinstance(images, Tensor):
            return [self._encode(image[None]) for image in images]
        return self._encode(images)

    def _encode(self, images: Tensor) -> Tensor:
        sizes = self._sizes(images.shape[-1])
        features = [
            tower(self._seen_by(idx, images, size))
            for idx, (tower, size) in enumerate(zip(self.members, sizes, strict=True))
        ]
        return torch.cat(features, dim=-1)

    def _sizes(self, image_size: int) -> list[int]:
        """Return what every tower is given: as many patches as the first has, where its encoder can take that size."""
        grid = image_size // self.first.patch_size
        return [image_size, *(tower.size_for_grid(grid) for tower in self.members[1:])]

    def _seen_by(self, idx: int, images: Tensor, size: int) -> Tensor:
        ours, theirs = self.stats[0], self.stats[idx]
        seen = images
        if ours is not None and theirs is not None and ours != theirs:
            values = [torch.tensor(row, device=images.device)[:, None, None] for row in (*ours, *theirs)]
            mean, std, other_mean, other_std = values
            seen = ((images.float() * std + mean - other_mean) / other_std).to(images.dtype)
        if seen.shape[-1] == size:
            return seen
        resized = F.interpolate(seen.float(), size=(size, size), mode="bicubic", antialias=True, align_corners=False)
        return resized.to(images.dtype)
