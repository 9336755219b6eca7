"""Opening what a user may call a model: a run, one of its checkpoints, a model folder, adapters, an exported folder."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from transformers import PreTrainedTokenizerFast

from model.files.checkpoint_files import read_checkpoint_config
from pipeline.assembly.encoder import build_encoder
from pipeline.assembly.facts import load_tokenizer, read_model_tokenizer
from pipeline.assembly.folder import RECIPE_FILE, OpenedModel, open_model
from pipeline.assembly.import_folder import is_transformers_llava, open_exported
from pipeline.assembly.parts import MODEL_FOLDER, choose_trained, describe_images, find_projector, join_parts
from pipeline.checkpoint.manifest import MANIFEST_NAME
from pipeline.checkpoint.state import trained_parameters
from pipeline.checkpoint.storage import open_storage
from pipeline.checkpoint.store import Checkpoint
from pipeline.checkpoint.verification import verify
from pipeline.config import ConfigError, ExperimentConfig, load_config
from pipeline.samples.prompt.ending import answer_as_trained


class Opened(NamedTuple):
    """A model that can be asked."""

    opened: OpenedModel
    tokenizer: PreTrainedTokenizerFast


def open_any(path: str | Path, device: str | torch.device = "cpu") -> Opened:
    """Open a model for inference, in float32.

    Args:
        path: folder of a finished run or of its model, `RUN/checkpoints/step-...`, adapters, or a folder of
            transformers' LLaVA classes.
        device: where it goes.

    Raises:
        ConfigError: it is none of them.
        ValueError: a file is missing or does not fit.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder; expected a run, a checkpoint of one, or a model folder")
    if (folder / MANIFEST_NAME).is_file():
        return open_checkpoint(folder, device)
    if not (folder / RECIPE_FILE).is_file() and _is_exported(folder):
        exported = Opened(*open_exported(folder))
        nn.Module.to(exported.opened.model, device)
        return exported
    opened = open_model(folder, device)
    return Opened(opened, _tokenizer_of(folder))


def open_checkpoint(folder: Path, device: str | torch.device = "cpu") -> Opened:
    """Open the model as it was at a step of its run.

    Raises:
        CheckpointError: a file of it is damaged.
        ConfigError: a part that its config names is missing.
        ValueError: it trains other tensors than its config says.
    """
    # 1. Every byte is what the manifest says.
    storage = open_storage(folder.parent)
    generation = next((one for one in storage.generations() if one.name == folder.name), None)
    if generation is None:
        raise ConfigError(f"{folder}: expected a checkpoint inside the folder of its run, RUN/checkpoints/step-...")
    manifest = verify(storage, generation)
    config = ExperimentConfig.model_validate(manifest.state["config"])
    # 2. The model as that stage begins it, with the trained weights put in.
    encoder = build_encoder(config.model, config.data)
    model = join_parts(config.model, find_projector(config.model.pretrain_mm_mlp_adapter), torch.float32)
    describe_images(model, config.data.image_aspect_ratio, config.data.image_grid_pinpoints)
    model.config.tokenizer_model_max_length = config.data.max_length
    choose_trained(model, config.recipe)
    parameters = trained_parameters(model)
    saved = Checkpoint(folder, manifest.step, manifest.state).tensors("model")
    if parameters.keys() != saved.keys():
        raise ValueError(f"{folder} holds {len(saved)} trained tensors, its config trains {len(parameters)}")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(saved[name])
            parameter.requires_grad_(False)
    # 3. As for inference.
    tokenizer = read_model_tokenizer(config.model)
    answer_as_trained(model, encoder.template, tokenizer)
    nn.Module.to(model, device)
    nn.Module.eval(model)
    return Opened(OpenedModel(model, encoder), tokenizer)


def _is_exported(folder: Path) -> bool:
    if not (folder / "config.json").is_file():
        return False
    return is_transformers_llava(read_checkpoint_config(str(folder), "model"))


def _tokenizer_of(folder: Path) -> PreTrainedTokenizerFast:
    """Read the tokenizer of what `open_model` opens."""
    if not (folder / "config.yaml").is_file():
        return load_tokenizer(str(folder))
    config = load_config(folder / "config.yaml")
    if config.stage == "finetune":
        return load_tokenizer(str(folder / MODEL_FOLDER))
    return read_model_tokenizer(config.model)
