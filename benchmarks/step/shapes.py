"""Models of true size with random weights, built where they run: nothing is downloaded or read from disk."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, Literal

import torch
from transformers import CLIPVisionConfig, LlamaConfig

from model.backbones.llama import LlavaConfig, LlavaLlamaForCausalLM
from model.fusion.resolution import Resolution
from model.hub.lora import add_lora
from model.hub.weights import set_trainable
from model.llava.attention import AttentionKernel, enable_packed_attention
from pipeline.training.measures.flops import FlopModel

_CLIP_L_336: Final[dict[str, Any]] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "projection_dim": 768,
}
_CLIP_112: Final[dict[str, Any]] = {  # 64 features per image
    "hidden_size": 192,
    "intermediate_size": 768,
    "num_hidden_layers": 6,
    "num_attention_heads": 3,
    "image_size": 112,
    "patch_size": 14,
    "projection_dim": 192,
}
_CLIP_TINY: Final[dict[str, Any]] = {
    "hidden_size": 24,
    "intermediate_size": 52,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
    "projection_dim": 24,
}

IMAGE_MEAN: Final = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD: Final = (0.26862954, 0.26130258, 0.27577711)

LANGUAGE_MODELS: Final[dict[str, dict[str, Any]]] = {
    "7b": {  # LLaMA and Vicuna 7B
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "max_position_embeddings": 4096,
    },
    "1.5b": {  # widths and vocabulary of Qwen2.5-1.5B, without its attention biases
        "vocab_size": 151936,
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": True,
    },
    "check": {  # large enough for every kernel's tiles, small enough for float32 references
        "vocab_size": 32000,
        "hidden_size": 1024,
        "intermediate_size": 2816,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
    },
    "384 x 6": {
        "vocab_size": 32000,
        "hidden_size": 384,
        "intermediate_size": 1024,
        "num_hidden_layers": 6,
        "num_attention_heads": 6,
        "num_key_value_heads": 6,
        "max_position_embeddings": 4096,
    },
    "1024 x 8": {
        "vocab_size": 32000,
        "hidden_size": 1024,
        "intermediate_size": 2752,
        "num_hidden_layers": 8,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "max_position_embeddings": 4096,
    },
    "tiny": {
        "vocab_size": 331,
        "hidden_size": 32,
        "intermediate_size": 84,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
    },
}


def language_config(name: str) -> LlamaConfig:
    """Return the language model's config of a named size."""
    return LlamaConfig(**LANGUAGE_MODELS[name])


def vision_config(name: str) -> CLIPVisionConfig:
    """Return the tower's config that goes with a named size: CLIP-L/14 at 336 pixels, or a smaller one."""
    return CLIPVisionConfig(**_tower(name))


def image_size(name: str) -> int:
    """Return the side of the images of a named size, pixels."""
    return int(_tower(name)["image_size"])


def features_per_image(name: str) -> int:
    """Return the features that an image becomes in a named size."""
    return int((_tower(name)["image_size"] // _tower(name)["patch_size"]) ** 2)


def resolution(name: str) -> Resolution:
    """Return how images of a named size become features: one square each."""
    patches = image_size(name) // int(_tower(name)["patch_size"])
    return Resolution("pad", image_size(name), patches**2, patches)


def llava_config(name: str) -> LlavaConfig:
    """Return the config of our model of a named size, tower inside, hidden state -2, patches only."""
    tower = vision_config(name)
    values = {
        **LANGUAGE_MODELS[name],
        "mm_vision_tower": f"random-{name}",
        "mm_vision_config": tower.to_dict(),
        "mm_vision_weights": "checkpoint",
        "mm_hidden_size": tower.hidden_size,
        "mm_projector_type": "mlp2x_gelu",
        "mm_image_mean": list(IMAGE_MEAN),
        "mm_image_std": list(IMAGE_STD),
    }
    return LlavaConfig.from_dict(values)


def skeleton(name: str, stage: Literal["pretrain", "finetune"], lora_rank: int | None = None) -> LlavaLlamaForCausalLM:
    """Return our model of a named size without values, with what the stage trains requiring gradients."""
    with torch.device("meta"):
        model = LlavaLlamaForCausalLM(llava_config(name))
        set_trainable(model, stage)
        if lora_rank is not None:
            add_lora(model, lora_rank, 2 * lora_rank)
    return model


def flop_model(name: str, stage: Literal["pretrain", "finetune"], lora_rank: int | None = None) -> FlopModel:
    """Return the FLOPs of a named size in a stage, with adapters or without."""
    return FlopModel.of(skeleton(name, stage, lora_rank))


def build_model(
    name: str, device: torch.device, dtype: torch.dtype, attention: AttentionKernel = "auto"
) -> LlavaLlamaForCausalLM:
    """Build our model of a named size with random weights, created on `device` in `dtype`; float32 projector."""
    with created_as(device, dtype):
        model = LlavaLlamaForCausalLM(llava_config(name))
    model.get_model().mm_projector.float()
    enable_packed_attention(model, attention)
    return model


def _tower(name: str) -> dict[str, Any]:
    return {"tiny": _CLIP_TINY, "384 x 6": _CLIP_112, "1024 x 8": _CLIP_112}.get(name, _CLIP_L_336)


@contextmanager
def created_as(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Create modules on `device` in `dtype`."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            yield
    finally:
        torch.set_default_dtype(before)
