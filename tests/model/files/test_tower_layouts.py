"""InternViT as first published, written out here, computes what transformers' class does with its weights."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from model.files.adapter import load_projector
from model.hub.weights import build_llava
from model.vision.tower_builder import build_vision_tower
from model.vision.vision_tower import VisionTower

WIDTH, HEADS, LAYERS, SIDE, PATCH, INNER = 22, 2, 3, 21, 7, 26
CONFIG: dict[str, Any] = {
    "model_type": "intern_vit_6b", "hidden_size": WIDTH, "num_attention_heads": HEADS, "num_hidden_layers": LAYERS,
    "intermediate_size": INNER, "image_size": SIDE, "patch_size": PATCH, "qkv_bias": False, "qk_normalization": True,
    "norm_type": "rms_norm", "hidden_act": "gelu", "layer_norm_eps": 1e-6, "dropout": 0.0, "drop_path_rate": 0.0,
    "use_flash_attn": True,
}  # fmt: skip


def original_weights(*, qkv_bias: bool = False, qk_norm: bool = True, rms: bool = True) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(6)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) * 0.3

    state = {
        "embeddings.class_embedding": draw(1, 1, WIDTH),
        "embeddings.position_embedding": draw(1, (SIDE // PATCH) ** 2 + 1, WIDTH),
        "embeddings.patch_embedding.weight": draw(WIDTH, 3, PATCH, PATCH),
        "embeddings.patch_embedding.bias": draw(WIDTH),
    }
    for layer in range(LAYERS):
        own = {
            "attn.qkv.weight": draw(3 * WIDTH, WIDTH), "attn.proj.weight": draw(WIDTH, WIDTH),
            "attn.proj.bias": draw(WIDTH), "norm1.weight": draw(WIDTH), "norm2.weight": draw(WIDTH),
            "mlp.fc1.weight": draw(INNER, WIDTH), "mlp.fc1.bias": draw(INNER), "mlp.fc2.weight": draw(WIDTH, INNER),
            "mlp.fc2.bias": draw(WIDTH), "ls1": draw(WIDTH), "ls2": draw(WIDTH),
        }  # fmt: skip
        own |= {"attn.qkv.bias": draw(3 * WIDTH)} if qkv_bias else {}
        own |= {"attn.q_norm.weight": draw(WIDTH), "attn.k_norm.weight": draw(WIDTH)} if qk_norm else {}
        own |= {} if rms else {"norm1.bias": draw(WIDTH), "norm2.bias": draw(WIDTH)}
        state |= {f"encoder.layers.{layer}.{name}": tensor for name, tensor in own.items()}
    return state


def original_states(state: dict[str, Tensor], images: Tensor) -> list[Tensor]:
    """Compute every hidden state as the published code does, step by step."""
    patches = F.conv2d(
        images, state["embeddings.patch_embedding.weight"], state["embeddings.patch_embedding.bias"], stride=PATCH
    )
    grid = patches.shape[-1]
    positions = state["embeddings.position_embedding"]
    old = positions[:, 1:].reshape(1, SIDE // PATCH, SIDE // PATCH, WIDTH).permute(0, 3, 1, 2)
    new = F.interpolate(old, size=(grid, grid), mode="bicubic", align_corners=False).flatten(2).transpose(1, 2)
    tokens = torch.cat([state["embeddings.class_embedding"].expand(len(images), -1, -1), patches.flatten(2).mT], dim=1)
    hidden = tokens + torch.cat([positions[:, :1], new], dim=1)
    states = [hidden]
    for layer in range(LAYERS):
        own = {n.removeprefix(f"encoder.layers.{layer}."): t for n, t in state.items() if f"layers.{layer}." in n}
        hidden = hidden + attention(own, norm(own, "norm1", hidden)) * own["ls1"]
        inner = F.gelu(F.linear(norm(own, "norm2", hidden), own["mlp.fc1.weight"], own["mlp.fc1.bias"]))
        hidden = hidden + F.linear(inner, own["mlp.fc2.weight"], own["mlp.fc2.bias"]) * own["ls2"]
        states.append(hidden)
    return states


def norm(own: dict[str, Tensor], name: str, rows: Tensor) -> Tensor:
    if f"{name}.bias" in own:
        return F.layer_norm(rows, (WIDTH,), own[f"{name}.weight"], own[f"{name}.bias"], 1e-6)
    return F.rms_norm(rows, (WIDTH,), own[f"{name}.weight"], 1e-6)


def attention(own: dict[str, Tensor], rows: Tensor) -> Tensor:
    q, k, v = F.linear(rows, own["attn.qkv.weight"], own.get("attn.qkv.bias")).chunk(3, dim=-1)
    if "attn.q_norm.weight" in own:
        q, k = norm(own, "attn.q_norm", q), norm(own, "attn.k_norm", k)
    heads = [part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in (q, k, v)]
    mixed = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(-2)
    return F.linear(mixed, own["attn.proj.weight"], own["attn.proj.bias"])


def write(folder: Path, state: dict[str, Tensor], as_pickle: bool = False, **changes: object) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | changes))
    if as_pickle:
        names = sorted(state)
        parts = {"pytorch_model-00001-of-00002.bin": names[::2], "pytorch_model-00002-of-00002.bin": names[1::2]}
        for file, chosen in parts.items():
            torch.save({name: state[name] for name in chosen}, folder / file)
        weight_map = {name: file for file, chosen in parts.items() for name in chosen}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    else:
        save_file(state, folder / "model.safetensors")
    return str(folder)


def arguments(path: str, layer: int = -2) -> SimpleNamespace:
    return SimpleNamespace(vision_tower=path, mm_vision_select_layer=layer, mm_vision_select_feature="patch")


@pytest.mark.parametrize("side", [SIDE, 35])
@pytest.mark.parametrize("as_pickle", [True, False])
def test_original_layout_computes_the_published_features_at_any_size(
    tmp_path: Path, side: int, as_pickle: bool
) -> None:
    state = original_weights()
    tower = build_vision_tower(arguments(write(tmp_path, state, as_pickle)))
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(8))
    assert tower.num_features_at(side) == (side // PATCH) ** 2
    assert torch.allclose(tower(images), original_states(state, images)[-2][:, 1:], atol=1e-5)


def test_config_that_leaves_the_normalisations_out_means_those_of_the_published_class(tmp_path: Path) -> None:
    state = original_weights()
    path = write(tmp_path, state)
    named = ("norm_type", "qk_normalization", "qkv_bias", "hidden_act", "layer_norm_eps", "dropout", "drop_path_rate")
    (tmp_path / "config.json").write_text(json.dumps({name: v for name, v in CONFIG.items() if name not in named}))
    images = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(8))
    tower = build_vision_tower(arguments(path))
    tower.check()
    assert torch.allclose(tower(images), original_states(state, images)[-2][:, 1:], atol=1e-5)


def test_small_original_layout_with_layer_norms_and_biases(tmp_path: Path) -> None:
    state = original_weights(qkv_bias=True, qk_norm=False, rms=False)
    path = write(tmp_path, state, qkv_bias=True, qk_normalization=False, norm_type="layer_norm")
    images = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(8))
    wanted = original_states(state, images)[-1][:, 1:]
    assert torch.allclose(build_vision_tower(arguments(path, -1))(images), wanted, atol=1e-5)


def test_incomplete_original_checkpoint_names_every_tensor(tmp_path: Path) -> None:
    state = original_weights()
    del state["encoder.layers.1.ls2"]
    state["encoder.layers.0.norm1.weight"] = torch.zeros(3)
    with pytest.raises(ValueError, match="does not fit InternVLVisionModel") as error:
        build_vision_tower(arguments(write(tmp_path, state)))
    assert "missing encoder.layer.1.lambda_2 [22]" in str(error.value)
    assert "encoder.layer.0.layernorm_before.weight has shape [3], expected [22]" in str(error.value)


def test_loaded_buffers_are_computed_not_left_empty(tower_path: str) -> None:
    tower = build_vision_tower(arguments(tower_path))
    bare = build_vision_tower(arguments(tower_path), delay_load=True)
    assert isinstance(tower, VisionTower)
    assert isinstance(bare, VisionTower)
    bare.load_state({f"vision_model.{n}": tensor for n, tensor in tower.vision_tower.state_dict().items()}, "here")
    images = torch.randn(1, 3, SIDE, SIDE)
    assert torch.equal(bare(images), tower(images))


def test_towers_of_unknown_kinds_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "pixtral_vision"}))
    with pytest.raises(ValueError, match=r"model_type 'pixtral_vision'; known: .*siglip2_vision_model"):
        build_vision_tower(arguments(str(tmp_path)))


@pytest.mark.parametrize("in_list", [True, False])
def test_position_embedding_in_a_projector_file_is_loaded_by_name(
    tmp_path: Path, llama_path: str, in_list: bool
) -> None:
    """Under the published name, also into a tower that sharding keeps in a list."""
    model = build_llava(llama_path, write(tmp_path / "tower", original_weights()))
    body = model.get_model()
    if in_list:
        tower = body.vision_tower
        del body.vision_tower
        body.vision_tower = [tower]
    position = torch.randn(1, (SIDE // PATCH) ** 2 + 1, WIDTH)
    name = "model.vision_tower.vision_tower.embeddings.position_embedding"
    projector = {f"model.mm_projector.{n}": t for n, t in body.mm_projector.state_dict().items()}
    torch.save({**projector, name: position}, tmp_path / "mm_projector.bin")
    load_projector(body, tmp_path)
    assert torch.equal(body.get_vision_tower().vision_tower.embeddings.position_embeddings, position)
    torch.save({**projector, name: position[:, :4]}, tmp_path / "mm_projector.bin")
    with pytest.raises(ValueError, match=r"position_embeddings has shape \[1, 4, 22\], expected \[1, 10, 22\]"):
        load_projector(body, tmp_path)
    torch.save({**projector, name.replace("position", "colour"): position}, tmp_path / "mm_projector.bin")
    with pytest.raises(ValueError, match="does not fit the vision tower: unexpected"):
        load_projector(body, tmp_path)
