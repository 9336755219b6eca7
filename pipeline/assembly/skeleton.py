"""The model of a config without a single weight: modules on the `meta` device, set up as the stage would train them.

Projector and tokens go through the code that loads them for training, so that what does not fit is found here, in the
same words and before any worker.
"""

from __future__ import annotations

import warnings

import torch

from model.backbones.registry import backbone_of_language_model, backbone_of_llava
from model.files.checkpoint_files import read_checkpoint_config
from model.hub.weights import LlavaModel, load_projector, read_llava_config
from model.vision.tower_builder import build_vision_tower
from pipeline.assembly.facts import vision_args
from pipeline.assembly.parts import add_tokens, choose_trained, find_projector
from pipeline.config import ModelConfig, Recipe


def build_skeleton(recipe: Recipe) -> LlavaModel:
    """Build the model that a run would train, with shapes and `requires_grad` but without values.

    Raises:
        ValueError: a part is missing or of an unknown kind, or parts do not fit together.
    """
    parts = recipe.model
    projector = find_projector(parts.pretrain_mm_mlp_adapter)
    with torch.device("meta"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*copying from a non-meta parameter.*")  # shapes are all it is for
        model = join_skeleton(parts, projector)
        add_tokens(model, parts, projector)
        choose_trained(model, recipe)
    return model


def join_skeleton(parts: ModelConfig, projector: str | None = None) -> LlavaModel:
    """Join the parts of a model without values; call it with the `meta` device as torch's default.

    Raises:
        ValueError: a part is missing or of an unknown kind.
    """
    return _join(parts, projector) if parts.vision_tower is not None else _open(parts, projector)


def _open(parts: ModelConfig, projector: str | None) -> LlavaModel:
    """Build a complete LLaVA model from its config."""
    values = read_checkpoint_config(parts.language_model, "model.language_model")
    backbone = backbone_of_llava(values)
    if backbone is None:
        raise ValueError(f"{parts.language_model} is not a LLaVA model; set model.vision_tower too")
    model = backbone.model_class(read_llava_config(parts.language_model))
    tower = model.get_vision_tower()
    if tower is not None and not tower.is_loaded:
        tower.build()
    if parts.mm_patch_merge_type is not None:
        model.get_model().set_patch_merge(parts.mm_patch_merge_type)
    if projector is not None:
        load_projector(model.get_model(), projector)
    return model


def _join(parts: ModelConfig, projector: str | None) -> LlavaModel:
    """Build a language model, a tower and a projector from their configs."""
    values = read_checkpoint_config(parts.language_model, "model.language_model")
    backbone = backbone_of_language_model(values, parts.language_model)
    kind = backbone.config_class.model_type
    model = backbone.model_class(backbone.config_class.from_dict({**values, "model_type": kind}))
    args = vision_args(parts)._replace(pretrain_mm_mlp_adapter=projector)
    tower = build_vision_tower(args, delay_load=True)
    tower.build()
    body = model.get_model()
    body.vision_tower = tower  # built already, so that nothing below loads its weights
    body.initialize_vision_modules(args)
    return model
