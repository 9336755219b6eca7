"""LLaVA on Ministral."""

from transformers import MinistralConfig, MinistralForCausalLM, MinistralModel

from model.llava.llava_config import LlavaFields
from model.llava_arch import LlavaForCausalLM, LlavaMetaModel


class LlavaMinistralConfig(LlavaFields, MinistralConfig):
    """Ministral configuration with the fields of a vision-language model."""

    model_type = "llava_ministral"


class LlavaMinistralModel(LlavaMetaModel, MinistralModel):
    """Ministral decoder body with vision tower and projector."""

    config_class = LlavaMinistralConfig


class LlavaMinistralForCausalLM(LlavaForCausalLM, MinistralForCausalLM):  # type: ignore[misc]
    """Ministral language model that reads images."""

    config_class = LlavaMinistralConfig
    body_class = LlavaMinistralModel
