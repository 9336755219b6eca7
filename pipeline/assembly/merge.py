"""Adapters folded into their base language model: a model folder that needs neither peft nor its base."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from model.hub.lora import holds_adapters, merge_lora
from model.hub.weights import LlavaModel, save_llava
from pipeline.assembly.folder import copy_encoding, load_model_folder
from pipeline.assembly.parts import MODEL_FOLDER
from pipeline.config import ConfigError


def merge_model(source: str | Path, target: str | Path, dtype: torch.dtype = torch.float32) -> None:
    """Write a model finetuned with adapters as a whole model folder.

    Args:
        source: folder of a finished finetuning run with adapters, or its model folder.
        target: folder to write; must be empty or not exist.
        dtype: type of the written weights.

    Raises:
        ConfigError: source holds no adapters, or target holds files.
        ValueError: the base is missing or does not fit.
    """
    folder = find_model_folder(source)
    if not holds_adapters(folder):
        raise ConfigError(f"{folder} holds no adapters to merge; expected the result of finetuning with lora.rank")
    out = require_empty(target)
    save_llava(load_merged(folder, dtype), out)
    copy_encoding(folder, out)


def load_merged(folder: Path, dtype: torch.dtype) -> LlavaModel:
    """Load a model folder with its adapters, if it has any, folded in; the sum is formed in float32."""
    if not holds_adapters(folder):
        return load_model_folder(folder, dtype)
    model = load_model_folder(folder, torch.float32)
    merge_lora(model)
    nn.Module.to(model, dtype=dtype)
    return model


def find_model_folder(source: str | Path) -> Path:
    """Return the model folder of a run, or the folder itself."""
    inside = Path(source) / MODEL_FOLDER
    return inside if inside.is_dir() else Path(source)


def require_empty(target: str | Path) -> Path:
    """Return a folder that may be written.

    Raises:
        ConfigError: it holds files.
    """
    out = Path(target)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} exists and is not an empty folder; choose another one to write into")
    return out
