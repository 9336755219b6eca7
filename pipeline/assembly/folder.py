"""A trained model as a self-contained folder: weights, tokenizer, image processor and conversation template.

Written at the end of finetuning, opened by `generate` and `evaluate`; also opens the result of projector pretraining.
A folder of adapters needs the language model that it names.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from model.hub.lora import holds_adapters, load_lora, save_lora
from model.hub.tokenizer_files import portable, write_tokenizer
from model.hub.weights import LlavaModel, load_llava, save_llava
from pipeline.assembly.adapter_base import check_base, fingerprint_base
from pipeline.assembly.encoder import build_encoder
from pipeline.assembly.facts import (
    TowerFacts,
    check_rows,
    folder_wraps_images,
    has_wrapped_images,
    load_tokenizer,
    read_llava_facts,
    read_model_tokenizer,
    read_tower_facts,
)
from pipeline.assembly.parts import MODEL_FOLDER, PROJECTOR_FILE, describe_images, join_parts
from pipeline.config import ConfigError, DataConfig, ModelConfig, load_config
from pipeline.samples.encode import SampleEncoder
from pipeline.samples.prompt.ending import answer_as_trained
from pipeline.samples.prompt.jinja_template import JinjaTemplate
from pipeline.samples.prompt.rendering import choose_template
from pipeline.samples.prompt.served_prompt import served_chat_template
from pipeline.samples.prompt.templates import Template

RECIPE_FILE = "ray_llava.json"
"""How a model folder's conversations and images are encoded."""
PROCESSOR_FILE = "preprocessor_config.json"
_RECIPE_FIELDS = ("template", "image_aspect_ratio", "image_grid_pinpoints", "max_length")


class OpenedModel(NamedTuple):
    """A model with everything needed to ask it something."""

    model: LlavaModel
    encoder: SampleEncoder
    """Encodes conversations and images as in training."""


def save_model_folder(
    model: LlavaModel, state: Mapping[str, Tensor], parts: ModelConfig, data: DataConfig, folder: Path
) -> None:
    """Write the model and what belongs to it; the folder loads without the run that made it.

    Args:
        model: gives the architecture; its own weights may be sharded.
        state: whole tensors of all its weights.
        parts: of the run that trained it.
        data: likewise.
        folder: target.
    """
    tokenizer = _save_encoding(parts, data, folder, {})
    answer_as_trained(model, _template_of(parts, data, tokenizer), tokenizer)
    model.config.tokenizer_model_max_length = data.max_length
    save_llava(model, folder, state)


def save_adapter_folder(
    model: LlavaModel,
    adapters: Mapping[str, Tensor],
    projector: Mapping[str, Tensor],
    parts: ModelConfig,
    data: DataConfig,
    folder: Path,
) -> None:
    """Write adapters in peft's format, the projector, and what belongs to them; needs these parts to open.

    Args:
        model: gives the layers that are adapted.
        adapters: whole tensors of `model.hub.lora.adapter_state`.
        projector: whole tensors of `model.hub.weights.pretrained_state`.
        parts: of the run that trained them.
        data: likewise.
        folder: target.
    """
    save_lora(model, folder, adapters, projector, base=parts.language_model)
    facts = {"base": parts.model_dump(mode="json"), "base_fingerprints": fingerprint_base(parts)}
    _save_encoding(parts, data, folder, facts)


def open_model(path: str | Path, device: str | torch.device = "cpu") -> OpenedModel:
    """Open a model folder, or the result in a finished run's folder, in float32 for inference.

    Raises:
        ConfigError: the folder is neither, or the run has not finished.
        ValueError: a file of it is missing or does not fit.
    """
    folder = Path(path)
    if not (folder / "config.yaml").is_file():
        return _open_folder(folder, device)
    config = load_config(folder / "config.yaml")
    if config.stage == "finetune":
        if not (folder / MODEL_FOLDER).is_dir():
            raise ConfigError(f"run {folder} has no {MODEL_FOLDER}/ yet; finish it with `ray-llava finetune`")
        return _open_folder(folder / MODEL_FOLDER, device)
    if not (folder / PROJECTOR_FILE).is_file():
        raise ConfigError(f"run {folder} has no {PROJECTOR_FILE} yet; finish it with `ray-llava pretrain`")
    return assemble_model(config.model, config.data, projector=folder / PROJECTOR_FILE, device=device)


def assemble_model(
    parts: ModelConfig, data: DataConfig, *, projector: str | Path | None, device: str | torch.device = "cpu"
) -> OpenedModel:
    """Put the parts that a config names together for inference; without a projector file it starts from random weights.

    Raises:
        ConfigError: a model part is missing or cannot be read.
        ValueError: the projector file does not fit.
    """
    encoder = build_encoder(parts, data)
    model = join_parts(parts, projector, torch.float32)
    describe_images(model, data.image_aspect_ratio, data.image_grid_pinpoints)
    model.config.tokenizer_model_max_length = data.max_length
    answer_as_trained(model, encoder.template, read_model_tokenizer(parts))
    return OpenedModel(_for_inference(model, device), encoder)


def load_model_folder(folder: Path, dtype: torch.dtype = torch.float32) -> LlavaModel:
    """Load the model of a model folder; one of adapters is put on its base, with the adapters still apart.

    Raises:
        ConfigError: finetuning did not write it.
        ValueError: a file of it, or its base, is missing or does not fit.
    """
    recipe = read_recipe(folder)
    if holds_adapters(folder):
        base = _base_of(folder)
        check_base(folder, base, read_recipe(folder).get("base_fingerprints", {}))
        model = join_parts(base, None, dtype)
        load_lora(model, folder)
    else:
        model = load_llava(folder, dtype)
    tokenizer, template = read_folder_prompt(folder)
    answer_as_trained(model, template, tokenizer)
    model.config.tokenizer_model_max_length = recipe["max_length"]
    return describe_images(model, recipe["image_aspect_ratio"], recipe["image_grid_pinpoints"])


def read_recipe(folder: Path) -> dict[str, Any]:
    """Read how a model folder's conversations and images are encoded: the fields of `data` that decide it.

    Raises:
        ConfigError: the folder is not one that finetuning wrote.
    """
    file = folder / RECIPE_FILE
    if not file.is_file() and (folder / PROJECTOR_FILE).is_file():
        raise ConfigError(
            f"{folder} is a run of projector pretraining, which leaves a projector ({PROJECTOR_FILE}) and no model; "
            "finetune from it with model.pretrain_mm_mlp_adapter, and give the folder of that run"
        )
    if not file.is_file():
        raise ConfigError(
            f"{folder} has no {RECIPE_FILE}: expected the folder of a run, or a model folder written by finetuning"
        )
    recipe: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return recipe


def copy_encoding(source: Path, target: Path) -> None:
    """Copy a model folder's tokenizer, image processor and recipe, without the base that adapters need."""
    write_tokenizer(load_tokenizer(str(source)), target)
    shutil.copyfile(source / PROCESSOR_FILE, target / PROCESSOR_FILE)
    of_adapters = ("base", "base_fingerprints")
    recipe = {name: value for name, value in read_recipe(source).items() if name not in of_adapters}
    (target / RECIPE_FILE).write_text(json.dumps(recipe, indent=2), encoding="utf-8")


def read_folder_facts(folder: Path) -> TowerFacts:
    """Read what the data side must know of a model folder's tower.

    Raises:
        ValueError: the folder, or the base of its adapters, lacks a tower or its image processor.
    """
    if not holds_adapters(folder):
        return read_llava_facts(str(folder))
    return read_tower_facts(_base_of(folder))


def read_folder_prompt(folder: Path) -> tuple[PreTrainedTokenizerFast, Template | JinjaTemplate]:
    """Read a model folder's tokenizer and the template of its conversations.

    Raises:
        ConfigError: finetuning did not write the folder.
        ValueError: there is no tokenizer.
    """
    recipe, tokenizer = read_recipe(folder), load_tokenizer(str(folder))
    wraps = has_wrapped_images(_base_of(folder)) if holds_adapters(folder) else folder_wraps_images(str(folder))
    return tokenizer, choose_template(recipe["template"], tokenizer, wraps_images=wraps)


def _base_of(folder: Path) -> ModelConfig:
    recipe = read_recipe(folder)
    if "base" not in recipe:
        raise ConfigError(f"{folder} holds adapters, but its {RECIPE_FILE} does not say of which model (`base`)")
    return ModelConfig.model_validate(recipe["base"])


def build_folder_encoder(folder: Path) -> SampleEncoder:
    """Build the encoder of a model folder: conversations and images as in training.

    Raises:
        ConfigError: finetuning did not write the folder.
        ValueError: a file of it is missing or does not fit.
    """
    recipe = read_recipe(folder)
    facts = read_folder_facts(folder)
    resolution = facts.resolution(recipe["image_aspect_ratio"], recipe["image_grid_pinpoints"])
    tokenizer, template = read_folder_prompt(folder)
    check_rows(tokenizer, template, _base_of(folder).language_model if holds_adapters(folder) else str(folder))
    return SampleEncoder(tokenizer, template, facts.image_spec, resolution, recipe["max_length"])


def _open_folder(folder: Path, device: str | torch.device) -> OpenedModel:
    encoder = build_folder_encoder(folder)
    return OpenedModel(_for_inference(load_model_folder(folder), device), encoder)


def _template_of(parts: ModelConfig, data: DataConfig, tokenizer: PreTrainedTokenizerFast) -> Template | JinjaTemplate:
    return choose_template(data.template, tokenizer, wraps_images=has_wrapped_images(parts))


def _save_encoding(
    parts: ModelConfig, data: DataConfig, folder: Path, facts: Mapping[str, Any]
) -> PreTrainedTokenizerFast:
    """Write tokenizer, image processor, and how conversations and images are encoded; returns the tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = read_model_tokenizer(parts)
    template = _template_of(parts, data, tokenizer)
    saved = portable(tokenizer)
    if isinstance(template, JinjaTemplate):
        saved.chat_template = template.source
    else:
        saved.chat_template = served_chat_template(saved, template, adds_bos=saved.add_bos_token)
    write_tokenizer(saved, folder)
    processor = json.dumps(read_tower_facts(parts).image_spec.to_preprocessor_config(), indent=2)
    (folder / PROCESSOR_FILE).write_text(processor, encoding="utf-8")
    recipe = data.model_dump(mode="json", include=set(_RECIPE_FIELDS))
    (folder / RECIPE_FILE).write_text(json.dumps(recipe | dict(facts), indent=2), encoding="utf-8")
    return tokenizer


def _for_inference(model: LlavaModel, device: str | torch.device) -> LlavaModel:
    nn.Module.to(model, device)
    nn.Module.eval(model)
    return model
