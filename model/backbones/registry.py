"""The language models that can become LLaVA models, by the `model_type` of their config.json.

A new backbone is one file like `llava_mistral` and one line here.
"""

from typing import Any, Final, NamedTuple

from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)

from model.backbones.gemma import LlavaGemmaConfig, LlavaGemmaForCausalLM
from model.backbones.gemma2 import LlavaGemma2Config, LlavaGemma2ForCausalLM
from model.backbones.gemma3 import LlavaGemma3Config, LlavaGemma3ForCausalLM
from model.backbones.glm import LlavaGlmConfig, LlavaGlmForCausalLM
from model.backbones.glm4 import LlavaGlm4Config, LlavaGlm4ForCausalLM
from model.backbones.glm4_moe import LlavaGlm4MoeConfig, LlavaGlm4MoeForCausalLM
from model.backbones.gpt_oss import LlavaGptOssConfig, LlavaGptOssForCausalLM
from model.backbones.llama import LlavaConfig, LlavaLlamaForCausalLM
from model.backbones.ministral import LlavaMinistralConfig, LlavaMinistralForCausalLM
from model.backbones.ministral3 import LlavaMinistral3Config, LlavaMinistral3ForCausalLM
from model.backbones.mistral import LlavaMistralConfig, LlavaMistralForCausalLM
from model.backbones.mpt import LlavaMptConfig, LlavaMptForCausalLM
from model.backbones.olmo2 import LlavaOlmo2Config, LlavaOlmo2ForCausalLM
from model.backbones.olmo3 import LlavaOlmo3Config, LlavaOlmo3ForCausalLM
from model.backbones.phi import LlavaPhiConfig, LlavaPhiForCausalLM
from model.backbones.phi3 import LlavaPhi3Config, LlavaPhi3ForCausalLM
from model.backbones.qwen2 import LlavaQwen2Config, LlavaQwen2ForCausalLM
from model.backbones.qwen3 import LlavaQwen3Config, LlavaQwen3ForCausalLM
from model.backbones.qwen3_5 import LlavaQwen35Config, LlavaQwen35ForCausalLM
from model.backbones.qwen3_moe import LlavaQwen3MoeConfig, LlavaQwen3MoeForCausalLM
from model.backbones.qwen3_next import LlavaQwen3NextConfig, LlavaQwen3NextForCausalLM
from model.backbones.smollm3 import LlavaSmolLM3Config, LlavaSmolLM3ForCausalLM
from model.llava_arch import LlavaForCausalLM


class Backbone(NamedTuple):
    """What a language model becomes."""

    config_class: type[PretrainedConfig]
    model_class: type[LlavaForCausalLM]
    family: str
    """Published models of this kind, for people."""


BACKBONES: Final[dict[str, Backbone]] = {
    "llama": Backbone(LlavaConfig, LlavaLlamaForCausalLM, "LLaMA 1 to 3.3, Vicuna"),
    "mistral": Backbone(LlavaMistralConfig, LlavaMistralForCausalLM, "Mistral, Mistral Small 3"),
    "qwen2": Backbone(LlavaQwen2Config, LlavaQwen2ForCausalLM, "Qwen 2, 2.5"),
    "qwen3": Backbone(LlavaQwen3Config, LlavaQwen3ForCausalLM, "Qwen 3"),
    "gemma": Backbone(LlavaGemmaConfig, LlavaGemmaForCausalLM, "Gemma 1"),
    "gemma3_text": Backbone(LlavaGemma3Config, LlavaGemma3ForCausalLM, "Gemma 3 text models"),
    "phi3": Backbone(LlavaPhi3Config, LlavaPhi3ForCausalLM, "Phi 3, Phi 4"),
    "smollm3": Backbone(LlavaSmolLM3Config, LlavaSmolLM3ForCausalLM, "SmolLM 3"),
    "olmo2": Backbone(LlavaOlmo2Config, LlavaOlmo2ForCausalLM, "OLMo 2"),
    "olmo3": Backbone(LlavaOlmo3Config, LlavaOlmo3ForCausalLM, "OLMo 3"),
    "glm": Backbone(LlavaGlmConfig, LlavaGlmForCausalLM, "GLM 4 9B (2024)"),
    "glm4": Backbone(LlavaGlm4Config, LlavaGlm4ForCausalLM, "GLM 4 0414"),
    "ministral": Backbone(LlavaMinistralConfig, LlavaMinistralForCausalLM, "Ministral 8B"),
    "ministral3": Backbone(LlavaMinistral3Config, LlavaMinistral3ForCausalLM, "Ministral 3"),
    "phi": Backbone(LlavaPhiConfig, LlavaPhiForCausalLM, "Phi 1, 1.5 and 2"),
    "gemma2": Backbone(LlavaGemma2Config, LlavaGemma2ForCausalLM, "Gemma 2"),
    "qwen3_moe": Backbone(LlavaQwen3MoeConfig, LlavaQwen3MoeForCausalLM, "Qwen 3 MoE"),
    "glm4_moe": Backbone(LlavaGlm4MoeConfig, LlavaGlm4MoeForCausalLM, "GLM 4.5 to 4.7"),
    "gpt_oss": Backbone(LlavaGptOssConfig, LlavaGptOssForCausalLM, "gpt-oss"),
    "qwen3_next": Backbone(LlavaQwen3NextConfig, LlavaQwen3NextForCausalLM, "Qwen 3 Next"),
    "qwen3_5_text": Backbone(LlavaQwen35Config, LlavaQwen35ForCausalLM, "Qwen 3.5 text models"),
    "mpt": Backbone(LlavaMptConfig, LlavaMptForCausalLM, "MPT"),
}
"""`model_type` of a language model -> its LLaVA classes."""

_PUBLISHED_NAMES: Final = {"llava": "llama", "llava_qwen": "qwen2"}
"""`model_type` of published checkpoints whose name says less than ours."""

# Lets AutoModelForCausalLM open saved models, as transformers' own classes do.
for _kind, _backbone in BACKBONES.items():
    _own_kind = _backbone.config_class.model_type
    AutoConfig.register(_own_kind, _backbone.config_class, exist_ok=True)
    AutoModelForCausalLM.register(_backbone.config_class, _backbone.model_class, exist_ok=True)
    # Tensors are read and written under published names: experts one by one, which the model holds as one tensor.
    if (_conversions := get_checkpoint_conversion_mapping(_kind)) is not None:
        register_checkpoint_conversion_mapping(_own_kind, _conversions, overwrite=True)


def backbone_of_language_model(values: dict[str, Any], name: str) -> Backbone:
    """Choose the backbone of a plain language model.

    Args:
        values: its config.json.
        name: its folder or hub id, for the message.

    Raises:
        ValueError: it is a complete LLaVA model, or of an unknown kind.
    """
    kind = values.get("model_type")
    refuse_transformers_folder(values, name)
    if kind not in BACKBONES:
        hint = "; it is a complete LLaVA model: use load_llava" if backbone_of_llava(values) else ""
        raise ValueError(f"language model {name} has model_type {kind!r}; known: {', '.join(sorted(BACKBONES))}{hint}")
    return BACKBONES[kind]


def refuse_transformers_folder(values: dict[str, Any], name: str) -> None:
    """Refuse a config.json of transformers' own LLaVA classes, which is not laid out as models are here.

    Raises:
        ValueError: it is one; says what to do.
    """
    if "text_config" in values and str(values.get("model_type")).startswith("llava"):
        raise ValueError(
            f"{name} was saved by transformers' LLaVA class ({values['model_type']}); run `ray-llava import {name} "
            "FOLDER` first, and give FOLDER"
        )


def backbone_of_llava(values: dict[str, Any]) -> Backbone | None:
    """Return the backbone of a LLaVA model's config.json, None when it is not one that `load_llava` reads.

    Original checkpoints of LLaMA say `llava`, as do those of transformers' own class, which have a text_config.
    """
    kind = values.get("model_type")
    if kind in _PUBLISHED_NAMES and "text_config" not in values:
        return BACKBONES[_PUBLISHED_NAMES[kind]]
    return next((backbone for backbone in BACKBONES.values() if backbone.config_class.model_type == kind), None)
