"""A finished run's model as a folder for transformers and vLLM, with the encoding it was trained with."""

from __future__ import annotations

from pathlib import Path

import torch

from model.export import export_transformers
from model.weights import load_llava
from pipeline.config import ConfigError
from pipeline.model_folder import MODEL_FOLDER, read_recipe
from pipeline.prepare import load_tokenizer, read_llava_facts
from pipeline.samples.chat_template import chat_template_of
from pipeline.samples.templates import get_template


def export_model(source: str | Path, target: str | Path, dtype: torch.dtype = torch.float32) -> None:
    """Write a finetuned model as a folder of transformers' `LlavaForConditionalGeneration`.

    Args:
        source: folder of a finished finetuning run, or a model folder.
        target: folder to write; must be empty or not exist.
        dtype: type of the written weights.

    Raises:
        ConfigError: source holds no model, or target holds files.
        ValueError: that class cannot express the model.
    """
    folder, out = Path(source), Path(target)
    if (folder / MODEL_FOLDER).is_dir():
        folder = folder / MODEL_FOLDER
    recipe = read_recipe(folder)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} exists and is not an empty folder; choose another one to export into")
    export_transformers(
        load_llava(folder, dtype=dtype),
        load_tokenizer(str(folder)),
        out,
        image_processor=read_llava_facts(str(folder)).processor,
        pad_to_square=recipe["image_aspect_ratio"] == "pad",
        chat_template=chat_template_of(get_template(recipe["template"])),
    )
