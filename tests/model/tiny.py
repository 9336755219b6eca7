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
    Siglip2VisionConfig,
    SiglipVisionConfig,
)
from transformers.models.clip import CLIPImageProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

from model.backbones.registry import BACKBONES
from model.vision.tower_kinds import TOWER_KINDS
from tests.model.tiny_backbones import VOCAB, WIDTH, tiny_backbone_config

__all__ = [
    "KINDS",
    "NATIVE_TOWERS",
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
TOWERS = sorted(kind for kind, tower in TOWER_KINDS.items() if tower.native is None)
NATIVE_TOWERS = sorted(kind for kind, tower in TOWER_KINDS.items() if tower.native is not None)


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
    if kind == "siglip2_vision_model":
        return Siglip2VisionConfig(
            hidden_size=22, intermediate_size=26, num_hidden_layers=3, num_attention_heads=2, patch_size=7,
            num_patches=16, vision_use_head=True,
        )  # fmt: skip
    if kind in ("qwen2_5_vl_vision", "qwen3_vl_vision"):
        own: dict[str, Any] = {"window_size": 28, "fullatt_block_indexes": [1]}
        if kind == "qwen3_vl_vision":
            own = {"num_position_embeddings": 16, "deepstack_visual_indexes": [1]}
        config_class: Any = TOWER_KINDS[kind].config_class
        config: PretrainedConfig = config_class(
            depth=3, hidden_size=24, intermediate_size=26, num_heads=2, patch_size=7, spatial_merge_size=2,
            temporal_patch_size=2, out_hidden_size=30, **own,
        )  # fmt: skip
        return config
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
    processor: Any = CLIPImageProcessor(size={"shortest_edge": 21}, crop_size=21)
    if kind == "siglip2_vision_model":
        processor = Siglip2ImageProcessorPil(patch_size=7, max_num_patches=16)
    elif kind in NATIVE_TOWERS:
        processor = Qwen2VLImageProcessorPil(patch_size=7, merge_size=2)
    processor.save_pretrained(folder)
    return str(folder)
