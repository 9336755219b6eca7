"""LLaVA on Mistral."""

from transformers import MistralConfig, MistralForCausalLM, MistralModel

from model.llava.llava_config import LlavaFields
from model.llava_arch import LlavaForCausalLM, LlavaMetaModel


class LlavaMistralConfig(LlavaFields, MistralConfig):
    """Mistral configuration with the fields of a vision-language model."""

    model_type = "llava_mistral"


class LlavaMistralModel(LlavaMetaModel, MistralModel):
    """Mistral decoder body with vision tower and projector."""

    config_class = LlavaMistralConfig


class LlavaMistralForCausalLM(LlavaForCausalLM, MistralForCausalLM):  # type: ignore[misc]
    """Mistral language model that reads images."""

    config_class = LlavaMistralConfig
    body_class = LlavaMistralModel
