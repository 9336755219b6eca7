"""A finished run's model as a folder for transformers and vLLM, with the encoding it was trained with."""

from __future__ import annotations

from pathlib import Path

import torch

from model.hub.export import export_transformers
from pipeline.assembly.folder import read_folder_facts, read_folder_prompt
from pipeline.assembly.merge import find_model_folder, load_merged, require_empty
from pipeline.samples.prompt.jinja_template import JinjaTemplate
from pipeline.samples.prompt.served_prompt import check_served, served_tokenizer
from pipeline.samples.prompt.text_tokenizer import TextTokenizer


def export_model(source: str | Path, target: str | Path, dtype: torch.dtype = torch.float32) -> None:
    """Write a finetuned model as a folder of that of transformers' LLaVA classes which expresses it.

    Adapters are folded in.

    Args:
        source: folder of a finished finetuning run, or a model folder.
        target: folder to write; must be empty or not exist.
        dtype: type of the written weights.

    Raises:
        ConfigError: source holds no model, or target holds files.
        ValueError: none of them expresses the model.
    """
    folder, out = find_model_folder(source), require_empty(target)
    tokenizer, template = read_folder_prompt(folder)
    check_served(tokenizer, template, TextTokenizer(tokenizer, adds_bos=not isinstance(template, JinjaTemplate)))
    served = served_tokenizer(tokenizer, template)
    export_transformers(
        load_merged(folder, dtype),
        served,
        out,
        image_processor=read_folder_facts(folder).image_spec.to_preprocessor_config(),
        chat_template=served.get_chat_template(),
    )
