import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig, CLIPVisionModel

from model.vision import tower_builder
from model.vision.vision_tower import VisionTower
from tests.model.conftest import NUM_PATCHES, VISION_WIDTH, random_images


def build_vision_tower(args: SimpleNamespace, delay_load: bool = False) -> VisionTower:
    tower = tower_builder.build_vision_tower(args, delay_load)
    assert isinstance(tower, VisionTower)
    return tower


def arguments(path: str, layer: int = -2, feature: str = "patch") -> SimpleNamespace:
    return SimpleNamespace(vision_tower=path, mm_vision_select_layer=layer, mm_vision_select_feature=feature)


@pytest.mark.parametrize("layer", [-4, -3, -2, -1, 0, 1, 3])
@pytest.mark.parametrize("feature", ["patch", "cls_patch"])
def test_features_equal_the_models_hidden_states(tower_path: str, layer: int, feature: str) -> None:
    images = random_images(2)
    tower = build_vision_tower(arguments(tower_path, layer, feature))
    states = CLIPVisionModel.from_pretrained(tower_path)(images, output_hidden_states=True).hidden_states
    wanted = states[layer] if feature == "cls_patch" else states[layer][:, 1:]
    features = tower(images)
    assert isinstance(features, torch.Tensor)
    assert features.shape == (2, tower.num_features, VISION_WIDTH)
    assert torch.allclose(features, wanted, atol=1e-6)


def test_tower_is_frozen_and_stays_in_evaluation_mode(tower_path: str) -> None:
    tower = build_vision_tower(arguments(tower_path)).train()
    assert not any(parameter.requires_grad for parameter in tower.parameters())
    assert not tower.vision_tower.training
    assert not tower(random_images(1)).requires_grad


def test_unfrozen_tower_receives_gradients(tower_path: str) -> None:
    tower = build_vision_tower(arguments(tower_path))
    tower.set_frozen(False)
    tower(random_images(1)).sum().backward()
    assert tower.vision_tower.embeddings.patch_embedding.weight.grad is not None


def test_features_come_in_the_type_of_the_images(tower_path: str) -> None:
    tower = build_vision_tower(arguments(tower_path)).to(torch.bfloat16)
    features = tower(random_images(1))
    assert isinstance(features, torch.Tensor)
    assert features.dtype == torch.float32


def test_list_input_gives_a_list(tower_path: str) -> None:
    features = build_vision_tower(arguments(tower_path))(list(random_images(2)))
    assert isinstance(features, list)
    assert [tuple(f.shape) for f in features] == [(1, NUM_PATCHES, VISION_WIDTH)] * 2


def test_delayed_tower_has_sizes_but_no_weights_until_loaded(tower_path: str) -> None:
    tower = build_vision_tower(arguments(tower_path), delay_load=True)
    assert (tower.hidden_size, tower.num_features) == (VISION_WIDTH, NUM_PATCHES)
    assert list(tower.parameters()) == []
    with pytest.raises(ValueError, match="no weights yet"):
        tower(random_images(1))
    tower.load_model()
    expected = build_vision_tower(arguments(tower_path))
    assert torch.equal(tower(random_images(1)), expected(random_images(1)))


def test_kind_comes_from_the_config_whatever_the_path_says(tower_path: str, tmp_path: Path) -> None:
    path = tmp_path / "retrieval" / "448" / "internvit_6b"
    shutil.copytree(tower_path, path)
    assert build_vision_tower(arguments(str(path))).image_size == 21


def test_full_clip_checkpoint_gives_its_image_half(tmp_path: Path) -> None:
    torch.manual_seed(4)
    vision = CLIPVisionConfig(
        hidden_size=14, intermediate_size=10, num_hidden_layers=2, num_attention_heads=2, image_size=6, patch_size=3
    )
    text = CLIPTextConfig(
        hidden_size=8, intermediate_size=10, num_hidden_layers=1, num_attention_heads=2, vocab_size=17
    )
    model = CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict()))
    model.save_pretrained(tmp_path)
    tower = build_vision_tower(arguments(str(tmp_path)))
    assert tower.hidden_size == 14
    wanted = model.vision_model.embeddings.patch_embedding.weight
    assert torch.equal(tower.vision_tower.embeddings.patch_embedding.weight, wanted)


def test_missing_folder_is_named() -> None:
    with pytest.raises(ValueError, match="vision tower: folder '/nowhere/clip' does not exist"):
        build_vision_tower(arguments("/nowhere/clip"))


def test_folder_without_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no config\.json"):
        build_vision_tower(arguments(str(tmp_path)))


def test_unknown_kind_lists_known_ones(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit_mae"}))
    with pytest.raises(ValueError, match="model_type 'vit_mae'; known: clip, clip_vision_model, dinov2, "):
        build_vision_tower(arguments(str(tmp_path)))


@pytest.mark.parametrize(
    ("layer", "feature", "message"),
    [(-5, "patch", "legal are -4 to 3"), (4, "patch", "legal are -4 to 3"), (-2, "cls", "known: patch, cls_patch")],
)
def test_illegal_selection_is_refused(tower_path: str, layer: int, feature: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_vision_tower(arguments(tower_path, layer, feature))


def test_no_name_is_refused() -> None:
    with pytest.raises(ValueError, match="no vision tower is named"):
        build_vision_tower(SimpleNamespace(mm_vision_tower=None))
