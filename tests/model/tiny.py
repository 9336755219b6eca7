"""Tiny random checkpoints of every backbone and tower. Widths differ so that mix-ups show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    CLIPVisionConfig,
    Dinov2Config,
    Gemma3TextConfig,
    GemmaConfig,
    InternVLVisionConfig,
    LlamaConfig,
    MistralConfig,
    MptConfig,
    Phi3Config,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
    SiglipVisionConfig,
)
from transformers.models.clip import CLIPImageProcessor

from model.backbones.registry import BACKBONES
from model.vision.tower_kinds import TOWER_KINDS

WIDTH = 32
VOCAB = 97

_SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": WIDTH, "intermediate_size": 58, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128, "initializer_range": 0.2,
}  # fmt: skip
_IDS: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def tiny_backbone_config(kind: str, *, tied: bool = False) -> PretrainedConfig:
    """Two layers; windows are wider than most test samples and narrower than one image."""
    shape: dict[str, Any] = {**_SHAPE, **_IDS, "tie_word_embeddings": tied}
    if kind == "llama":
        return LlamaConfig(**shape)
    if kind == "mistral":
        return MistralConfig(**shape, sliding_window=None)
    if kind == "qwen2":
        return Qwen2Config(**shape)
    if kind == "qwen3":
        return Qwen3Config(**shape, head_dim=6)
    if kind == "gemma":
        return GemmaConfig(**shape, head_dim=6)
    if kind == "gemma3_text":
        return Gemma3TextConfig(
            **shape, head_dim=6, sliding_window=11, layer_types=["sliding_attention", "full_attention"]
        )
    if kind == "phi3":
        return Phi3Config(**shape)
    return MptConfig(
        vocab_size=VOCAB, d_model=WIDTH, n_heads=4, n_layers=2, max_seq_len=128, initializer_range=0.2,
        tie_word_embeddings=tied, **_IDS,
    )  # fmt: skip


def save_tiny_backbone(kind: str, folder: Path, *, tied: bool = False) -> str:
    torch.manual_seed(2)
    model = AutoModelForCausalLM.from_config(tiny_backbone_config(kind, tied=tied))
    model.save_pretrained(folder)
    return str(folder)


KINDS = sorted(BACKBONES)
TOWERS = sorted(TOWER_KINDS)


def tiny_tower_config(kind: str) -> PretrainedConfig:
    """Three layers, nine patches."""
    shape: dict[str, Any] = {
        "hidden_size": 22, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 21, "patch_size": 7,
    }  # fmt: skip
    if kind == "clip_vision_model":
        return CLIPVisionConfig(**shape, intermediate_size=26)
    if kind == "siglip_vision_model":
        return SiglipVisionConfig(**shape, intermediate_size=26)
    if kind == "dinov2":
        return Dinov2Config(**shape, mlp_ratio=2, layerscale_value=0.7)
    return InternVLVisionConfig(**shape, intermediate_size=26, use_qk_norm=True, layer_scale_init_value=0.7)


def save_tiny_tower(kind: str, folder: Path) -> str:
    """Write weights, spread more than a new model's, and an image processor."""
    torch.manual_seed(4)
    model: Any = TOWER_KINDS[kind].model_class(tiny_tower_config(kind))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.2)
    model.save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 21}, crop_size=21).save_pretrained(folder)
    return str(folder)
