"""LLaVA on gpt-oss."""

from transformers import GptOssConfig, GptOssForCausalLM, GptOssModel

from model.llava.llava_config import LlavaFields
from model.llava_arch import LlavaForCausalLM, LlavaMetaModel


class LlavaGptOssConfig(LlavaFields, GptOssConfig):
    """gpt-oss configuration with the fields of a vision-language model."""

    model_type = "llava_gpt_oss"


class LlavaGptOssModel(LlavaMetaModel, GptOssModel):
    """gpt-oss decoder body with vision tower and projector."""

    config_class = LlavaGptOssConfig


class LlavaGptOssForCausalLM(LlavaForCausalLM, GptOssForCausalLM):  # type: ignore[misc]
    """gpt-oss language model that reads images."""

    config_class = LlavaGptOssConfig
    body_class = LlavaGptOssModel
    has_sinks = True
