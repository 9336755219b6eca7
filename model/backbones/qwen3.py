"""LLaVA on Qwen 3."""

from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3Model

from model.llava.llava_config import LlavaFields
from model.llava_arch import LlavaForCausalLM, LlavaMetaModel


class LlavaQwen3Config(LlavaFields, Qwen3Config):
    """Qwen 3 configuration with the fields of a vision-language model."""

    model_type = "llava_qwen3"


class LlavaQwen3Model(LlavaMetaModel, Qwen3Model):
    """Qwen 3 decoder body with vision tower and projector."""

    config_class = LlavaQwen3Config


class LlavaQwen3ForCausalLM(LlavaForCausalLM, Qwen3ForCausalLM):  # type: ignore[misc]
    """Qwen 3 language model that reads images."""

    config_class = LlavaQwen3Config
    body_class = LlavaQwen3Model
