"""LLaVA on Ministral 3."""

from transformers import Ministral3Config, Ministral3ForCausalLM, Ministral3Model

from model.llava.llava_config import LlavaFields
from model.llava_arch import LlavaForCausalLM, LlavaMetaModel


class LlavaMinistral3Config(LlavaFields, Ministral3Config):
    """Ministral 3 configuration with the fields of a vision-language model."""

    model_type = "llava_ministral3"


class LlavaMinistral3Model(LlavaMetaModel, Ministral3Model):
    """Ministral 3 decoder body with vision tower and projector."""

    config_class = LlavaMinistral3Config


class LlavaMinistral3ForCausalLM(LlavaForCausalLM, Ministral3ForCausalLM):  # type: ignore[misc]
    """Ministral 3 language model that reads images."""

    config_class = LlavaMinistral3Config
    body_class = LlavaMinistral3Model
