"""LLaVA on SmolLM 3."""

from transformers import SmolLM3Config, SmolLM3ForCausalLM, SmolLM3Model

from model.llava.llava_config import LlavaFields
from model.llava_arch import LlavaForCausalLM, LlavaMetaModel


class LlavaSmolLM3Config(LlavaFields, SmolLM3Config):
    """SmolLM 3 configuration with the fields of a vision-language model."""

    model_type = "llava_smollm3"


class LlavaSmolLM3Model(LlavaMetaModel, SmolLM3Model):
    """SmolLM 3 decoder body with vision tower and projector."""

    config_class = LlavaSmolLM3Config


class LlavaSmolLM3ForCausalLM(LlavaForCausalLM, SmolLM3ForCausalLM):  # type: ignore[misc]
    """SmolLM 3 language model that reads images."""

    config_class = LlavaSmolLM3Config
    body_class = LlavaSmolLM3Model
