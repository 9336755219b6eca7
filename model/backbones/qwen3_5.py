"""LLaVA on Qwen 3.5 (its text models), whose layers of linear attention run sample by sample in a packed row."""

from typing import Any

from torch import Tensor
from transformers import PretrainedConfig, Qwen3_5ForCausalLM, Qwen3_5TextConfig, Qwen3_5TextModel
from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5GatedDeltaNet

from model.llava.linear_attention import by_sample
from model.llava.llava_config import LlavaFields
from model.llava_arch import LlavaForCausalLM, LlavaMetaModel


class _PackedDeltaNet(Qwen3_5GatedDeltaNet):
    """Linear attention that starts again with every sample of a packed row."""

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        """Attend over [B, T, D], or over the samples of a packed row [1, S, D]."""
        attended: Tensor = by_sample(super().forward, hidden_states, **kwargs)
        return attended


class LlavaQwen35Config(LlavaFields, Qwen3_5TextConfig):
    """Qwen 3.5 (its text models) configuration with the fields of a vision-language model."""

    model_type = "llava_qwen3_5"


class LlavaQwen35Model(LlavaMetaModel, Qwen3_5TextModel):
    """Qwen 3.5 (its text models) decoder body with vision tower and projector."""

    config_class = LlavaQwen35Config

    def __init__(self, config: PretrainedConfig):
        super().__init__(config)
        for module in self.modules():
            if type(module) is Qwen3_5GatedDeltaNet:  # the class alone is exchanged, so that names of weights stay
                module.__class__ = _PackedDeltaNet


class LlavaQwen35ForCausalLM(LlavaForCausalLM, Qwen3_5ForCausalLM):  # type: ignore[misc]
    """Qwen 3.5 (its text models) language model that reads images."""

    config_class = LlavaQwen35Config
    body_class = LlavaQwen35Model
