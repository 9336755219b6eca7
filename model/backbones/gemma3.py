"""LLaVA on Gemma 3 (its text models)."""

from transformers import Gemma3ForCausalLM, Gemma3TextConfig, Gemma3TextModel

from model.llava.llava_config import LlavaFields
from model.llava_arch import LlavaForCausalLM, LlavaMetaModel


class LlavaGemma3Config(LlavaFields, Gemma3TextConfig):
    """Gemma 3 (its text models) configuration with the fields of a vision-language model."""

    model_type = "llava_gemma3"


class LlavaGemma3Model(LlavaMetaModel, Gemma3TextModel):
    """Gemma 3 (its text models) decoder body with vision tower and projector."""

    config_class = LlavaGemma3Config


class LlavaGemma3ForCausalLM(LlavaForCausalLM, Gemma3ForCausalLM):  # type: ignore[misc]
    """Gemma 3 (its text models) language model that reads images."""

    config_class = LlavaGemma3Config
    body_class = LlavaGemma3Model
