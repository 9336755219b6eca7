"""Rotary fields as published configs have them, and tiny language models with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.model.tiny import save_tiny_backbone

ROPES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama 2": ("llama", {"rope_theta": 10000.0, "rope_scaling": None}),
    "llama 3": ("llama", {"rope_theta": 500000.0, "rope_scaling": None}),
    "llama 3.1": ("llama", {"rope_theta": 500000.0, "rope_scaling": {
        "factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 32,
        "rope_type": "llama3"}}),
    "vicuna 16k": ("llama", {"rope_theta": 10000.0, "rope_scaling": {"type": "linear", "factor": 4.0}}),
    "dynamic": ("llama", {"rope_theta": 20000.0, "rope_scaling": {"type": "dynamic", "factor": 2.0}}),
    "qwen 2": ("qwen2", {"rope_theta": 1000000.0}),
    "qwen 2.5 yarn": ("qwen2", {"rope_theta": 1000000.0, "rope_scaling": {
        "type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}}),
    "qwen 3": ("qwen3", {"rope_theta": 1000000.0, "rope_scaling": None}),
    "mistral": ("mistral", {"rope_theta": 1000000.0}),
    "gemma 3": ("gemma3_text", {"rope_theta": 1000000.0, "rope_local_base_freq": 10000.0, "rope_scaling": None}),
    "gemma 3 4b": ("gemma3_text", {"rope_theta": 1000000.0, "rope_local_base_freq": 10000.0, "rope_scaling": {
        "rope_type": "linear", "factor": 8.0}}),
    "phi 3 4k": ("phi3", {"rope_theta": 10000.0, "rope_scaling": None}),
    "phi 3 128k": ("phi3", {"rope_theta": 10000.0, "original_max_position_embeddings": 64, "rope_scaling": {
        "type": "longrope", "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [2.0, 2.1, 2.2, 2.3]}}),
}  # fmt: skip
"""Name -> `model_type` and its fields."""


def save_backbone_with_rope(name: str, folder: Path) -> str:
    """Write a tiny language model whose config.json has the fields of 4.x alone, as published."""
    kind, fields = ROPES[name]
    save_tiny_backbone(kind, folder)
    file = folder / "config.json"
    values = json.loads(file.read_text())
    values.pop("rope_parameters", None)
    file.write_text(json.dumps(values | fields))
    return str(folder)
