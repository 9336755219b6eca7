"""The vision tower of a model as an exported folder has it: config and tensors, for the size it is given there.

Shapes: P position embeddings with those of class tokens and registers, V vision width.
"""

from typing import Any

import torch
from torch import Tensor
from transformers.core_model_loading import revert_weight_conversion

from model.hub.hf_classes import HfClass
from model.vision.vision_tower import VisionTower

_POSITIONS = "embeddings.position_embeddings"


def exported_tower(tower: VisionTower, kind: HfClass, size: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return config and state dict, in the names that towers of this kind are published with.

    Args:
        tower: exportable as part of `kind`.
        kind: class of the folder.
        size: side of the square that images or tiles become, pixels. Classes with tiles take it from the tower's
            config; position embeddings are resized once for it then, as the tower does for every image.
    """
    config: dict[str, Any] = tower.config.to_dict()
    state: dict[str, Tensor] = dict(tower.vision_tower.state_dict())
    if kind.has_tiles and size != tower.image_size:
        config["image_size"] = size
        if _POSITIONS in state:
            state[_POSITIONS] = _positions_at(tower, size)
    with torch.device("meta"):
        unread: Any = tower.kind.model_class(tower.config)  # renames as if it had never been loaded
    return config, revert_weight_conversion(unread, state)


def _positions_at(tower: VisionTower, size: int) -> Tensor:
    """Return the position embeddings [1, P, V] that the tower adds to images of a size, pixels."""
    embeddings: Any = tower.vision_tower.embeddings
    num_patches = (size // tower.patch_size) ** 2
    shown = torch.empty(1, 1 + num_patches, tower.config.hidden_size)
    with torch.no_grad():
        positions: Tensor = embeddings.interpolate_pos_encoding(shown, size, size)
    return positions.detach()
