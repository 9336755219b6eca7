"""LLaVA on GLM 4 (9B, 2024)."""

from transformers import GlmConfig, GlmForCausalLM, GlmModel

from model.llava.llava_config import LlavaFields
from model.llava_arch import LlavaForCausalLM, LlavaMetaModel


class LlavaGlmConfig(LlavaFields, GlmConfig):
    """GLM 4 (9B, 2024) configuration with the fields of a vision-language model."""

    model_type = "llava_glm"


class LlavaGlmModel(LlavaMetaModel, GlmModel):
    """GLM 4 (9B, 2024) decoder body with vision tower and projector."""

    config_class = LlavaGlmConfig


class LlavaGlmForCausalLM(LlavaForCausalLM, GlmForCausalLM):  # type: ignore[misc]
    """GLM 4 (9B, 2024) language model that reads images."""

    config_class = LlavaGlmConfig
    body_class = LlavaGlmModel
