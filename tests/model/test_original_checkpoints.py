"""Whole models as LLaVA 1.5 and 1.6 published them: several files of pickles or safetensors, the tower among them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from model.backbones.llama import LlavaLlamaForCausalLM
from model.fusion.constants import IMAGE_TOKEN_INDEX
from model.hub.weights import LlavaModel, build_llava, load_llava
from tests.model.conftest import IMAGE_SIDE, random_images


@pytest.fixture
def trained(llama_path: str, tower_path: str) -> LlavaModel:
    """A 1.6 model whose tower and newline are no longer those it started from."""
    torch.manual_seed(13)
    model = build_llava(llama_path, tower_path, patch_merge="spatial_unpad")
    model.train(False)
    model.config.image_aspect_ratio = "anyres"
    model.config.image_grid_pinpoints = [[IMAGE_SIDE, 2 * IMAGE_SIDE], [2 * IMAGE_SIDE, IMAGE_SIDE]]
    tower = model.get_vision_tower()
    assert tower is not None
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def write_original(model: LlavaModel, folder: Path, ending: str) -> dict[str, Tensor]:
    """Two files and an index, the tower's tensors one level deeper, a config without our own fields."""
    inside = "model.vision_tower.vision_tower."
    state = {name.replace(inside, inside + "vision_model."): t for name, t in model.state_dict().items()}
    state[inside + "vision_model.embeddings.position_ids"] = torch.arange(10)[None]
    write_parts(state, folder, ending)
    config = model.config.to_dict()
    for name in ("mm_vision_config", "mm_vision_weights", "mm_vision_scales", "im_start_end_ids", "mm_tower_pixels"):
        config.pop(name, None)
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "llava", "mm_hidden_size": 22}))
    return state


def write_parts(state: dict[str, Tensor], folder: Path, ending: str) -> None:
    stem, names = ("pytorch_model", sorted(state)) if ending == "bin" else ("model", sorted(state))
    weight_map: dict[str, str] = {}
    for number, chosen in enumerate((names[::2], names[1::2]), start=1):
        file = f"{stem}-{number:05d}-of-00002.{ending}"
        part = {name: state[name].clone().contiguous() for name in chosen}
        if ending == "bin":
            torch.save(part, folder / file)
        else:
            save_file(part, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(chosen, file)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / f"{stem}.{ending}.index.json").write_text(json.dumps(index))


def logits(model: LlavaModel, **changes: Any) -> Tensor:
    tiles = [random_images(3)]
    arguments = {"images": tiles, "image_sizes": [(IMAGE_SIDE, 2 * IMAGE_SIDE)], **changes}
    with torch.no_grad():
        out: Tensor = model(torch.tensor([[1, IMAGE_TOKEN_INDEX, 5, 7]]), **arguments).logits
    return out


@pytest.mark.parametrize("ending", ["bin", "safetensors"])
def test_whole_model_opens_with_the_tower_and_newline_from_inside(
    trained: LlavaModel, tmp_path: Path, ending: str
) -> None:
    write_original(trained, tmp_path, ending)
    loaded = load_llava(tmp_path).train(False)
    assert isinstance(loaded, LlavaLlamaForCausalLM)
    own, other = trained.state_dict(), loaded.state_dict()
    assert own.keys() == other.keys()
    assert [name for name in own if not torch.equal(own[name], other[name])] == []
    assert torch.equal(logits(loaded), logits(trained))
    assert loaded.config.mm_vision_weights == "checkpoint"


def test_missing_and_misshaped_tensors_are_all_named(trained: LlavaModel, tmp_path: Path) -> None:
    state = write_original(trained, tmp_path, "safetensors")
    del state["model.layers.1.mlp.up_proj.weight"]
    state["model.norm.weight"] = torch.zeros(3)
    state["model.mm_projector.2.bias"] = torch.zeros(7)
    write_parts(state, tmp_path, "safetensors")
    with pytest.raises(ValueError, match="does not fit LlavaLlamaForCausalLM") as error:
        load_llava(tmp_path)
    for name in ("model.layers.1.mlp.up_proj.weight", "model.norm.weight", "model.mm_projector.2.bias"):
        assert name in str(error.value)


def test_incomplete_tower_inside_is_named(trained: LlavaModel, tmp_path: Path) -> None:
    state = write_original(trained, tmp_path, "bin")
    name = "encoder.layers.0.layer_norm1.bias"
    del state["model.vision_tower.vision_tower.vision_model." + name]
    write_parts(state, tmp_path, "bin")
    with pytest.raises(ValueError, match=f"does not fit CLIPVisionModel: missing {name}"):
        load_llava(tmp_path)


def test_part_that_the_index_names_but_is_not_there_is_named(trained: LlavaModel, tmp_path: Path) -> None:
    write_original(trained, tmp_path, "bin")
    (tmp_path / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises((ValueError, OSError), match=r"pytorch_model-00002-of-00002\.bin"):
        load_llava(tmp_path)
