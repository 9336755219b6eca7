"""The frozen tower of a config, alone, since filling the cache and launching a run need no language model."""

from __future__ import annotations

from model.hub.lone_tower import LoneTower, holds_tower_weights, load_named_tower, load_tower_of_llava
from pipeline.assembly.facts import vision_args
from pipeline.assembly.parts import find_projector
from pipeline.assembly.precision import DTYPES, load_dtype
from pipeline.config import ConfigError, Recipe


def load_tower(recipe: Recipe) -> LoneTower:
    """Load the tower with the values that training would give it, on the CPU.

    Raises:
        ConfigError: it is missing or does not fit, or a trained tower is part of the adapter.
    """
    parts = recipe.model
    projector = find_projector(parts.pretrain_mm_mlp_adapter)
    if projector is not None and holds_tower_weights(projector):
        raise ConfigError(
            f"data.feature_cache: {projector} replaces weights of the vision tower, which the cache does not know; "
            "leave data.feature_cache out"
        )
    stored = load_dtype(recipe)  # training loads in this type first, and each rounding counts
    try:
        if parts.vision_tower is None:
            lone = load_tower_of_llava(parts.language_model, stored)
        else:
            lone = load_named_tower(vision_args(parts), stored)
    except ValueError as error:
        raise ConfigError(f"model: {error}") from error
    for parameter in lone.tower.parameters():
        parameter.data = parameter.data.to(DTYPES[recipe.training.precision])
    return lone
