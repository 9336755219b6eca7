"""Tiny random checkpoints of every backbone and tower. Widths differ so that mix-ups show."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    CLIPVisionConfig,
    Dinov2Config,
    Dinov2WithRegistersConfig,
    DINOv3ViTConfig,
    InternVLVisionConfig,
    PretrainedConfig,
    SiglipVisionConfig,
)
from transformers.models.clip import CLIPImageProcessor

from model.backbones.registry import BACKBONES
from model.vision.tower_kinds import TOWER_KINDS
from tests.model.tiny_backbones import VOCAB, WIDTH, tiny_backbone_config

__all__ = [
    "KINDS",
    "PAIRS",
    "TOWERS",
    "VOCAB",
    "WIDTH",
    "chosen_pairs",
    "save_tiny_backbone",
    "save_tiny_tower",
    "tiny_backbone_config",
    "tiny_tower_config",
]


def save_tiny_backbone(kind: str, folder: Path, *, tied: bool = False) -> str:
    torch.manual_seed(2)
    model = AutoModelForCausalLM.from_config(tiny_backbone_config(kind, tied=tied))
    model.save_pretrained(folder)
    return str(folder)


KINDS = sorted(BACKBONES)
TOWERS = sorted(TOWER_KINDS)


def chosen_pairs(kinds: Sequence[str], towers: Sequence[str]) -> list[tuple[str, str]]:
    """Return pairs in which each backbone and each tower occurs; all pairs with RAY_LLAVA_ALL_PAIRS (`make pairs`)."""
    if os.environ.get("RAY_LLAVA_ALL_PAIRS"):
        return [(kind, tower) for kind in kinds for tower in towers]
    number = max(len(kinds), len(towers))
    return [(kinds[idx % len(kinds)], towers[idx % len(towers)]) for idx in range(number)]


PAIRS = chosen_pairs(KINDS, TOWERS)


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
    if kind == "dinov2_with_registers":
        return Dinov2WithRegistersConfig(**shape, mlp_ratio=2, layerscale_value=0.7, num_register_tokens=3)
    if kind == "dinov3_vit":  # heads of 8 channels: rotary positions turn them in fours
        shape |= {"hidden_size": 24, "num_attention_heads": 3}
        return DINOv3ViTConfig(**shape, intermediate_size=26, layerscale_value=0.7, num_register_tokens=2)
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
