"""What cached features depend on, as a key: the tower's weights and settings, how pixels are made, the arithmetic.

Features of one key have their own folder, so that a change of anything leads to another, empty folder and never
to features of something else. Not in the key, since it changes rounding only: device, attention kernel, batch size.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any, Final

import torch

from model.fusion.resolution import Resolution
from model.hub.lone_tower import LoneTower
from model.vision.image_spec import fingerprint_facts
from model.vision.tower_builder import AnyTower
from model.vision.vision_tower import VisionTower
from pipeline.index.scan import Checks
from pipeline.samples.fit import ImageSpec

FORMAT: Final = 2
"""Raised whenever files of the cache change their meaning."""
_LOCAL_FACTS: Final = frozenset({"_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures"})
"""Fields of a tower's config that say where it came from, not what it computes."""


def tower_revision(tower: AnyTower) -> str:
    """Return SHA-256 over the tower's weights: names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, parameter in sorted(tower.named_parameters()):
        value = parameter.detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {list(value.shape)};".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def cache_key(
    lone: LoneTower, revision: str, image_spec: ImageSpec, resolution: Resolution, checks: Checks, precision: str
) -> str:
    """Return the key, 32 hexadecimal digits.

    Args:
        lone: the tower and its normalisation.
        revision: its `tower_revision`.
        image_spec: the square that every tile becomes.
        resolution: which tiles an image becomes.
        checks: of the index; they decide which samples, and so which images, there are.
        precision: `training.precision`.
    """
    tower = lone.tower
    members = [tower] if isinstance(tower, VisionTower) else tower.members
    other_stats = None if isinstance(tower, VisionTower) else tower.stats
    facts = {
        "format": FORMAT,
        "weights": revision,
        "towers": [_describe(member) for member in members],
        "normalisation": [lone.stats, other_stats],
        "pixels": [dataclasses.asdict(image_spec), _tiling_of(resolution), dataclasses.asdict(checks)],
        "precision": precision,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:32]


def _tiling_of(resolution: Resolution) -> dict[str, Any]:
    """Return what decides which tiles an image becomes; how their features are laid out afterwards does not matter.

    `max_tiles` decides it for several images too: with `anyres_max_N` each of them becomes one tile.
    """
    facts = fingerprint_facts(resolution)
    return {name: value for name, value in facts.items() if name not in ("merge", "tile_features", "tile_grid")}


def _describe(tower: VisionTower) -> list[Any]:
    config = {name: value for name, value in tower.config.to_dict().items() if name not in _LOCAL_FACTS}
    return [config, tower.spec.layers, tower.spec.select_feature, tower.spec.merge, tower.spec.scales]
