"""LLaVA on GLM 4 (0414)."""

from transformers import Glm4Config, Glm4ForCausalLM, Glm4Model

from model.llava.llava_config import LlavaFields
from model.llava_arch import LlavaForCausalLM, LlavaMetaModel


class LlavaGlm4Config(LlavaFields, Glm4Config):
    """GLM 4 (0414) configuration with the fields of a vision-language model."""

    model_type = "llava_glm4"


class LlavaGlm4Model(LlavaMetaModel, Glm4Model):
    """GLM 4 (0414) decoder body with vision tower and projector."""

    config_class = LlavaGlm4Config


class LlavaGlm4ForCausalLM(LlavaForCausalLM, Glm4ForCausalLM):  # type: ignore[misc]
    """GLM 4 (0414) language model that reads images."""

    config_class = LlavaGlm4Config
    body_class = LlavaGlm4Model
