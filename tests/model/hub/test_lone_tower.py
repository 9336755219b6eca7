"""A tower loaded alone has the weights and the normalisation that it has inside the joined model."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from model.hub.lone_tower import holds_tower_weights, load_named_tower, load_tower_of_llava
from model.hub.weights import build_llava, load_llava, save_llava
from model.vision.pixels import pixel_stats_of
from tests.model.tiny import save_tiny_backbone, save_tiny_tower


def save_towers(folder: Path, num_towers: int) -> list[str]:
    return [save_tiny_tower("clip_vision_model", folder / f"tower-{number}") for number in range(num_towers)]


def assert_same_tower(ours: torch.nn.Module, theirs: torch.nn.Module | None) -> None:
    assert theirs is not None
    got, wanted = dict(ours.named_parameters()), dict(theirs.named_parameters())
    assert got.keys() == wanted.keys()
    assert [name for name in wanted if not torch.equal(got[name], wanted[name])] == []
    assert not any(parameter.requires_grad for parameter in got.values())


@pytest.mark.parametrize("num_towers", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tower_alone_is_that_of_the_joined_model(num_towers: int, dtype: torch.dtype, tmp_path: Path) -> None:
    names = save_towers(tmp_path, num_towers)
    named = names[0] if num_towers == 1 else names
    language_model = save_tiny_backbone("llama", tmp_path / "lm")
    joined = build_llava(language_model, named, dtype=dtype)
    args = SimpleNamespace(
        vision_tower=named, mm_vision_select_layer=-2, mm_vision_select_feature="patch", mm_projector_type="mlp2x_gelu"
    )
    alone = load_named_tower(args, dtype)
    assert_same_tower(alone.tower, joined.get_vision_tower())
    assert alone.stats == pixel_stats_of(joined.config)
    tower = joined.get_vision_tower()
    assert tower is not None
    with torch.no_grad():
        for parameter in tower.parameters():  # what is inside counts, not the named folder
            parameter.add_(0.25)
    save_llava(joined, tmp_path / "llava")
    inside = load_tower_of_llava(str(tmp_path / "llava"), dtype)
    assert_same_tower(inside.tower, load_llava(tmp_path / "llava", dtype).get_vision_tower())
    assert_same_tower(inside.tower, joined.get_vision_tower())
    assert inside.stats == alone.stats


def test_adapter_with_weights_of_the_tower_is_recognised(tmp_path: Path) -> None:
    rows = {"model.mm_projector.weight": torch.ones(2, 3)}
    save_file(rows, tmp_path / "plain.safetensors")
    place = "model.vision_tower.vision_tower.vision_model.embeddings.position_embedding.weight"
    save_file(rows | {place: torch.ones(5, 3)}, tmp_path / "trained.safetensors")
    assert not holds_tower_weights(tmp_path / "plain.safetensors")
    assert holds_tower_weights(tmp_path / "trained.safetensors")
