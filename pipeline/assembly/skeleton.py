"""The model of a config without a single weight: modules on the `meta` device, set up as the stage would train them."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from model.backbones.registry import backbone_of_language_model, backbone_of_llava
from model.files.checkpoint_files import read_checkpoint_config
from model.hub.lora import add_lora
from model.hub.weights import LlavaModel, read_llava_config, set_trainable
from model.vision.tower_builder import build_vision_tower
from pipeline.config import ExperimentConfig, ModelConfig


def build_skeleton(config: ExperimentConfig) -> LlavaModel:
    """Build the model that a run would train, with shapes and `requires_grad` but without values.

    Raises:
        ValueError: a part is missing or of an unknown kind.
    """
    with torch.device("meta"):
        parts = config.model
        model = _join(parts) if parts.vision_tower is not None else _open(parts)
        set_trainable(model, config.stage)
        lora = config.lora
        if lora.rank is not None:
            add_lora(model, lora.rank, lora.scale_alpha, lora.dropout, lora.targets)
    tower = model.get_vision_tower()
    if tower is not None and config.training.vision_tower_lr is not None:
        tower.set_frozen(False)
    return model


def _open(parts: ModelConfig) -> LlavaModel:
    """Build a complete LLaVA model from its config."""
    values = read_checkpoint_config(parts.language_model, "model.language_model")
    backbone = backbone_of_llava(values)
    if backbone is None:
        raise ValueError(f"{parts.language_model} is no LLaVA model; set model.vision_tower beside a language model")
    model = backbone.model_class(read_llava_config(parts.language_model))
    tower = model.get_vision_tower()
    if tower is not None and not tower.is_loaded:
        tower.build()
    return model


def _join(parts: ModelConfig) -> LlavaModel:
    """Build a language model, a tower and a projector from their configs."""
    values = read_checkpoint_config(parts.language_model, "model.language_model")
    backbone = backbone_of_language_model(values, parts.language_model)
    kind = backbone.config_class.model_type
    model = backbone.model_class(backbone.config_class.from_dict({**values, "model_type": kind}))
    args = SimpleNamespace(
        vision_tower=parts.vision_tower,
        mm_vision_select_layer=parts.mm_vision_select_layer,
        mm_vision_select_feature=parts.mm_vision_select_feature,
        mm_vision_scales=parts.mm_vision_scales,
        mm_projector_type=parts.mm_projector_type,
        mm_patch_merge_type=parts.mm_patch_merge_type or "flat",
        pretrain_mm_mlp_adapter=None,
    )
    tower = build_vision_tower(args, delay_load=True)
    tower.build()
    body = model.get_model()
    body.vision_tower = tower  # built already, so that nothing below loads its weights
    body.initialize_vision_modules(args)
    return model
