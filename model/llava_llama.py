"""LLaVA on LLaMA. All that is not LLaMA's own is in the two mixins; another backbone is another file like this."""

from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, LlamaModel

from model.llava_arch import LlavaMetaForCausalLM, LlavaMetaModel
from model.llava_config import LlavaFields


class LlavaConfig(LlavaFields, LlamaConfig):
    """LLaMA configuration with the fields of a vision-language model."""

    model_type = "llava_llama"


class LlavaLlamaModel(LlavaMetaModel, LlamaModel):
    """LLaMA decoder body with vision tower and projector."""

    config_class = LlavaConfig


class LlavaLlamaForCausalLM(LlavaMetaForCausalLM, LlamaForCausalLM):  # type: ignore[misc]
    """LLaMA language model that reads images."""

    config_class = LlavaConfig

    def __init__(self, config: LlavaConfig):
        super(LlamaForCausalLM, self).__init__(config)
        self.model = LlavaLlamaModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()  # type: ignore[no-untyped-call]

    def get_model(self) -> LlavaLlamaModel:
        """Return the decoder body."""
        body: LlavaLlamaModel = self.model
        return body


AutoConfig.register("llava_llama", LlavaConfig, exist_ok=True)
AutoModelForCausalLM.register(LlavaConfig, LlavaLlamaForCausalLM, exist_ok=True)
