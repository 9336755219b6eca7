"""LLaVA on Gemma."""

from transformers import GemmaConfig, GemmaForCausalLM, GemmaModel

from model.llava.llava_config import LlavaFields
from model.llava_arch import LlavaForCausalLM, LlavaMetaModel


class LlavaGemmaConfig(LlavaFields, GemmaConfig):
    """Gemma configuration with the fields of a vision-language model."""

    model_type = "llava_gemma"


class LlavaGemmaModel(LlavaMetaModel, GemmaModel):
    """Gemma decoder body with vision tower and projector."""

    config_class = LlavaGemmaConfig


class LlavaGemmaForCausalLM(LlavaForCausalLM, GemmaForCausalLM):  # type: ignore[misc]
    """Gemma language model that reads images."""

    config_class = LlavaGemmaConfig
    body_class = LlavaGemmaModel
