"""A trained model as a folder of one of transformers' LLaVA classes, which vLLM serves too.

The placeholder -200 becomes a real token `<image>` with a row in both embedding tables; prompts then repeat it once per
image feature, which the processor written here does. What those classes cannot express is refused, never approximated.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from huggingface_hub import save_torch_state_dict
from torch import Tensor
from transformers import CONFIG_MAPPING, PretrainedConfig, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from model.backbones.registry import BACKBONES
from model.files.file_mode import follow_umask
from model.fusion.constants import DEFAULT_IMAGE_TOKEN
from model.hub.hf_classes import (
    DEFAULT_VIDEO_TOKEN,
    LLAVA_ONEVISION,
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
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    tokenizer = portable(tokenizer)
    tokenizer.add_tokens([DEFAULT_IMAGE_TOKEN], special_tokens=True)
    if kind is LLAVA_ONEVISION:
        tokenizer.add_tokens([DEFAULT_VIDEO_TOKEN], special_tokens=True)
    tokenizer.chat_template = chat_template
    state = _exported_state(model, len(tokenizer))
    num_rows = state["language_model.model.embed_tokens.weight"].shape[0]
    save_torch_state_dict(state, target, max_shard_size="5GB", metadata={"format": "pt"})
    follow_umask(target)
    write_json(target / "config.json", _exported_config(model, kind, tokenizer, num_rows))
    if model.generation_config is not None:
        model.generation_config.save_pretrained(target)
    write_tokenizer(tokenizer, target)
    write_processor(model, kind, target, image_processor, chat_template)
    card = model_card(model, kind, language_model_type(model))
    (target / "README.md").write_text(card, encoding="utf-8")


def language_model_type(model: LlavaModel) -> str:
    """Return the `model_type` of the language model inside."""
    return next(kind for kind, backbone in BACKBONES.items() if isinstance(model, backbone.model_class))


def _exported_state(model: LlavaModel, num_tokens: int) -> dict[str, Tensor]:
    tower: Any = model.get_vision_tower()
    state = {name: tensor for name, tensor in model.state_dict().items() if ".vision_tower." not in name}
    state |= {f"model.vision_tower.vision_tower.{name}": t for name, t in tower.vision_tower.state_dict().items()}
    if is_tied(model):
        del state["lm_head.weight"]
    num_rows = state["model.embed_tokens.weight"].shape[0]
    if num_tokens > num_rows:
        num_rows = -(-num_tokens // _ROW_MULTIPLE) * _ROW_MULTIPLE
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if name in state:
            state[name] = _with_rows(state[name], num_rows)
    return {exported_name(name): tensor.detach().to(model.dtype).contiguous() for name, tensor in state.items()}


def is_tied(model: LlavaModel) -> bool:
    """Whether the output head is the input embeddings, by the tensors: a config's flag may say otherwise."""
    return model.lm_head.weight is model.get_input_embeddings().weight


def _with_rows(table: Tensor, num_rows: int) -> Tensor:
    """Append mean rows: their logits are a mean of the others' and so never the largest."""
    mean = table.float().mean(dim=0, keepdim=True).to(table.dtype)
    return torch.cat([table, mean.expand(num_rows - table.shape[0], -1)])


def _exported_config(
    model: LlavaModel, kind: HfClass, tokenizer: PreTrainedTokenizerBase, num_rows: int
) -> dict[str, Any]:
    tower: Any = model.get_vision_tower()
    dtype = str(model.dtype).removeprefix("torch.")
    return {
        "architectures": [kind.architecture],
        "model_type": kind.model_type,
        "text_config": _language_config(model, num_rows),
        "vision_config": {**_public(tower.config.to_dict()), "dtype": dtype},
        "image_token_index": tokenizer.convert_tokens_to_ids(DEFAULT_IMAGE_TOKEN),
        "projector_hidden_act": "gelu",
        "multimodal_projector_bias": True,
        "vision_feature_layer": tower.spec.select_layer,
        "vision_feature_select_strategy": select_strategy(tower),
        "tie_word_embeddings": is_tied(model),
        "dtype": dtype,
        "torch_dtype": dtype,  # the name before 4.56
        **_image_config(model, kind, tokenizer),
    }


def _image_config(model: LlavaModel, kind: HfClass, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Return what only some of the classes have."""
    tower: Any = model.get_vision_tower()
    if not kind.has_tiles:
        return {"image_seq_length": tower.num_features}
    pinpoints = {"image_grid_pinpoints": exported_pinpoints(model, tower.image_size)}
    if kind is not LLAVA_ONEVISION:
        return {**pinpoints, "image_seq_length": tower.num_features}
    return {
        **pinpoints,
        "vision_aspect_ratio": model.config.image_aspect_ratio,
        "video_token_index": tokenizer.convert_tokens_to_ids(DEFAULT_VIDEO_TOKEN),
    }


def _language_config(model: LlavaModel, num_rows: int) -> dict[str, Any]:
    ours = set(LlavaFields.__annotations__) | {"model_type", "architectures", "transformers_version"}
    values = {key: value for key, value in model.config.to_dict().items() if key not in ours}
    kind = language_model_type(model)
    values |= {"vocab_size": num_rows, "tie_word_embeddings": is_tied(model)}
    config: PretrainedConfig = CONFIG_MAPPING[kind].from_dict(values)
    return {**with_rope_of_4(_public(config.to_dict())), "architectures": [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[kind]]}


def _public(values: dict[str, Any]) -> dict[str, Any]:
    """Leave out what describes this machine, such as the path a part was loaded from."""
    return {key: value for key, value in values.items() if not key.startswith("_")}
