"""LLaVA on OLMo 2."""

from transformers import Olmo2Config, Olmo2ForCausalLM, Olmo2Model

from model.llava.llava_config import LlavaFields
from model.llava_arch import LlavaForCausalLM, LlavaMetaModel


class LlavaOlmo2Config(LlavaFields, Olmo2Config):
    """OLMo 2 configuration with the fields of a vision-language model."""

    model_type = "llava_olmo2"


class LlavaOlmo2Model(LlavaMetaModel, Olmo2Model):
    """OLMo 2 decoder body with vision tower and projector."""

    config_class = LlavaOlmo2Config


class LlavaOlmo2ForCausalLM(LlavaForCausalLM, Olmo2ForCausalLM):  # type: ignore[misc]
    """OLMo 2 language model that reads images."""

    config_class = LlavaOlmo2Config
    body_class = LlavaOlmo2Model
