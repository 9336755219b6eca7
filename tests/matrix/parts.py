"""The small parts that every cell trains on, and the config of a cell."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import SiglipVisionConfig, SiglipVisionModel

from pipeline.config import ExperimentConfig, parse_config
from pipeline.tools.demo.shards import DemoSizes, write_demo_shards

WEIGHTS = Path(__file__).parents[2] / "pipeline" / "tools" / "demo" / "weights"
_SIZES = DemoSizes(pretrain=13, finetune=13, held_out=1)


def write_parts(folder: Path) -> dict[str, str]:
    """Write shards and a second tower; returns what `{...}` in options stands for."""
    shards = write_demo_shards(folder / "shards", _SIZES)
    torch.manual_seed(3)
    shape: dict[str, Any] = {
        "hidden_size": 24,
        "intermediate_size": 28,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
    }
    SiglipVisionModel(SiglipVisionConfig(image_size=96, patch_size=16, **shape)).save_pretrained(folder / "siglip")
    values = {
        "do_normalize": True, "do_rescale": True, "do_resize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
        "image_processor_type": "SiglipImageProcessor", "resample": 3, "rescale_factor": 1 / 255,
        "size": {"height": 96, "width": 96},
    }  # fmt: skip
    (folder / "siglip" / "preprocessor_config.json").write_text(json.dumps(values))
    return {
        "chat": shards["finetune"][0],
        "captions": shards["pretrain"][0],
        "tower": str(WEIGHTS / "tower"),
        "siglip": str(folder / "siglip"),
        "cache": str(folder / "cache"),
    }


def cell_config(values: Mapping[str, Any], run_dir: Path, parts: Mapping[str, str], launcher: str) -> ExperimentConfig:
    """Return the config of a cell.

    Raises:
        ConfigError: its values exclude each other.
    """
    places = {**parts, "checkpoints": str(run_dir.parent / f"{run_dir.name}-checkpoints")}
    tree: dict[str, Any] = {
        "name": run_dir.name, "run_dir": str(run_dir),
        "data": {"max_length": 1024, "max_rejected_fraction": 1.0},
        "model": {"language_model": str(WEIGHTS / "language_model")},
        "training": {"global_batch_size": 5, "micro_batch_tokens": 1500, "learning_rate": 1e-3, "max_steps": 2},
        "cluster": {
            "launcher": launcher, "data_workers": 1 if launcher == "ray" else 0, "torch_threads": 1,
            "cpus_per_worker": 0.5,
        },
        "tracking": {"uri": f"sqlite:///{run_dir.parent / run_dir.name}.db"},
    }  # fmt: skip
    for path, value in values.items():
        *sections, leaf = path.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[leaf] = _fill(value, places)
    tree["data"]["template"] = "plain" if tree["stage"] == "pretrain" and not tree["data"].get("sources") else "v1"
    if not tree["data"].get("sources"):
        tree["data"]["shards"] = [parts["captions" if tree["stage"] == "pretrain" else "chat"]]
    return parse_config(tree, where=run_dir.name)


def _fill(value: Any, places: Mapping[str, str]) -> Any:
    if isinstance(value, str) and value.startswith("{"):
        return places[value.strip("{}")]
    if isinstance(value, dict):
        return {key: _fill(own, places) for key, own in value.items()}
    if isinstance(value, list | tuple):
        return [_fill(own, places) for own in value]
    return value
