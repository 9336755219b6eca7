"""LLaVA on MPT: attention with linear biases, computed by MPT's own code, so rows are padded rather than packed."""

from torch import nn
from transformers import MptConfig, MptForCausalLM, MptModel

from model.llava.llava_config import LlavaFields
from model.llava_arch import LlavaForCausalLM, LlavaMetaModel


class LlavaMptConfig(LlavaFields, MptConfig):
    """MPT configuration with the fields of a vision-language model."""

    model_type = "llava_mpt"


class LlavaMptModel(LlavaMetaModel, MptModel):
    """MPT decoder body with vision tower and projector, under the names that other bodies use for its parts."""

    config_class = LlavaMptConfig

    @property
    def embed_tokens(self) -> nn.Embedding:
        """Input embedding."""
        return self.wte

    @property
    def layers(self) -> nn.ModuleList:
        """Decoder layers."""
        return self.blocks


class LlavaMptForCausalLM(LlavaForCausalLM, MptForCausalLM):  # type: ignore[misc]
    """MPT language model that reads images."""

    config_class = LlavaMptConfig
    body_class = LlavaMptModel
    packs_rows = False

    @property
    def last_position(self) -> int:
        """Its biases are made for so many tokens."""
        length: int = self.config.max_seq_len
        return length
