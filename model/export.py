"""A trained model as a folder of transformers' `LlavaForConditionalGeneration`, which vLLM serves too.

The placeholder -200 becomes a real token `<image>` with a row in both embedding tables; prompts then repeat it once per
image feature, which the processor written here does. What that class cannot express is refused, never approximated.
"""

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from huggingface_hub import save_torch_state_dict
from torch import Tensor
from transformers import CONFIG_MAPPING, PretrainedConfig, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from model.backbones import BACKBONES
from model.constants import DEFAULT_IMAGE_TOKEN
from model.hf_names import exported_name
from model.llava_config import LlavaFields
from model.weights import LlavaModel

_PROJECTOR_TYPE: Final = "mlp2x_gelu"
_TOWER_TYPES: Final = ("clip_vision_model", "siglip_vision_model")
_ROW_MULTIPLE: Final = 64
"""Embedding tables grow to a multiple of this, which matrix kernels like and published checkpoints do."""


def export_transformers(
    model: LlavaModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    *,
    image_processor: Mapping[str, Any],
    pad_to_square: bool,
    chat_template: str | None = None,
) -> None:
    """Write weights, config, tokenizer, processor and model card.

    Args:
        model: whole, not sharded; its weights are written in the language model's type.
        tokenizer: the model's; `<image>` is added to a copy of it.
        folder: target, made if missing.
        image_processor: content of the tower's preprocessor_config.json.
        pad_to_square: whether images were padded to a square before resizing, else they are cropped.
        chat_template: Jinja template of the training conversations.

    Raises:
        ValueError: the architecture cannot be expressed; names what and why.
    """
    check_exportable(model)
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.add_tokens([DEFAULT_IMAGE_TOKEN], special_tokens=True)
    tokenizer.chat_template = chat_template
    state = _exported_state(model, len(tokenizer))
    num_rows = state["language_model.model.embed_tokens.weight"].shape[0]
    config = _exported_config(model, tokenizer.convert_tokens_to_ids(DEFAULT_IMAGE_TOKEN), num_rows)
    save_torch_state_dict(state, target, max_shard_size="5GB", metadata={"format": "pt"})
    _write_json(target / "config.json", config)
    if model.generation_config is not None:
        model.generation_config.save_pretrained(target)
    tokenizer.save_pretrained(target)
    _write_processor(model, target, image_processor, pad_to_square, chat_template)
    (target / "README.md").write_text(_model_card(model), encoding="utf-8")


def check_exportable(model: LlavaModel) -> None:
    """Raise ValueError, naming what and why, if `LlavaForConditionalGeneration` cannot express the model."""
    problems = []
    if model.config.mm_projector_type != _PROJECTOR_TYPE:
        problems.append(
            f"projector type {model.config.mm_projector_type!r}: that class has exactly two linear layers with GELU "
            f"between them ({_PROJECTOR_TYPE!r})"
        )
    tower = model.get_vision_tower()
    if tower is None:
        problems.append("there is no vision tower")
    elif tower.config.model_type not in _TOWER_TYPES:
        problems.append(f"vision tower {tower.config.model_type!r}: exported are {', '.join(_TOWER_TYPES)}")
    if language_model_type(model) == "mpt":
        problems.append("backbone 'mpt': its body is not laid out as that class expects")
    if model.config.mm_use_im_start_end:
        problems.append("mm_use_im_start_end: its processor puts no tokens around images")
    if problems:
        raise ValueError("the model cannot be exported as LlavaForConditionalGeneration: " + "; ".join(problems))


def language_model_type(model: LlavaModel) -> str:
    """Return the `model_type` of the language model inside."""
    return next(kind for kind, backbone in BACKBONES.items() if isinstance(model, backbone.model_class))


def _exported_state(model: LlavaModel, num_tokens: int) -> dict[str, Tensor]:
    tower: Any = model.get_vision_tower()
    state = {name: tensor for name, tensor in model.state_dict().items() if ".vision_tower." not in name}
    state |= {f"model.vision_tower.vision_tower.{name}": t for name, t in tower.vision_tower.state_dict().items()}
    if model.config.tie_word_embeddings:
        del state["lm_head.weight"]
    num_rows = state["model.embed_tokens.weight"].shape[0]
    if num_tokens > num_rows:
        num_rows = -(-num_tokens // _ROW_MULTIPLE) * _ROW_MULTIPLE
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if name in state:
            state[name] = _with_rows(state[name], num_rows)
    return {exported_name(name): tensor.detach().to(model.dtype).contiguous() for name, tensor in state.items()}


def _with_rows(table: Tensor, num_rows: int) -> Tensor:
    """Append mean rows: their logits are a mean of the others' and so never the largest."""
    mean = table.float().mean(dim=0, keepdim=True).to(table.dtype)
    return torch.cat([table, mean.expand(num_rows - table.shape[0], -1)])


def _exported_config(model: LlavaModel, image_token_id: int | list[int], num_rows: int) -> dict[str, Any]:
    tower: Any = model.get_vision_tower()
    dtype = str(model.dtype).removeprefix("torch.")
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "text_config": _language_config(model, num_rows),
        "vision_config": {**_public(tower.config.to_dict()), "dtype": dtype},
        "image_token_index": image_token_id,
        "image_seq_length": tower.num_features,
        "projector_hidden_act": "gelu",
        "multimodal_projector_bias": True,
        "vision_feature_layer": tower.spec.select_layer,
        "vision_feature_select_strategy": _strategy(tower),
        "tie_word_embeddings": model.config.tie_word_embeddings,
        "dtype": dtype,
    }


def _language_config(model: LlavaModel, num_rows: int) -> dict[str, Any]:
    ours = set(LlavaFields.__annotations__) | {"model_type", "architectures", "transformers_version"}
    values = {key: value for key, value in model.config.to_dict().items() if key not in ours}
    kind = language_model_type(model)
    config: PretrainedConfig = CONFIG_MAPPING[kind].from_dict({**values, "vocab_size": num_rows})
    return {**_public(config.to_dict()), "architectures": [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[kind]]}


def _public(values: dict[str, Any]) -> dict[str, Any]:
    """Leave out what describes this machine, such as the path a part was loaded from."""
    return {key: value for key, value in values.items() if not key.startswith("_")}


def _strategy(tower: Any) -> str:
    return "default" if tower.spec.select_feature == "patch" and tower.num_class_tokens else "full"


def _write_processor(
    model: LlavaModel, target: Path, image_processor: Mapping[str, Any], pad_to_square: bool, chat_template: str | None
) -> None:
    tower: Any = model.get_vision_tower()
    values = dict(image_processor)
    if pad_to_square:
        values |= {"image_processor_type": "LlavaImageProcessor", "do_pad": True}
    _write_json(target / "preprocessor_config.json", values)
    _write_json(
        target / "processor_config.json",
        {
            "processor_class": "LlavaProcessor",
            "patch_size": tower.patch_size,
            "vision_feature_select_strategy": _strategy(tower),
            "num_additional_image_tokens": tower.num_class_tokens,
            "image_token": DEFAULT_IMAGE_TOKEN,
        },
    )
    if chat_template is not None:
        (target / "chat_template.jinja").write_text(chat_template, encoding="utf-8")


def _model_card(model: LlavaModel) -> str:
    tower: Any = model.get_vision_tower()
    return f"""---
library_name: transformers
pipeline_tag: image-text-to-text
---

# LLaVA model

A `{language_model_type(model)}` language model ({model.config.hidden_size} wide) that reads images through a
`{tower.config.model_type}` tower ({tower.image_size} x {tower.image_size} pixels, {tower.num_features} tokens per
image, hidden state {tower.spec.select_layer}) and a `{model.config.mm_projector_type}` projector, trained with
ray-llava.

```python
from transformers import AutoProcessor, LlavaForConditionalGeneration

processor = AutoProcessor.from_pretrained(folder)
model = LlavaForConditionalGeneration.from_pretrained(folder)
messages = [{{"role": "user", "content": [{{"type": "image", "image": image}}, {{"type": "text", "text": question}}]}}]
inputs = processor.apply_chat_template(
    messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
)
answer = processor.batch_decode(model.generate(**inputs, max_new_tokens=128), skip_special_tokens=True)[0]
```
"""


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
