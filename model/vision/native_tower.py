"""A vision tower that takes images of any shape: they come as square cells, and every cell becomes one feature.

The data side cuts an image into cells as it cuts others into tiles; the tower puts the patches of all images in one
row, without padding.

Shapes: U cells of all images, r side of a cell in patches, V vision width of a patch.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from model.vision import image_attention
from model.vision.native_encoders import Grids, NativeEncoder
from model.vision.tower_kinds import TOWER_KINDS
from model.vision.vision_tower import TowerSpec, VisionTower


class NativeTower(VisionTower):
    """An encoder of native resolution with the interface of one that takes squares, whose tiles are its cells."""

    native: NativeEncoder

    def __init__(self, spec: TowerSpec, config: PretrainedConfig):
        """Check that the encoder can give the features that `spec` selects.

        Raises:
            ValueError: it cannot; names the setting.
        """
        nn.Module.__init__(self)
        self.kind = TOWER_KINDS[config.model_type]
        assert self.kind.native is not None
        self.native = self.kind.native
        own_merge = self.native.merge(config)
        if spec.select_feature != "patch" or spec.scales != (1,):
            raise ValueError(
                f"{spec.name} takes images of any size: mm_vision_select_feature must be 'patch' and mm_vision_scales "
                f"[1], found {spec.select_feature!r} and {list(spec.scales)}"
            )
        if own_merge > 1 and spec.merge.side > 1:
            raise ValueError(
                f"{spec.name} joins {own_merge} x {own_merge} patches by itself; take {spec.merge.way}"
                f"{spec.merge.side}_ out of mm_projector_type"
            )
        num_layers = self.native.num_layers(config)
        self._check_layers(spec, num_layers)
        self.side = own_merge if own_merge > 1 else spec.merge.side
        """r."""
        self.spec = spec
        self.config = config
        self._states = tuple(layer % (num_layers + 1) for layer in spec.layers)
        self.num_used_layers = max(self._states)
        self.frozen = True
        self.is_loaded = False

    @property
    def hidden_size(self) -> int:
        """Width of a cell's feature."""
        joined = 1 if self.spec.merge.way == "pool" and self.spec.merge.side > 1 else self.side**2
        return int(self.config.hidden_size) * len(self._states) * joined

    @property
    def image_size(self) -> int:
        """Side of a cell, pixels."""
        return self.patch_size * self.side

    @property
    def input_size(self) -> int:
        """Side of a cell, pixels."""
        return self.image_size

    def num_features_at(self, image_size: int) -> int:
        """Return 1, the features of a cell.

        Raises:
            ValueError: cells are of another size.
        """
        if image_size != self.image_size:
            raise ValueError(f"vision tower {self.spec.name} takes cells of {self.image_size} pixels, not {image_size}")
        return 1

    def feature_grid_at(self, image_size: int) -> int | None:
        """Return 1: a cell is a grid of one feature."""
        return self.num_features_at(image_size)

    def forward(self, images: Tensor | Sequence[Tensor], grids: Grids | None = None) -> Tensor | list[Tensor]:
        """Encode normalised cells [U, 3, H, H] of all images to [U, 1, V * r^2].

        Args:
            images: cells, image by image and row by row.
            grids: rows and columns of each image; None for a single cell.

        Raises:
            ValueError: the grids and the cells do not fit, or there are no weights yet.
        """
        if not isinstance(images, Tensor):
            raise ValueError("images of native resolution are given as cells [U, 3, H, H] with their grids")
        grids = [(1, 1)] if grids is None else list(grids)
        expected = sum(rows * columns for rows, columns in grids)
        if expected != len(images):
            raise ValueError(
                f"{len(images)} cells, but the grids of {len(grids)} images have {expected}; pass image_sizes, one "
                "(height, width) per image"
            )
        if not self.is_loaded:
            raise ValueError(f"vision tower {self.spec.name} has no weights yet; call load_model() first")
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            self._attend_within_images()
            cells = images.to(self.device, self.dtype)
            states = self.native.run(self.vision_tower, cells, grids, self.side, set(self._states))
            parts = [states[number].view(len(images), self.side**2, -1) for number in self._states]
            hidden = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
            is_mean = self.spec.merge.way == "pool" and self.spec.merge.side > 1
            features = hidden.mean(dim=1, keepdim=True) if is_mean else hidden.flatten(1)[:, None]
        return features.to(images.dtype)

    def _attend_within_images(self) -> None:
        """Let layers that know nothing of lengths attend within images; Qwen's are told the lengths.

        At every call: choosing the attention of the whole model chooses its towers' too.
        """
        if self.native.merge(self.config) == 1 and self.config._attn_implementation != image_attention.NAME:
            image_attention.register()
            self.vision_tower.config._attn_implementation = image_attention.NAME
