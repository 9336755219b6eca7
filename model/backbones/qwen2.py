"""LLaVA on Qwen 2 and 2.5."""

from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Model

from model.llava.llava_config import LlavaFields
from model.llava_arch import LlavaForCausalLM, LlavaMetaModel


class LlavaQwen2Config(LlavaFields, Qwen2Config):
    """Qwen 2 and 2.5 configuration with the fields of a vision-language model."""

    model_type = "llava_qwen2"


class LlavaQwen2Model(LlavaMetaModel, Qwen2Model):
    """Qwen 2 and 2.5 decoder body with vision tower and projector."""

    config_class = LlavaQwen2Config


class LlavaQwen2ForCausalLM(LlavaForCausalLM, Qwen2ForCausalLM):  # type: ignore[misc]
    """Qwen 2 and 2.5 language model that reads images."""

    config_class = LlavaQwen2Config
    body_class = LlavaQwen2Model
