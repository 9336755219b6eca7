"""LLaVA on OLMo 3."""

from transformers import Olmo3Config, Olmo3ForCausalLM, Olmo3Model

from model.llava.llava_config import LlavaFields
from model.llava_arch import LlavaForCausalLM, LlavaMetaModel


class LlavaOlmo3Config(LlavaFields, Olmo3Config):
    """OLMo 3 configuration with the fields of a vision-language model."""

    model_type = "llava_olmo3"


class LlavaOlmo3Model(LlavaMetaModel, Olmo3Model):
    """OLMo 3 decoder body with vision tower and projector."""

    config_class = LlavaOlmo3Config


class LlavaOlmo3ForCausalLM(LlavaForCausalLM, Olmo3ForCausalLM):  # type: ignore[misc]
    """OLMo 3 language model that reads images."""

    config_class = LlavaOlmo3Config
    body_class = LlavaOlmo3Model
