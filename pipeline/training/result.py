"""What a stage trains: the model put together, what of it learns and in which type, and the result it leaves.

Projector pretraining leaves the projector; finetuning a whole model, or adapters beside a projector.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from model.files.adapter import write_projector
from model.hub.lora import adapter_state, add_lora
from model.hub.weights import LlavaModel, pretrained_state, set_trainable
from pipeline.assembly.acceleration import accelerate
from pipeline.assembly.folder import (
    MODEL_FOLDER,
    PROJECTOR_FILE,
    describe_images,
    find_projector,
    join_parts,
    save_adapter_folder,
    save_model_folder,
)
from pipeline.checkpoint.state import gather_whole
from pipeline.config import ExperimentConfig
from pipeline.parallel.ranks import Workers

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def build_model(config: ExperimentConfig, device: torch.device) -> LlavaModel:
    """Put the model of a stage together on `device`, with what the stage trains requiring gradients."""
    projector = find_projector(config.model.pretrain_mm_mlp_adapter)
    model = join_parts(config.model, projector, load_dtype(config), quantize=config.lora.quantize_base)
    describe_images(model, config.data.image_aspect_ratio, config.data.image_grid_pinpoints)
    return set_up_stage(model, config, device)


def load_dtype(config: ExperimentConfig) -> torch.dtype:
    """Return the type that weights are read in: what is trained must not pass through a narrower one on its way."""
    trains_all = config.stage == "finetune" and config.lora.rank is None
    return DTYPES[config.training.master_dtype if trains_all else config.training.precision]


def set_up_stage(model: LlavaModel, config: ExperimentConfig, device: torch.device) -> LlavaModel:
    """Choose what learns, in which type, and how layers run, in place; returns the model on `device`, to be trained."""
    frozen_dtype, trained_dtype = DTYPES[config.training.precision], DTYPES[config.training.master_dtype]
    set_trainable(model, config.stage)
    if config.lora.rank is not None:
        add_lora(model, config.lora.rank, config.lora.scale_alpha, config.lora.dropout, config.lora.targets)
    tower = model.get_vision_tower()
    if tower is not None and config.training.vision_tower_lr is not None:
        tower.set_frozen(False)
    for parameter in model.parameters():
        if parameter.is_floating_point():  # quantised weights are bytes
            parameter.data = parameter.data.to(trained_dtype if parameter.requires_grad else frozen_dtype)
    accelerate(model, config.training)
    nn.Module.to(model, device)
    nn.Module.train(model)
    return model


def save_result(config: ExperimentConfig, model: LlavaModel, workers: Workers) -> str:
    """Write what the stage has trained into the run folder; all ranks take part, rank 0 writes; returns its path."""
    run_dir = Path(config.run_dir)
    projector = gather_whole(pretrained_state(model), keep=workers.is_first)
    if config.stage == "pretrain":
        target = run_dir / PROJECTOR_FILE
        if workers.is_first:
            write_projector(projector, target, model.config.im_start_end_ids)
    elif config.lora.rank is not None:
        target = run_dir / MODEL_FOLDER
        adapters = gather_whole(adapter_state(model), keep=workers.is_first)
        if workers.is_first:
            save_adapter_folder(model, adapters, projector, config, target)
    else:
        target = run_dir / MODEL_FOLDER
        state = gather_whole(model.state_dict(), keep=workers.is_first)
        if workers.is_first:
            dtype = DTYPES[config.training.precision]
            save_model_folder(model, {name: tensor.to(dtype) for name, tensor in state.items()}, config, target)
    workers.barrier()
    return str(target)
