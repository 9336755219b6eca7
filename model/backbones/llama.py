"""LLaVA on LLaMA. All that is not LLaMA's own is in the two mixins; another backbone is another file like this."""

from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel

from model.llava.llava_config import LlavaFields
from model.llava_arch import LlavaForCausalLM, LlavaMetaModel


class LlavaConfig(LlavaFields, LlamaConfig):
    """LLaMA configuration with the fields of a vision-language model."""

    model_type = "llava_llama"


class LlavaLlamaModel(LlavaMetaModel, LlamaModel):
    """LLaMA decoder body with vision tower and projector."""

    config_class = LlavaConfig


class LlavaLlamaForCausalLM(LlavaForCausalLM, LlamaForCausalLM):  # type: ignore[misc]
    """LLaMA language model that reads images."""

    config_class = LlavaConfig
    body_class = LlavaLlamaModel
