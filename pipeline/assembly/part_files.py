"""The files of a model's parts before a run loads them: whole, and with the tensors that their configs announce.

Only headers are read. Parts named by hub id are left to the hub's own checks: looking at their files would fetch them.
"""

from __future__ import annotations

from pathlib import Path

import torch

from model.files.adapter import check_projector
from model.files.checkpoint_files import read_checkpoint_shapes, refuse_other_folders
from model.hub.weights import check_weights
from model.vision.tower_builder import build_vision_tower
from pipeline.assembly.facts import vision_args
from pipeline.assembly.parts import find_projector
from pipeline.assembly.skeleton import join_skeleton
from pipeline.config import ConfigError, ModelConfig


def check_part_files(parts: ModelConfig) -> None:
    """Check every part that is a folder or file here.

    Raises:
        ConfigError: a file is damaged, or tensors are missing, unexpected or of another shape; names them.
    """
    try:
        check_language_model(parts)
        check_tower(parts)
        check_projector_file(parts)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"model: {error}") from error


def check_language_model(parts: ModelConfig) -> str:
    """Check the language model, or the whole LLaVA folder that takes its place; returns what was found.

    Raises:
        ValueError: see `check_part_files`.
    """
    name = parts.language_model
    if not Path(name).is_dir():
        return f"{name} is not on this machine: the run fetches it from the hub"
    refuse_other_folders(name, "model.language_model")
    num_tensors = len(read_checkpoint_shapes(name))
    check_weights(name)
    return f"{name} has its weights, {num_tensors} tensors"


def check_tower(parts: ModelConfig) -> str:
    """Check the vision tower, or each of several; returns what was found.

    Raises:
        ValueError: see `check_part_files`.
    """
    if parts.vision_tower is None:
        return f"inside {parts.language_model}, or named there"
    names = (parts.vision_tower,) if isinstance(parts.vision_tower, str) else parts.vision_tower
    here = [name for name in names if Path(name).is_dir()]
    for name in here:
        build_vision_tower(vision_args(parts)._replace(vision_tower=name), delay_load=True).check()
    away = [name for name in names if name not in here]
    found = [f"{name} has its weights" for name in here]
    return "; ".join([*found, *(f"{name} is fetched from the hub" for name in away)])


def check_projector_file(parts: ModelConfig) -> str:
    """Check the projector file that the run starts from; returns what was found.

    Raises:
        ConfigError: it is not there.
        ValueError: see `check_part_files`.
    """
    projector = find_projector(parts.pretrain_mm_mlp_adapter)
    if projector is None:
        return "a new one (model.pretrain_mm_mlp_adapter)"
    with torch.device("meta"):
        body = join_skeleton(parts).get_model()
    check_projector(body, projector)
    return projector
