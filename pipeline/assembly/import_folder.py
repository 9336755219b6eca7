"""A published LLaVA model as a model folder of this project: one that `finetune` goes on from, and others open.

Read are original checkpoints (LLaVA 1.0, 1.5, 1.6, NeXT, OneVision) and folders of transformers' LLaVA classes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedTokenizerFast

from model.files.checkpoint_files import read_checkpoint_config
from model.hub.hf_classes import HF_CLASSES
from model.hub.hf_import import import_transformers
from model.hub.tokenizer_files import portable, write_tokenizer
from model.hub.weights import LlavaModel, load_llava, save_llava
from model.vision.image_spec import ImageSpec
from pipeline.assembly.facts import check_rows, facts_of_tower, load_tokenizer, read_image_spec, read_llava_facts
from pipeline.assembly.folder import PROCESSOR_FILE, RECIPE_FILE, OpenedModel, build_folder_encoder
from pipeline.assembly.merge import require_empty
from pipeline.assembly.parts import describe_images
from pipeline.config import ConfigError
from pipeline.samples.encode import SampleEncoder
from pipeline.samples.prompt.ending import answer_as_trained
from pipeline.samples.prompt.rendering import OWN_TEMPLATE, choose_template

_DEFAULT_MAX_LENGTH = 2048


class Imported(NamedTuple):
    """What was written."""

    folder: Path
    kind: str
    """`model_type` of the source."""
    template: str
    image_aspect_ratio: str
    patch_merge: str


def import_model(
    source: str | Path,
    target: str | Path,
    dtype: torch.dtype,
    *,
    template: str | None = None,
    vision_tower: str | None = None,
) -> Imported:
    """Write a model folder with a published model's weights, tokenizer, image processor and way with images.

    Args:
        source: folder of an original LLaVA checkpoint or of one of transformers' LLaVA classes, or a hub id.
        target: folder to write; must be empty or not exist.
        dtype: type of the written weights.
        template: name of the conversation template that the model was trained with; None takes the tokenizer's own,
            and `v1`, LLaVA's, where it has none.
        vision_tower: folder or hub id that takes the place of the one an original checkpoint names.

    Raises:
        ConfigError: target holds files, or an option does not fit the source.
        ValueError: source is of another kind, lacks tensors, or asks for what is not computed here.
    """
    out = require_empty(target)
    found = read_published(source, dtype, template=template, vision_tower=vision_tower)
    model, config = found.model, found.model.config
    config.mm_vision_weights = "checkpoint"  # written with the model, wherever they came from
    _write(model, found.tokenizer, found.spec, out, found.recipe)
    build_folder_encoder(out)  # says now what the first run would
    recipe = found.recipe
    return Imported(out, found.kind, recipe["template"], recipe["image_aspect_ratio"], config.mm_patch_merge_type)


class Published(NamedTuple):
    """A published model, read and not yet written."""

    model: LlavaModel
    tokenizer: PreTrainedTokenizerFast
    spec: ImageSpec
    recipe: dict[str, Any]
    """How its conversations and images are encoded, as in a model folder."""
    kind: str
    """`model_type` of the source."""


def read_published(
    source: str | Path, dtype: torch.dtype, *, template: str | None = None, vision_tower: str | None = None
) -> Published:
    """Read a published model; for arguments and errors see `import_model`."""
    name = str(source)
    values = read_checkpoint_config(name, "LLaVA model")
    is_transformers = is_transformers_llava(values)
    if is_transformers and vision_tower is not None:
        raise ConfigError(f"--vision-tower: {name} is of transformers' class and holds its tower; leave the option out")
    tokenizer = load_tokenizer(name)
    chosen = template or (OWN_TEMPLATE if tokenizer.chat_template else "v1")
    choose_template(chosen, tokenizer)
    if is_transformers:
        model, spec = import_transformers(name, dtype), read_image_spec(name)
    else:
        model = load_llava(name, dtype, vision_tower=vision_tower)
        spec = read_llava_facts(name, vision_tower).image_spec
        _read_wrapping_tokens(model, tokenizer, name)
        if "image_aspect_ratio" not in values:  # LLaVA 1.0; without the field, LLaVA leaves sizing to the processor
            model.config.image_aspect_ratio = "crop"
    config: Any = model.config
    ratio = config.image_aspect_ratio if config.image_aspect_ratio not in (None, "square") else "crop"
    config.image_aspect_ratio = ratio
    recipe = {"template": chosen, "image_aspect_ratio": ratio, **_further(config)}
    return Published(model, tokenizer, spec, recipe, str(values["model_type"]))


def is_transformers_llava(values: Mapping[str, Any]) -> bool:
    """Whether a config.json is of one of transformers' LLaVA classes, as `ray-llava export` writes them."""
    return values.get("model_type") in HF_CLASSES and "text_config" in values


def open_exported(folder: str | Path) -> tuple[OpenedModel, PreTrainedTokenizerFast]:
    """Open a folder of transformers' LLaVA classes as it is, in float32 on the CPU; nothing is written.

    Raises:
        ValueError: a file is missing, or the model asks for what is not computed here.
    """
    model, tokenizer, spec, recipe, _ = read_published(folder, torch.float32)
    tower = model.get_vision_tower()
    assert tower is not None
    facts = facts_of_tower(tower, spec, model.config.mm_projector_type, model.config.mm_patch_merge_type)
    resolution = facts.resolution(recipe["image_aspect_ratio"], recipe["image_grid_pinpoints"])
    wraps = bool(model.config.mm_use_im_start_end)
    template = choose_template(recipe["template"], tokenizer, wraps_images=wraps)
    check_rows(tokenizer, template, str(folder))
    model.config.tokenizer_model_max_length = recipe["max_length"]
    describe_images(model, recipe["image_aspect_ratio"], recipe["image_grid_pinpoints"])
    answer_as_trained(model, template, tokenizer)
    nn.Module.eval(model)
    return OpenedModel(model, SampleEncoder(tokenizer, template, spec, resolution, recipe["max_length"])), tokenizer


def _further(config: Any) -> dict[str, Any]:
    """Return the fields of a model folder's recipe that need no decision."""
    longest = config.tokenizer_model_max_length or config.max_position_embeddings or _DEFAULT_MAX_LENGTH
    tiles = str(config.image_aspect_ratio).startswith("anyres")
    return {"image_grid_pinpoints": config.image_grid_pinpoints if tiles else None, "max_length": longest}


def _read_wrapping_tokens(model: LlavaModel, tokenizer: PreTrainedTokenizerFast, name: str) -> None:
    """Note the ids of `<im_start>` and `<im_end>`, which original configs leave to the tokenizer."""
    config: Any = model.config
    if not config.mm_use_im_start_end or config.im_start_end_ids:
        return
    ids = [tokenizer.get_vocab().get(token) for token in ("<im_start>", "<im_end>")]
    if None in ids:
        raise ValueError(f"{name}: mm_use_im_start_end is set, but its tokenizer has no <im_start> and <im_end>")
    config.im_start_end_ids = ids


def _write(
    model: LlavaModel, tokenizer: PreTrainedTokenizerFast, spec: ImageSpec, out: Path, recipe: dict[str, Any]
) -> None:
    save_llava(model, out)
    write_tokenizer(portable(tokenizer), out)
    processor = json.dumps(spec.to_preprocessor_config(), indent=2)
    (out / PROCESSOR_FILE).write_text(processor, encoding="utf-8")
    (out / RECIPE_FILE).write_text(json.dumps(recipe, indent=2), encoding="utf-8")
