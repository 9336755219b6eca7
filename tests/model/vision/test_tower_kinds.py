"""Every kind of tower: features equal the encoder's own hidden states; it trains, saves and opens like CLIP."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import SiglipConfig, SiglipModel, SiglipTextConfig

from model.hub.weights import build_llava, load_llava, save_llava
from model.vision.tower_builder import build_vision_tower
from model.vision.tower_kinds import TOWER_KINDS
from model.vision.vision_tower import VisionTower
from tests.model.conftest import NUM_PATCHES, random_images
from tests.model.tiny import TOWERS, save_tiny_tower, tiny_tower_config


def tower_of(path: str, layer: int | list[int] = -2, feature: str = "patch") -> VisionTower:
    tower = build_vision_tower(
        SimpleNamespace(vision_tower=path, mm_vision_select_layer=layer, mm_vision_select_feature=feature)
    )
    assert isinstance(tower, VisionTower)
    return tower


def hidden_states(kind: str, path: str, images: torch.Tensor) -> list[torch.Tensor]:
    """Collect what goes into the first layer and what each layer returns."""
    model: Any = TOWER_KINDS[kind].model_class.from_pretrained(path)
    states: list[torch.Tensor] = []

    def keep_input(_: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        states.append(args[0] if args else kwargs["hidden_states"])

    for idx, layer in enumerate(TOWER_KINDS[kind].layers(model)):
        if idx == 0:
            layer.register_forward_pre_hook(keep_input, with_kwargs=True)
        layer.register_forward_hook(lambda _, args, output: states.append(output))
    with torch.no_grad():
        model.eval()(images)
    return states


@pytest.mark.parametrize("kind", TOWERS)
@pytest.mark.parametrize("feature", ["patch", "cls_patch"])
def test_features_equal_the_encoders_hidden_states(kind: str, feature: str, tmp_path: Path) -> None:
    path, images = save_tiny_tower(kind, tmp_path), random_images(2)
    states = hidden_states(kind, path, images)
    skipped = tower_of(path).num_class_tokens if feature == "patch" else 0
    for layer in (-4, -3, -2, -1, 0, 2):
        tower = tower_of(path, layer, feature)
        features = tower(images)
        assert isinstance(features, torch.Tensor)
        assert features.shape == (2, tower.num_features, tower.config.hidden_size)
        assert torch.allclose(features, states[layer][:, skipped:], atol=1e-5)


@pytest.mark.parametrize("kind", TOWERS)
def test_several_layers_are_joined_along_the_width(kind: str, tmp_path: Path) -> None:
    path, images = save_tiny_tower(kind, tmp_path), random_images(2)
    tower = tower_of(path, [-1, 1])
    assert tower.hidden_size == 2 * tower.config.hidden_size
    wanted = torch.cat([tower_of(path, -1)(images), tower_of(path, 1)(images)], dim=-1)
    assert torch.equal(tower(images), wanted)


@pytest.mark.parametrize("kind", TOWERS)
def test_trainable_tower_receives_gradients_in_every_used_layer(kind: str, tmp_path: Path) -> None:
    tower = tower_of(save_tiny_tower(kind, tmp_path))
    tower.set_frozen(False)
    tower(random_images(1)).square().sum().backward()
    for layer in tower.layers:
        assert all(parameter.grad is not None for parameter in layer.parameters())


@pytest.mark.parametrize("kind", ["dinov2", "dinov2_with_registers", "dinov3_vit", "internvl_vision"])
def test_position_embeddings_follow_the_image_size(kind: str, tmp_path: Path) -> None:
    tower = tower_of(save_tiny_tower(kind, tmp_path))
    features = tower(torch.randn(1, 3, 35, 35))
    assert tower.num_features_at(35) == 25
    assert features.shape == (1, 25, tower.config.hidden_size)


@pytest.mark.parametrize("kind", ["clip_vision_model", "siglip_vision_model"])
def test_fixed_size_tower_refuses_another_image_size(kind: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"takes images of 21 pixels, but its image processor makes 35"):
        tower_of(save_tiny_tower(kind, tmp_path)).num_features_at(35)


@pytest.mark.parametrize("kind", TOWERS)
def test_model_with_tower_saves_and_opens(kind: str, llama_path: str, tmp_path: Path) -> None:
    model = build_llava(llama_path, save_tiny_tower(kind, tmp_path / "tower"), select_layer=(-2, -1))
    save_llava(model, tmp_path / "saved")
    loaded = load_llava(tmp_path / "saved")
    ours, theirs = model.state_dict(), loaded.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    assert loaded.config.mm_vision_select_layer == [-2, -1]
    features = loaded.encode_images(random_images(2))
    assert features.shape == (2, NUM_PATCHES, loaded.config.hidden_size)
    assert torch.equal(features, model.encode_images(random_images(2)))


def test_full_siglip_checkpoint_gives_its_image_half(tmp_path: Path) -> None:
    vision: Any = tiny_tower_config("siglip_vision_model")
    text = SiglipTextConfig(
        hidden_size=8, intermediate_size=10, num_hidden_layers=1, num_attention_heads=2, vocab_size=17
    )
    model = SiglipModel(SiglipConfig(text_config=text.to_dict(), vision_config=vision.to_dict()))
    model.save_pretrained(tmp_path)
    tower = tower_of(str(tmp_path))
    wanted = model.vision_model.state_dict()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in tower.vision_tower.state_dict().items())
