"""The mixin for a decoder body: vision tower, projector and image newline, attached, described in the config, and kept.

Shapes are those of `llava_arch`, which holds the mixin for the whole language model.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import nn
from transformers import PretrainedConfig
from transformers import initialization as init

from model.files.adapter import load_projector
from model.fusion.resolution import PatchMerge, Resolution, read_resolution
from model.vision.pixels import read_pixel_stats
from model.vision.projector import build_vision_projector, keeps_grid
from model.vision.tower_builder import AnyTower, build_vision_tower
from model.vision.vision_tower import VisionTower


class LlavaMetaModel:
    """Mixin for the decoder body: owns `vision_tower`, `mm_projector` and `image_newline`. Place it before the body."""

    config: Any
    image_newline: nn.Parameter | None
    """[D], ends each row of an image's features when `mm_patch_merge_type` is `spatial_unpad`; else None."""

    def __init__(self, config: PretrainedConfig):
        super().__init__(config)  # type: ignore[call-arg]
        has_newline = hasattr(config, "mm_patch_merge_type") and config.mm_patch_merge_type == "spatial_unpad"
        self.image_newline = nn.Parameter(torch.empty(config.hidden_size)) if has_newline else None
        if hasattr(config, "mm_vision_tower") and config.mm_vision_tower:
            tower = build_vision_tower(config, delay_load=True)
            if hasattr(config, "mm_vision_weights") and config.mm_vision_weights == "checkpoint":
                tower.build()
            if config.mm_hidden_size not in (None, tower.hidden_size):
                raise ValueError(
                    f"mm_hidden_size is {config.mm_hidden_size}, but the selected features of {config.mm_vision_tower} "
                    f"are {tower.hidden_size} wide; correct mm_hidden_size, mm_vision_select_layer or the tower"
                )
            self.vision_tower: AnyTower | list[AnyTower] = tower
            self.mm_projector = build_vision_projector(cast(Any, config))

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)  # type: ignore[misc]  # that of the body, which comes later in the bases
        # A bare parameter that a checkpoint lacks would otherwise be uninitialised memory.
        if isinstance(module, LlavaMetaModel) and module.image_newline is not None:
            init.normal_(module.image_newline, mean=0.0, std=self.config.hidden_size**-0.5)

    def set_patch_merge(self, merge: PatchMerge) -> None:
        """Choose how features are laid out; a newline that it needs is new, one that it does not need is dropped."""
        self.config.mm_patch_merge_type = merge
        if merge != "spatial_unpad":
            self.image_newline = None
        elif self.image_newline is None:
            width = self.config.hidden_size
            device = cast(Any, self).embed_tokens.weight.device
            self.image_newline = nn.Parameter(torch.randn(width, device=device) * width**-0.5)

    def resolution_at(self, tile_size: int, tile_features: int) -> Resolution:
        """Return how this model lays out images, for tiles of that many pixels and features.

        Raises:
            ValueError: the config's fields do not fit together.
        """
        tower = self.get_vision_tower()
        config = self.config
        grid = None if tower is None else tower.feature_grid_at(tile_size)
        is_old = config.image_aspect_ratio in ("square", None)  # how configs of LLaVA 1.0 say that images are cropped
        return read_resolution(
            "crop" if is_old else config.image_aspect_ratio,
            config.image_grid_pinpoints,
            config.mm_patch_merge_type,
            tile_size=tile_size,
            tile_features=tile_features,
            tile_grid=grid if keeps_grid(config.mm_projector_type) else None,
            sizing=None if tower is None else tower.sizing,
        )

    def get_vision_tower(self) -> AnyTower | None:
        """Return the tower, or None when the model has none yet."""
        if not hasattr(self, "vision_tower"):
            return None
        return self.vision_tower[0] if isinstance(self.vision_tower, list) else self.vision_tower

    def initialize_vision_modules(self, model_args: Any, fsdp: Sequence[str] | str | None = None) -> None:
        """Attach tower and projector, keeping those that exist already.

        Args:
            model_args: `vision_tower`, `mm_vision_select_layer`, `mm_vision_select_feature`,
                `pretrain_mm_mlp_adapter` (path or None) and optionally `mm_projector_type` (default `linear`) and
                `mm_patch_merge_type` (default: as it is).
            fsdp: when not empty the tower is kept in a list, out of parameters() and of sharding.

        Raises:
            ValueError: the tower or adapter cannot be read, or another projector type exists already.
        """
        tower = self.get_vision_tower()
        if tower is None:
            tower = build_vision_tower(model_args)
        tower.load_model()
        self._place_tower(tower, in_list=bool(fsdp))
        requested = model_args.mm_projector_type if hasattr(model_args, "mm_projector_type") else "linear"
        has_projector = hasattr(self, "mm_projector")
        if has_projector and requested != self.config.mm_projector_type:
            raise ValueError(
                f"mm_projector_type {requested!r} is requested, but the model already has a trained "
                f"{self.config.mm_projector_type!r} projector; ask for that type or start from the language model"
            )
        self._describe_in_config(tower, requested, in_list=bool(fsdp))
        if not has_projector:
            self.mm_projector = build_vision_projector(self.config)
        if hasattr(model_args, "mm_patch_merge_type"):
            self.set_patch_merge(model_args.mm_patch_merge_type)
        self.mm_projector.requires_grad_(True)
        if model_args.pretrain_mm_mlp_adapter:
            load_projector(cast(nn.Module, self), model_args.pretrain_mm_mlp_adapter)

    def _place_tower(self, tower: AnyTower, in_list: bool) -> None:
        if hasattr(self, "vision_tower"):
            del self.vision_tower  # nn.Module refuses to replace a registered module by a list
        self.vision_tower = [tower] if in_list else tower

    def _describe_in_config(self, tower: AnyTower, projector_type: str, in_list: bool) -> None:
        config = self.config
        config.use_mm_proj = True
        config.mm_projector_type = projector_type
        config.mm_hidden_size = tower.hidden_size
        spec = (tower if isinstance(tower, VisionTower) else tower.first).spec
        layers = spec.layers  # a list, as config.json gives it back
        config.mm_vision_select_layer = layers[0] if isinstance(spec.select_layer, int) else list(layers)
        config.mm_vision_select_feature = spec.select_feature
        config.mm_vision_scales = list(spec.scales)
        config.mm_vision_weights = "external" if in_list else "checkpoint"
        stats = read_pixel_stats(spec.name)
        if stats is not None:
            config.mm_image_mean, config.mm_image_std = list(stats.mean), list(stats.std)
        if isinstance(tower, VisionTower):
            config.mm_vision_tower, config.mm_vision_config = spec.name, tower.config.to_dict()
            return
        config.mm_vision_tower = tower.names
        config.mm_vision_config = [member.config.to_dict() for member in tower.members]
        config.mm_tower_pixels = [None if one is None else [list(one.mean), list(one.std)] for one in tower.stats]
