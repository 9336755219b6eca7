"""LLaVA on Gemma 2."""

from transformers import Gemma2Config, Gemma2ForCausalLM, Gemma2Model

from model.llava.llava_config import LlavaFields
from model.llava_arch import LlavaForCausalLM, LlavaMetaModel


class LlavaGemma2Config(LlavaFields, Gemma2Config):
    """Gemma 2 configuration with the fields of a vision-language model."""

    model_type = "llava_gemma2"


class LlavaGemma2Model(LlavaMetaModel, Gemma2Model):
    """Gemma 2 decoder body with vision tower and projector."""

    config_class = LlavaGemma2Config


class LlavaGemma2ForCausalLM(LlavaForCausalLM, Gemma2ForCausalLM):  # type: ignore[misc]
    """Gemma 2 language model that reads images."""

    config_class = LlavaGemma2Config
    body_class = LlavaGemma2Model
