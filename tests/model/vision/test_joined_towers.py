"""Two towers as one: features side by side, each tower given the pixels it was trained on."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers.models.clip import CLIPImageProcessor

from model.fusion.constants import IMAGE_TOKEN_INDEX
from model.hub.weights import build_llava, load_llava, save_llava
from model.vision.joined_towers import JoinedTowers
from model.vision.pixels import PixelStats
from model.vision.tower_builder import AnyTower, build_vision_tower
from tests.model.conftest import IMAGE_SIDE, NUM_PATCHES, VISION_WIDTH, random_images
from tests.model.tiny import save_tiny_tower

HALF = PixelStats((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def tower_of(*names: str, delay_load: bool = False) -> AnyTower:
    arguments = SimpleNamespace(
        vision_tower=list(names) if len(names) > 1 else names[0],
        mm_vision_select_layer=-2,
        mm_vision_select_feature="patch",
    )
    return build_vision_tower(arguments, delay_load)


@pytest.fixture
def siglip(tmp_path: Path) -> str:
    """Has another normalisation than CLIP."""
    path = save_tiny_tower("siglip_vision_model", tmp_path / "siglip")
    processor = CLIPImageProcessor(
        size={"shortest_edge": IMAGE_SIDE}, crop_size=IMAGE_SIDE, image_mean=list(HALF.mean), image_std=list(HALF.std)
    )
    processor.save_pretrained(path)
    return path


def test_features_stand_side_by_side_with_each_towers_own_normalisation(tower_path: str, siglip: str) -> None:
    joined = tower_of(tower_path, siglip)
    assert isinstance(joined, JoinedTowers)
    assert (joined.hidden_size, joined.num_features) == (2 * VISION_WIDTH, NUM_PATCHES)
    images = random_images(2)
    clip = joined.stats[0]
    assert clip is not None
    mean, std = (torch.tensor(row)[:, None, None] for row in clip)
    as_siglip = (images * std + mean - 0.5) / 0.5
    wanted = torch.cat([tower_of(tower_path)(images), tower_of(siglip)(as_siglip)], dim=-1)
    assert torch.allclose(joined(images), wanted, atol=1e-5)


def test_second_tower_of_any_size_is_given_the_size_of_equally_many_patches(tower_path: str, tmp_path: Path) -> None:
    dino = save_tiny_tower("dinov2", tmp_path / "dino")
    joined = tower_of(dino, tower_path)
    assert joined.num_features_at(IMAGE_SIDE) == NUM_PATCHES
    with pytest.raises(ValueError, match=rf"found {dino} 25, {tower_path} 9 for images of 35 pixels"):
        joined.num_features_at(35)
    assert tower_of(dino, dino).num_features_at(35) == 25


def test_frozen_and_trainable_as_one(tower_path: str, siglip: str) -> None:
    joined = tower_of(tower_path, siglip)
    assert isinstance(joined, JoinedTowers)
    assert joined.frozen
    assert not joined(random_images(1)).requires_grad
    joined.set_frozen(False)
    joined(random_images(1)).sum().backward()
    assert all(any(p.grad is not None for p in member.parameters()) for member in joined.members)


def test_model_with_two_towers_saves_and_opens_without_their_folders(
    llama_path: str, tower_path: str, siglip: str, tmp_path: Path
) -> None:
    model = build_llava(llama_path, [tower_path, siglip]).train(False)
    ids, images = torch.tensor([[1, IMAGE_TOKEN_INDEX, 5]]), random_images(1)
    wanted = model(ids, images=images).logits
    save_llava(model, tmp_path / "saved")
    Path(siglip).rename(tmp_path / "elsewhere")
    again = load_llava(tmp_path / "saved").train(False)
    assert again.config.mm_vision_tower == [tower_path, siglip]
    assert torch.equal(again(ids, images=images).logits, wanted)


def test_class_tokens_that_only_one_tower_has_are_refused(tower_path: str, siglip: str) -> None:
    arguments = SimpleNamespace(
        vision_tower=[tower_path, siglip], mm_vision_select_layer=-2, mm_vision_select_feature="cls_patch"
    )
    with pytest.raises(ValueError, match="equally many features"):
        build_vision_tower(arguments, delay_load=True)
