"""A trained model as a folder of one of transformers' LLaVA classes, which vLLM serves too.

The placeholder -200 becomes a real token `<image>` with a row in both embedding tables; prompts then repeat it once per
image feature, which the processor written here does. What those classes cannot express is refused, never approximated.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, cast

import torch
from huggingface_hub import save_torch_state_dict
from torch import Tensor
from transformers import CONFIG_MAPPING, PretrainedConfig, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from model.backbones.registry import BACKBONES
from model.files.file_mode import follow_umask
from model.fusion.constants import DEFAULT_IMAGE_TOKEN
from model.hub.exported_tower import exported_tower
from model.hub.hf_classes import (
    DEFAULT_VIDEO_TOKEN,
    LLAVA_ONEVISION,
    VIPLLAVA,
    HfClass,
    check_exportable,
    exported_pinpoints,
)
from model.hub.hf_names import exported_name
from model.hub.model_card import model_card
from model.hub.processor_files import select_strategy, write_json, write_processor
from model.hub.rope_fields import with_rope_of_4
from model.hub.tokenizer_files import portable, write_tokenizer
from model.hub.weights import LlavaModel
from model.llava.llava_config import LlavaFields
from model.vision.image_spec import ImageSpec

_ROW_MULTIPLE: Final = 64
"""Embedding tables grow to a multiple of this, which matrix kernels like and published checkpoints do."""


def export_transformers(
    model: LlavaModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    *,
    image_processor: Mapping[str, Any],
    chat_template: str | None = None,
) -> None:
    """Write weights, config, tokenizer, processor and model card.

    Args:
        model: whole, not sharded; its weights are written in the language model's type. Its config says how images
            become tiles.
        tokenizer: the model's; `<image>` is added to a copy of it.
        folder: target, made if missing.
        image_processor: content of the tower's preprocessor_config.json.
        chat_template: Jinja template of the training conversations.

    Raises:
        ValueError: the architecture cannot be expressed; names what and why.
    """
    kind = check_exportable(model)
    size = ImageSpec.from_preprocessor_config(image_processor).size
    vision_config, vision_state = exported_tower(cast(Any, model.get_vision_tower()), kind, size)
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    tokenizer = portable(tokenizer)
    tokenizer.add_tokens([DEFAULT_IMAGE_TOKEN], special_tokens=True)
    if kind is LLAVA_ONEVISION:
        tokenizer.add_tokens([DEFAULT_VIDEO_TOKEN], special_tokens=True)
    tokenizer.chat_template = chat_template
    state = _exported_state(model, kind, vision_state, len(tokenizer))
    num_rows = state["language_model.model.embed_tokens.weight"].shape[0]
    save_torch_state_dict(state, target, max_shard_size="5GB", metadata={"format": "pt"})
    follow_umask(target)
    write_json(target / "config.json", _exported_config(model, kind, vision_config, tokenizer, num_rows, size))
    if model.generation_config is not None:
        model.generation_config.save_pretrained(target)
    write_tokenizer(tokenizer, target)
    write_processor(model, kind, target, image_processor, chat_template)
    card = model_card(model, kind, language_model_type(model), size)
    (target / "README.md").write_text(card, encoding="utf-8")


def language_model_type(model: LlavaModel) -> str:
    """Return the `model_type` of the language model inside."""
    return next(kind for kind, backbone in BACKBONES.items() if isinstance(model, backbone.model_class))


def _exported_state(
    model: LlavaModel, kind: HfClass, vision_state: Mapping[str, Tensor], num_tokens: int
) -> dict[str, Tensor]:
    state = {name: tensor for name, tensor in model.state_dict().items() if ".vision_tower." not in name}
    state |= {f"model.vision_tower.vision_tower.{name}": tensor for name, tensor in vision_state.items()}
    if is_tied(model):
        del state["lm_head.weight"]
    num_rows = state["model.embed_tokens.weight"].shape[0]
    if num_tokens > num_rows:
        num_rows = -(-num_tokens // _ROW_MULTIPLE) * _ROW_MULTIPLE
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if name in state:
            state[name] = _with_rows(state[name], num_rows)
    tower_type = cast(Any, model.get_vision_tower()).config.model_type
    return {
        exported_name(name, kind, tower_type): tensor.detach().to(model.dtype).contiguous()
        for name, tensor in state.items()
    }


def is_tied(model: LlavaModel) -> bool:
    """Whether the output head is the input embeddings, by the tensors: a config's flag may say otherwise."""
    return model.lm_head.weight is model.get_input_embeddings().weight


def _with_rows(table: Tensor, num_rows: int) -> Tensor:
    """Append mean rows: their logits are a mean of the others' and so never the largest."""
    mean = table.float().mean(dim=0, keepdim=True).to(table.dtype)
    return torch.cat([table, mean.expand(num_rows - table.shape[0], -1)])


def _exported_config(
    model: LlavaModel,
    kind: HfClass,
    vision_config: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    num_rows: int,
    size: int,
) -> dict[str, Any]:
    tower: Any = model.get_vision_tower()
    dtype = str(model.dtype).removeprefix("torch.")
    return {
        "architectures": [kind.architecture],
        "model_type": kind.model_type,
        "text_config": _language_config(model, num_rows),
        "vision_config": {**_public(vision_config), "dtype": dtype},
        "image_token_index": tokenizer.convert_tokens_to_ids(DEFAULT_IMAGE_TOKEN),
        "projector_hidden_act": "gelu",
        "multimodal_projector_bias": True,
        "vision_feature_layer": tower.spec.select_layer,
        "vision_feature_select_strategy": select_strategy(tower),
        "tie_word_embeddings": is_tied(model),
        "dtype": dtype,
        "torch_dtype": dtype,  # the name before 4.56
        **_image_config(model, kind, tokenizer, size),
    }


def _image_config(model: LlavaModel, kind: HfClass, tokenizer: PreTrainedTokenizerBase, size: int) -> dict[str, Any]:
    """Return what only some of the classes have."""
    tower: Any = model.get_vision_tower()
    if kind is LLAVA_ONEVISION:
        return {
            "image_grid_pinpoints": exported_pinpoints(model, size),
            "vision_aspect_ratio": model.config.image_aspect_ratio,
            "video_token_index": tokenizer.convert_tokens_to_ids(DEFAULT_VIDEO_TOKEN),
        }
    fields = {"image_seq_length": tower.num_features_at(size)}
    if kind is VIPLLAVA:  # 4.x has the layers under another name
        return {**fields, "vision_feature_layers": tower.spec.select_layer, "projector_layernorm_eps": 1e-5}
    return {**fields, "image_grid_pinpoints": exported_pinpoints(model, size)} if kind.has_tiles else fields


def _language_config(model: LlavaModel, num_rows: int) -> dict[str, Any]:
    ours = set(LlavaFields.__annotations__) | {"model_type", "architectures", "transformers_version"}
    values = {key: value for key, value in model.config.to_dict().items() if key not in ours}
    kind = language_model_type(model)
    values |= {"vocab_size": num_rows, "tie_word_embeddings": is_tied(model)}
    config: PretrainedConfig = CONFIG_MAPPING[kind].from_dict(values)
    return {**with_rope_of_4(_public(config.to_dict())), "architectures": [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[kind]]}


def _public(values: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what describes this machine, such as the path a part was loaded from."""
    return {key: value for key, value in values.items() if not key.startswith("_")}
