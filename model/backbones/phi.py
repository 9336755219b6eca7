"""LLaVA on Phi 1 and 2."""

from transformers import PhiConfig, PhiForCausalLM, PhiModel

from model.llava.llava_config import LlavaFields
from model.llava_arch import LlavaForCausalLM, LlavaMetaModel


class LlavaPhiConfig(LlavaFields, PhiConfig):
    """Phi 1 and 2 configuration with the fields of a vision-language model."""

    model_type = "llava_phi"


class LlavaPhiModel(LlavaMetaModel, PhiModel):
    """Phi 1 and 2 decoder body with vision tower and projector."""

    config_class = LlavaPhiConfig


class LlavaPhiForCausalLM(LlavaForCausalLM, PhiForCausalLM):  # type: ignore[misc]
    """Phi 1 and 2 language model that reads images."""

    config_class = LlavaPhiConfig
    body_class = LlavaPhiModel
    head_bias = True
