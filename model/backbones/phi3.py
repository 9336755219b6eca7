"""LLaVA on Phi 3 and 4."""

from transformers import Phi3Config, Phi3ForCausalLM, Phi3Model

from model.llava.llava_config import LlavaFields
from model.llava_arch import LlavaForCausalLM, LlavaMetaModel


class LlavaPhi3Config(LlavaFields, Phi3Config):
    """Phi 3 and 4 configuration with the fields of a vision-language model."""

    model_type = "llava_phi3"


class LlavaPhi3Model(LlavaMetaModel, Phi3Model):
    """Phi 3 and 4 decoder body with vision tower and projector."""

    config_class = LlavaPhi3Config


class LlavaPhi3ForCausalLM(LlavaForCausalLM, Phi3ForCausalLM):  # type: ignore[misc]
    """Phi 3 and 4 language model that reads images."""

    config_class = LlavaPhi3Config
    body_class = LlavaPhi3Model
