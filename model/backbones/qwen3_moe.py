"""LLaVA on Qwen 3 MoE."""

from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM, Qwen3MoeModel

from model.llava.llava_config import LlavaFields
from model.llava_arch import LlavaForCausalLM, LlavaMetaModel


class LlavaQwen3MoeConfig(LlavaFields, Qwen3MoeConfig):
    """Qwen 3 MoE configuration with the fields of a vision-language model."""

    model_type = "llava_qwen3_moe"


class LlavaQwen3MoeModel(LlavaMetaModel, Qwen3MoeModel):
    """Qwen 3 MoE decoder body with vision tower and projector."""

    config_class = LlavaQwen3MoeConfig


class LlavaQwen3MoeForCausalLM(LlavaForCausalLM, Qwen3MoeForCausalLM):  # type: ignore[misc]
    """Qwen 3 MoE language model that reads images."""

    config_class = LlavaQwen3MoeConfig
    body_class = LlavaQwen3MoeModel
