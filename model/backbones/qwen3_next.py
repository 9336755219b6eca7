"""LLaVA on Qwen 3 Next, whose layers of linear attention run sample by sample in a packed row."""

from typing import Any

from torch import Tensor
from transformers import PretrainedConfig, Qwen3NextConfig, Qwen3NextForCausalLM, Qwen3NextModel
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextGatedDeltaNet

from model.llava.linear_attention import by_sample
from model.llava.llava_config import LlavaFields
from model.llava_arch import LlavaForCausalLM, LlavaMetaModel


class _PackedDeltaNet(Qwen3NextGatedDeltaNet):
    """Linear attention that starts again with every sample of a packed row."""

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        """Attend over [B, T, D], or over the samples of a packed row [1, S, D]."""
        attended: Tensor = by_sample(super().forward, hidden_states, **kwargs)
        return attended


class LlavaQwen3NextConfig(LlavaFields, Qwen3NextConfig):
    """Qwen 3 Next configuration with the fields of a vision-language model."""

    model_type = "llava_qwen3_next"


class LlavaQwen3NextModel(LlavaMetaModel, Qwen3NextModel):
    """Qwen 3 Next decoder body with vision tower and projector."""

    config_class = LlavaQwen3NextConfig

    def __init__(self, config: PretrainedConfig):
        super().__init__(config)
        for module in self.modules():
            if type(module) is Qwen3NextGatedDeltaNet:  # the class alone is exchanged, so that names of weights stay
                module.__class__ = _PackedDeltaNet


class LlavaQwen3NextForCausalLM(LlavaForCausalLM, Qwen3NextForCausalLM):  # type: ignore[misc]
    """Qwen 3 Next language model that reads images."""

    config_class = LlavaQwen3NextConfig
    body_class = LlavaQwen3NextModel
