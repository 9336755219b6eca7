"""LLaVA on GLM 4.5 to 4.7."""

from transformers import Glm4MoeConfig, Glm4MoeForCausalLM, Glm4MoeModel

from model.llava.llava_config import LlavaFields
from model.llava_arch import LlavaForCausalLM, LlavaMetaModel


class LlavaGlm4MoeConfig(LlavaFields, Glm4MoeConfig):
    """GLM 4.5 to 4.7 configuration with the fields of a vision-language model."""

    model_type = "llava_glm4_moe"


class LlavaGlm4MoeModel(LlavaMetaModel, Glm4MoeModel):
    """GLM 4.5 to 4.7 decoder body with vision tower and projector."""

    config_class = LlavaGlm4MoeConfig


class LlavaGlm4MoeForCausalLM(LlavaForCausalLM, Glm4MoeForCausalLM):  # type: ignore[misc]
    """GLM 4.5 to 4.7 language model that reads images."""

    config_class = LlavaGlm4MoeConfig
    body_class = LlavaGlm4MoeModel
