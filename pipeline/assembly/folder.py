"""A trained model as a folder that stands alone: weights, tokenizer, image processor and conversation template.

Written at the end of finetuning, opened by `generate` and `evaluate`; also opens the result of projector pretraining.
A folder of adapters stands on the language model that it names.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from model.files.adapter import load_projector
from model.fusion.resolution import Pinpoints
from model.hub.lora import holds_adapters, load_lora, save_lora
from model.hub.quantization import Quantization
from model.hub.tokenizer_files import portable, write_tokenizer
from model.hub.weights import LlavaModel, build_llava, load_llava, save_llava
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
from pipeline.config import ConfigError, ExperimentConfig, ModelConfig, load_config
from pipeline.samples.encode import SampleEncoder
from pipeline.samples.prompt.ending import answer_as_trained
from pipeline.samples.prompt.jinja_template import JinjaTemplate
from pipeline.samples.prompt.rendering import choose_template
from pipeline.samples.prompt.served_prompt import served_chat_template
from pipeline.samples.prompt.templates import Template
from pipeline.stream.prepare import build_encoder

PROJECTOR_FILE = "projector/mm_projector.safetensors"
MODEL_FOLDER = "model"
_RECIPE = "ray_llava.json"
_PROCESSOR = "preprocessor_config.json"
_RECIPE_FIELDS = ("template", "image_aspect_ratio", "image_grid_pinpoints", "max_length")


class OpenedModel(NamedTuple):
    """A model with everything needed to ask it something."""

    model: LlavaModel
    encoder: SampleEncoder
    """Encodes conversations and images as in training."""


def save_model_folder(model: LlavaModel, state: Mapping[str, Tensor], config: ExperimentConfig, folder: Path) -> None:
    """Write the model and what belongs to it; the folder loads without the run that made it.

    Args:
        model: gives the architecture; its own weights may be sharded.
        state: whole tensors of all its weights.
        config: of the run that trained it.
        folder: target.
    """
    tokenizer = _save_encoding(config, folder, {})
    answer_as_trained(model, _template_of(config, tokenizer), tokenizer)
    model.config.tokenizer_model_max_length = config.data.max_length
    save_llava(model, folder, state)


def save_adapter_folder(
    model: LlavaModel,
    adapters: Mapping[str, Tensor],
    projector: Mapping[str, Tensor],
    config: ExperimentConfig,
    folder: Path,
) -> None:
    """Write adapters in peft's format, the projector, and what belongs to them; needs the parts of `config` to open.

    Args:
        model: says which layers are adapted.
        adapters: whole tensors of `model.hub.lora.adapter_state`.
        projector: whole tensors of `model.hub.weights.pretrained_state`.
        config: of the run that trained them.
        folder: target.
    """
    save_lora(model, folder, adapters, projector, base=config.model.language_model)
    _save_encoding(config, folder, {"base": config.model.model_dump(mode="json")})


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
    return assemble_model(config, projector=folder / PROJECTOR_FILE, device=device)


def assemble_model(
    config: ExperimentConfig, *, projector: str | Path | None, device: str | torch.device = "cpu"
) -> OpenedModel:
    """Put the parts that a config names together for inference; without a projector file it starts from random weights.

    Raises:
        ConfigError: a model part is missing or cannot be read.
        ValueError: the projector file does not fit.
    """
    encoder = build_encoder(config)
    model = join_parts(config.model, projector, torch.float32)
    describe_images(model, config.data.image_aspect_ratio, config.data.image_grid_pinpoints)
    model.config.tokenizer_model_max_length = config.data.max_length
    answer_as_trained(model, encoder.template, read_model_tokenizer(config.model))
    return OpenedModel(_for_inference(model, device), encoder)


def join_parts(
    parts: ModelConfig, projector: str | Path | None, dtype: torch.dtype, *, quantize: Quantization | None = None
) -> LlavaModel:
    """Join language model, tower and projector; a LLaVA folder brings its own, replaced by `projector` if one is given.

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
    _add_tokens(model, parts, projector)
    return model


@dataclass
class _TokenArgs:
    mm_use_im_patch_token: bool
    mm_use_im_start_end: bool
    pretrain_mm_mlp_adapter: str | Path | None
    tune_mm_mlp_adapter: bool = False


def _add_tokens(model: LlavaModel, parts: ModelConfig, projector: str | Path | None) -> None:
    """Give the model the special tokens around images that it is to have, with rows from the projector's file."""
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


def load_model_folder(folder: Path, dtype: torch.dtype = torch.float32) -> LlavaModel:
    """Load the model of a model folder; one of adapters is put on its base, with the adapters still apart.

    Raises:
        ConfigError: finetuning did not write it.
        ValueError: a file of it, or its base, is missing or does not fit.
    """
    recipe = read_recipe(folder)
    if holds_adapters(folder):
        model = join_parts(_base_of(folder), None, dtype)
        load_lora(model, folder)
    else:
        model = load_llava(folder, dtype)
    tokenizer, template = read_folder_prompt(folder)
    answer_as_trained(model, template, tokenizer)
    model.config.tokenizer_model_max_length = recipe["max_length"]
    return describe_images(model, recipe["image_aspect_ratio"], recipe["image_grid_pinpoints"])


def find_projector(adapter: str | None) -> str | None:
    """Return the projector file that `model.pretrain_mm_mlp_adapter` names, directly or as a pretraining run.

    Raises:
        ConfigError: neither a file nor the folder of a finished pretraining run.
    """
    if adapter is None or Path(adapter).is_file():
        return adapter
    path = Path(adapter) / PROJECTOR_FILE
    if not path.is_file():
        raise ConfigError(
            f"model.pretrain_mm_mlp_adapter {adapter}: expected a projector file or the folder of a finished "
            f"pretraining run (with {PROJECTOR_FILE}); finish that run first, or correct the path"
        )
    return str(path)


def read_recipe(folder: Path) -> dict[str, Any]:
    """Read how a model folder's conversations and images are encoded: the fields of `data` that decide it.

    Raises:
        ConfigError: the folder is not one that finetuning wrote.
    """
    file = folder / _RECIPE
    if not file.is_file():
        raise ConfigError(
            f"{folder} has no {_RECIPE}: expected the folder of a run, or a model folder written by finetuning"
        )
    recipe: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return recipe


def copy_encoding(source: Path, target: Path) -> None:
    """Copy a model folder's tokenizer, image processor and recipe, without the base that adapters need."""
    write_tokenizer(load_tokenizer(str(source)), target)
    shutil.copyfile(source / _PROCESSOR, target / _PROCESSOR)
    recipe = {name: value for name, value in read_recipe(source).items() if name != "base"}
    (target / _RECIPE).write_text(json.dumps(recipe, indent=2), encoding="utf-8")


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
        raise ConfigError(f"{folder} holds adapters, but its {_RECIPE} does not say of which model (`base`)")
    return ModelConfig.model_validate(recipe["base"])


def _open_folder(folder: Path, device: str | torch.device) -> OpenedModel:
    recipe = read_recipe(folder)
    facts = read_folder_facts(folder)
    resolution = facts.resolution(recipe["image_aspect_ratio"], recipe["image_grid_pinpoints"])
    tokenizer, template = read_folder_prompt(folder)
    check_rows(tokenizer, template, _base_of(folder).language_model if holds_adapters(folder) else str(folder))
    encoder = SampleEncoder(tokenizer, template, facts.image_spec, resolution, recipe["max_length"])
    return OpenedModel(_for_inference(load_model_folder(folder), device), encoder)


def _template_of(config: ExperimentConfig, tokenizer: PreTrainedTokenizerFast) -> Template | JinjaTemplate:
    return choose_template(config.data.template, tokenizer, wraps_images=has_wrapped_images(config.model))


def _save_encoding(config: ExperimentConfig, folder: Path, facts: Mapping[str, Any]) -> PreTrainedTokenizerFast:
    """Write tokenizer, image processor, and how conversations and images are encoded; returns the tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = read_model_tokenizer(config.model)
    template = _template_of(config, tokenizer)
    saved = portable(tokenizer)
    if isinstance(template, JinjaTemplate):
        saved.chat_template = template.source
    else:
        saved.chat_template = served_chat_template(saved, template, adds_bos=saved.add_bos_token)
    write_tokenizer(saved, folder)
    processor = json.dumps(read_tower_facts(config.model).image_spec.to_preprocessor_config(), indent=2)
    (folder / _PROCESSOR).write_text(processor, encoding="utf-8")
    recipe = config.data.model_dump(mode="json", include=set(_RECIPE_FIELDS))
    (folder / _RECIPE).write_text(json.dumps(recipe | dict(facts), indent=2), encoding="utf-8")
    return tokenizer


def _for_inference(model: LlavaModel, device: str | torch.device) -> LlavaModel:
    nn.Module.to(model, device)
    nn.Module.eval(model)
    return model
