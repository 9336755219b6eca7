"""The mixin for a decoder body: vision tower and projector, attached, described in the config, and kept.

Shapes are those of `llava_arch`, which holds the mixin for the whole language model.
"""

from collections.abc import Sequence
from typing import Any, cast

from transformers import PretrainedConfig

from model.adapter import load_projector
from model.pixels import read_pixel_stats
from model.projector import build_vision_projector
from model.vision_tower import VisionTower, build_vision_tower


class LlavaMetaModel:
    """Mixin for the decoder body: owns `vision_tower` and `mm_projector`. Place it before the body in the bases."""

    config: Any

    def __init__(self, config: PretrainedConfig):
        super().__init__(config)  # type: ignore[call-arg]
        if hasattr(config, "mm_vision_tower") and config.mm_vision_tower:
            tower = build_vision_tower(config, delay_load=True)
            if hasattr(config, "mm_vision_weights") and config.mm_vision_weights == "checkpoint":
                tower.build()
            self.vision_tower: VisionTower | list[VisionTower] = tower
            self.mm_projector = build_vision_projector(cast(Any, config))

    def get_vision_tower(self) -> VisionTower | None:
        """Return the tower, or None when the model has none yet."""
        if not hasattr(self, "vision_tower"):
            return None
        return self.vision_tower[0] if isinstance(self.vision_tower, list) else self.vision_tower

    def initialize_vision_modules(self, model_args: Any, fsdp: Sequence[str] | str | None = None) -> None:
        """Attach tower and projector, keeping those that exist already.

        Args:
            model_args: `vision_tower`, `mm_vision_select_layer`, `mm_vision_select_feature`,
                `pretrain_mm_mlp_adapter` (path or None) and optionally `mm_projector_type` (default `linear`).
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
        self.mm_projector.requires_grad_(True)
        if model_args.pretrain_mm_mlp_adapter:
            load_projector(self.mm_projector, model_args.pretrain_mm_mlp_adapter)

    def _place_tower(self, tower: VisionTower, in_list: bool) -> None:
        if hasattr(self, "vision_tower"):
            del self.vision_tower  # nn.Module refuses to replace a registered module by a list
        self.vision_tower = [tower] if in_list else tower

    def _describe_in_config(self, tower: VisionTower, projector_type: str, in_list: bool) -> None:
        config = self.config
        config.use_mm_proj = True
        config.mm_projector_type = projector_type
        config.mm_hidden_size = tower.hidden_size
        config.mm_vision_tower = tower.spec.name
        layers = tower.spec.layers  # a list, as config.json gives it back
        config.mm_vision_select_layer = layers[0] if isinstance(tower.spec.select_layer, int) else list(layers)
        config.mm_vision_select_feature = tower.spec.select_feature
        config.mm_vision_config = tower.config.to_dict()
        config.mm_vision_weights = "external" if in_list else "checkpoint"
        stats = read_pixel_stats(tower.spec.name)
        if stats is not None:
            config.mm_image_mean, config.mm_image_std = list(stats.mean), list(stats.std)
