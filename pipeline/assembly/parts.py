"""The model of a stage: its parts joined, what of it learns and in which type."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from model.files.adapter import load_projector
from model.fusion.resolution import Pinpoints
from model.hub.lora import add_lora
from model.hub.quantization import Quantization
from model.hub.weights import LlavaModel, build_llava, load_llava, set_trainable
from model.llava.fp8_linear import quantize_layers
from model.llava.fp8_mlp import join_gated_mlps
from pipeline.assembly.acceleration import accelerate
from pipeline.assembly.adapter_base import fingerprint_base
from pipeline.assembly.facts import has_wrapped_images, load_tokenizer
from pipeline.assembly.precision import DTYPES, load_dtype
from pipeline.config import ConfigError, ModelConfig, Recipe
from pipeline.run_folder.place import reading_copy

PROJECTOR_FILE = "projector/mm_projector.safetensors"
"""What projector pretraining leaves in its run folder."""
MODEL_FOLDER = "model"
"""What finetuning leaves in its run folder."""


def build_model(recipe: Recipe, device: torch.device) -> LlavaModel:
    """Put the model of a stage together on `device`, with what the stage trains requiring gradients."""
    projector = find_projector(recipe.model.pretrain_mm_mlp_adapter)
    if recipe.lora.rank is not None:
        fingerprint_base(recipe.model)  # of what is loaded now: the base may change while the run goes on
    model = join_parts(recipe.model, projector, load_dtype(recipe), quantize=recipe.lora.quantize_base)
    describe_images(model, recipe.data.image_aspect_ratio, recipe.data.image_grid_pinpoints)
    return set_up_stage(model, recipe, device)


def set_up_stage(model: LlavaModel, recipe: Recipe, device: torch.device) -> LlavaModel:
    """Choose what learns, in which type, and how layers run, in place; returns the model on `device`, to be trained."""
    choose_trained(model, recipe)
    frozen_dtype, trained_dtype = DTYPES[recipe.training.precision], DTYPES[recipe.training.master_dtype]
    for parameter in model.parameters():
        if parameter.is_floating_point():  # quantised weights are bytes
            parameter.data = parameter.data.to(trained_dtype if parameter.requires_grad else frozen_dtype)
    nn.Module.to(model, device)
    if recipe.training.linear_precision == "fp8":
        quantize_layers(model.get_model().layers)
        join_gated_mlps(model.get_model().layers)
    accelerate(model, recipe.training)
    nn.Module.train(model)
    return model


def choose_trained(model: LlavaModel, recipe: Recipe) -> None:
    """Let what the stage trains require gradients, adapters added and the tower included if it is to learn."""
    set_trainable(model, recipe.stage)
    lora = recipe.lora
    if lora.rank is not None:
        add_lora(model, lora.rank, lora.scale_alpha, lora.dropout, lora.targets)
    tower = model.get_vision_tower()
    if tower is not None and recipe.training.vision_tower_lr is not None:
        tower.set_frozen(False)


def join_parts(
    parts: ModelConfig, projector: str | Path | None, dtype: torch.dtype, *, quantize: Quantization | None = None
) -> LlavaModel:
    """Join language model, tower and projector; a LLaVA folder has its own, replaced by `projector` if given.

    Raises:
        ValueError: a part is missing, or the projector file does not fit.
    """
    if parts.vision_tower is not None:
        model = build_llava(
            language_model=parts.language_model,
            vision_tower=parts.vision_tower,
            projector_type=parts.mm_projector_type,
            select_layer=parts.mm_vision_select_layer,
            select_feature=parts.mm_vision_select_feature,
            scales=parts.mm_vision_scales,
            projector_path=projector,
            patch_merge=parts.mm_patch_merge_type or "flat",
            dtype=dtype,
            attention=parts.attention,
            quantize=quantize,
        )
    else:
        model = load_llava(parts.language_model, dtype=dtype, attention=parts.attention, quantize=quantize)
        if parts.mm_patch_merge_type is not None:
            model.get_model().set_patch_merge(parts.mm_patch_merge_type)
        if projector is not None:
            load_projector(model.get_model(), projector)
    add_tokens(model, parts, projector)
    return model


@dataclass
class _TokenArgs:
    mm_use_im_patch_token: bool
    mm_use_im_start_end: bool
    pretrain_mm_mlp_adapter: str | Path | None
    tune_mm_mlp_adapter: bool = False


def add_tokens(model: LlavaModel, parts: ModelConfig, projector: str | Path | None) -> None:
    """Give the model the special tokens around images that it is to have, with rows from the projector's file.

    Raises:
        ValueError: there is no tokenizer, or the file lacks the rows.
    """
    args = _TokenArgs(parts.mm_use_im_patch_token, has_wrapped_images(parts), projector)
    if args.mm_use_im_patch_token or args.mm_use_im_start_end:
        model.initialize_vision_tokenizer(args, load_tokenizer(parts.language_model))


def describe_images(model: LlavaModel, aspect_ratio: str, pinpoints: Pinpoints) -> LlavaModel:
    """Note in the model's config how its images become tiles, which its own forward pass needs too."""
    model.config.image_aspect_ratio = aspect_ratio
    if pinpoints is not None and not isinstance(pinpoints, str):
        pinpoints = [list(pair) for pair in pinpoints]
    model.config.image_grid_pinpoints = pinpoints
    return model


def find_projector(adapter: str | None) -> str | None:
    """Return the projector file that `model.pretrain_mm_mlp_adapter` names, directly or as a pretraining run.

    Raises:
        ConfigError: neither a file nor the folder of a finished pretraining run.
    """
    if adapter is None or Path(adapter).is_file():
        return adapter
    folder = reading_copy(adapter, PROJECTOR_FILE) if adapter.startswith("s3://") else Path(adapter)
    path = folder / PROJECTOR_FILE
    if not path.is_file():
        raise ConfigError(
            f"model.pretrain_mm_mlp_adapter {adapter}: expected a projector file or the folder of a finished "
            f"pretraining run (with {PROJECTOR_FILE}); finish that run first, or correct the path"
        )
    return str(path)
