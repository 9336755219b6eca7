"""A vision tower with its weights but without the language model, as the joined model would have it."""

import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from model.files.adapter import projector_tensors, read_adapter
from model.files.checkpoint_files import read_tensors
from model.hub.weights import read_llava_config
from model.vision.pixels import PixelStats, pixel_stats_of, read_pixel_stats
from model.vision.tower_builder import AnyTower, build_vision_tower
from model.vision.vision_tower import VisionTower


class LoneTower(NamedTuple):
    """A frozen tower and the normalisation of its pixels."""

    tower: AnyTower
    stats: PixelStats


def load_named_tower(args: Any, dtype: torch.dtype) -> LoneTower:
    """Load the tower that a set of model arguments names; see `build_vision_tower`.

    Raises:
        ValueError: it is missing, or came without normalisation.
    """
    tower = build_vision_tower(args, delay_load=True)
    tower.load_model(dtype)
    name = tower.spec.name if isinstance(tower, VisionTower) else tower.first.spec.name
    stats = read_pixel_stats(name)
    if stats is None:
        raise ValueError(f"vision tower {name} has no preprocessor_config.json; copy it into that folder")
    return LoneTower(tower, stats)


def load_tower_of_llava(path: str, dtype: torch.dtype) -> LoneTower:
    """Load the tower of a LLaVA folder: the one inside when there is one, else the one that its config names.

    Raises:
        ValueError: it is not a LLaVA folder, or its tower is missing or does not fit.
    """
    config = read_llava_config(path)
    tower = build_vision_tower(config, delay_load=True)
    members = [tower] if isinstance(tower, VisionTower) else tower.members
    for number, member in enumerate(members):
        place = "" if isinstance(tower, VisionTower) else rf"towers\.{number}\."
        inside = _read_inside(path, rf"^(?:model|transformer)\.vision_tower\.{place}vision_tower\.")
        if inside:
            member.load_state(inside, path, dtype)
        else:
            member.load_model(dtype)
    return LoneTower(tower, pixel_stats_of(config))


def holds_tower_weights(adapter: str | Path) -> bool:
    """Whether an adapter file replaces weights of the tower."""
    return any(name.startswith("vision_tower") for name in projector_tensors(read_adapter(adapter)))


def _read_inside(path: str, prefix: str) -> dict[str, Tensor]:
    found = read_tensors(path, lambda name: re.match(prefix, name) is not None)
    return {re.sub(prefix, "", name): tensor for name, tensor in found.items()}
