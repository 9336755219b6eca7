"""The result that a stage leaves: projector pretraining the projector, finetuning a whole model or adapters."""

from __future__ import annotations

from pathlib import Path

from model.files.adapter import write_projector
from model.hub.lora import adapter_state
from model.hub.weights import LlavaModel, pretrained_state
from pipeline.assembly.folder import save_adapter_folder, save_model_folder
from pipeline.assembly.parts import MODEL_FOLDER, PROJECTOR_FILE
from pipeline.assembly.precision import DTYPES
from pipeline.assembly.provenance import provenance_metadata
from pipeline.checkpoint.state import gather_whole
from pipeline.config import Recipe
from pipeline.parallel.ranks import Workers


def save_result(recipe: Recipe, run_dir: Path, model: LlavaModel, workers: Workers) -> str:
    """Write what the stage has trained into the run folder; all ranks take part, rank 0 writes; returns its path."""
    projector = gather_whole(pretrained_state(model), keep=workers.is_first)
    if recipe.stage == "pretrain":
        target = run_dir / PROJECTOR_FILE
        if workers.is_first:
            trained_on = provenance_metadata(recipe.model)
            write_projector(projector, target, model.config.im_start_end_ids, trained_on)
    elif recipe.lora.rank is not None:
        target = run_dir / MODEL_FOLDER
        adapters = gather_whole(adapter_state(model), keep=workers.is_first)
        if workers.is_first:
            save_adapter_folder(model, adapters, projector, recipe.model, recipe.data, target)
    else:
        target = run_dir / MODEL_FOLDER
        state = gather_whole(model.state_dict(), keep=workers.is_first)
        if workers.is_first:
            dtype = DTYPES[recipe.training.precision]
            save_model_folder(
                model, {name: tensor.to(dtype) for name, tensor in state.items()}, recipe.model, recipe.data, target
            )
    workers.barrier()
    return str(target)
