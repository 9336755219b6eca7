"""A tower's tensors against its config: one that is needed and missing is refused, one that nothing needs may be."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel, SiglipVisionModel

from model.files.tower_layouts import internvit_fields
from model.hub.weights import build_llava, load_llava, save_llava
from model.vision.tower_builder import build_vision_tower
from tests.model.tiny import TOWERS, save_tiny_backbone, save_tiny_tower, tiny_tower_config

FILE = "model.safetensors"


def arguments(path: Path | str, layer: int = -2) -> SimpleNamespace:
    return SimpleNamespace(vision_tower=str(path), mm_vision_select_layer=layer, mm_vision_select_feature="patch")


def change(folder: Path, **tensors: torch.Tensor | None) -> None:
    """Replace tensors of a folder, or take them out."""
    state = load_file(folder / FILE) | {name: t for name, t in tensors.items() if t is not None}
    gone = [name for name, tensor in tensors.items() if tensor is None]
    save_file({name: t for name, t in state.items() if name not in gone}, folder / FILE, metadata={"format": "pt"})


def names_in_layer(folder: Path, number: int) -> list[str]:
    return [name for name in load_file(folder / FILE) if f"layers.{number}." in name or f"layer.{number}." in name]


@pytest.mark.parametrize("kind", TOWERS)
@pytest.mark.parametrize("checks", [True, False], ids=["by its header", "loaded"])
def test_every_tensor_that_features_need_must_be_there(kind: str, checks: bool, tmp_path: Path) -> None:
    save_tiny_tower(kind, tmp_path)
    whole = (tmp_path / FILE).read_bytes()
    for name in [*names_in_layer(tmp_path, 1), *(n for n in load_file(tmp_path / FILE) if "patch_embedding" in n)]:
        change(tmp_path, **{name: None})
        tower = build_vision_tower(arguments(tmp_path), delay_load=True)
        with pytest.raises(ValueError, match=r"does not fit \w+: missing ") as error:
            tower.check() if checks else tower.load_model()
        assert error.value.args[0].count("missing") == 1
        (tmp_path / FILE).write_bytes(whole)
    build_vision_tower(arguments(tmp_path)).check()


@pytest.mark.parametrize("kind", TOWERS)
def test_misshaped_and_unknown_tensors_are_refused(kind: str, tmp_path: Path) -> None:
    save_tiny_tower(kind, tmp_path)
    name = names_in_layer(tmp_path, 0)[0]
    change(tmp_path, **{name: torch.zeros(3), "encoder.inner_attn_ln.weight": torch.zeros(22)})
    for act in ("check", "load_model"):
        with pytest.raises(ValueError, match=r"unexpected encoder\.inner_attn_ln.*shape \[3\], expected"):
            getattr(build_vision_tower(arguments(tmp_path), delay_load=True), act)()


@pytest.mark.parametrize("kind", TOWERS)
def test_last_layer_and_head_may_be_missing_when_no_feature_needs_them(kind: str, tmp_path: Path) -> None:
    save_tiny_tower(kind, tmp_path)
    images = torch.randn(2, 3, 21, 21, generator=torch.Generator().manual_seed(3))
    full = build_vision_tower(arguments(tmp_path))(images)
    state = load_file(tmp_path / FILE)
    after = [name for name in state if name.startswith(("post_layernorm", "head", "layernorm.", "vision_model.head"))]
    change(tmp_path, **dict.fromkeys([*names_in_layer(tmp_path, 2), *after]))
    tower: Any = build_vision_tower(arguments(tmp_path))
    tower.check()
    assert torch.equal(tower(images), full)
    last = tower.kind.layers(tower.vision_tower)[2]
    hidden = torch.randn(1, tower.num_class_tokens + tower.num_features, tower.config.hidden_size)
    further = tower.kind.layer_arguments(tower.vision_tower, images)
    assert torch.equal(last(hidden, *further), hidden)  # the same whichever random state it is in
    with pytest.raises(ValueError, match="missing"):
        build_vision_tower(arguments(tmp_path, layer=-1))


@pytest.mark.parametrize("lacks", ["layer", "layer and head", "all after the features"])
def test_onevision_checkpoint_without_the_unused_end_of_its_tower_opens_and_is_saved_whole(
    lacks: str, tmp_path: Path
) -> None:
    tower = save_tiny_tower("siglip_vision_model", tmp_path / "siglip")
    model = build_llava(save_tiny_backbone("qwen2", tmp_path / "lm"), tower).train(False)
    save_llava(model, tmp_path / "ours")
    prefix = "model.vision_tower.vision_tower."
    state = {
        name.replace(prefix, f"{prefix}vision_model."): tensor
        for name, tensor in load_file(tmp_path / "ours" / FILE).items()
        if not (name.startswith(prefix) and is_left_out(name, lacks))
    }
    original = tmp_path / "original"
    original.mkdir()
    save_file(state, original / FILE, metadata={"format": "pt"})
    values = json.loads((tmp_path / "ours/config.json").read_text())
    ours = ("mm_vision_config", "mm_vision_weights", "mm_image_mean", "mm_image_std", "mm_vision_scales")
    values = {name: value for name, value in values.items() if name not in ours}
    values |= {"model_type": "llava_qwen", "architectures": ["LlavaQwenForCausalLM"]}
    (original / "config.json").write_text(json.dumps(values))

    opened = load_llava(original).train(False)
    save_llava(opened, tmp_path / "again")
    ids, images = torch.tensor([[5, -200, 7, 9]]), torch.randn(1, 3, 21, 21)
    with torch.no_grad():
        expected = model(ids, images=images).logits
        assert torch.equal(opened(ids, images=images).logits, expected)
        assert torch.equal(load_llava(tmp_path / "again").train(False)(ids, images=images).logits, expected)


def is_left_out(name: str, lacks: str) -> bool:
    parts = {"layer": (".layers.2.",), "layer and head": (".layers.2.", ".head.")}
    return any(part in name for part in parts.get(lacks, (".layers.2.", ".head.", ".post_layernorm.")))


def test_image_half_of_a_whole_clip_is_compared_alone(tmp_path: Path) -> None:
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = tiny_tower_config("clip_vision_model").to_dict()
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(tmp_path)
    build_vision_tower(arguments(tmp_path), delay_load=True).check()
    build_vision_tower(arguments(tmp_path))
    change(tmp_path, **{"vision_model.encoder.layers.0.self_attn.q_proj.weight": None})
    with pytest.raises(ValueError, match=r"missing encoder\.layers\.0\.self_attn\.q_proj\.weight"):
        build_vision_tower(arguments(tmp_path))


def test_code_of_its_own_under_the_name_of_clip_is_refused(tmp_path: Path) -> None:
    save_tiny_tower("clip_vision_model", tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    values |= {"architectures": ["EvaCLIPVisionModel"], "auto_map": {"AutoModel": "modeling_evaclip.EvaCLIPModel"}}
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"code of its own \(EvaCLIPVisionModel\)"):
        build_vision_tower(arguments(tmp_path), delay_load=True)


def test_internvit_config_that_says_nothing_has_the_published_defaults() -> None:
    fields = internvit_fields({"model_type": "intern_vit_6b"})
    assert (fields["norm_type"], fields["use_qk_norm"], fields["attention_bias"]) == ("rms_norm", True, False)
    sizes = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "image_size", "patch_size")
    assert tuple(fields[name] for name in sizes) == (3200, 48, 25, 12800, 224, 14)


def test_pickled_tower_is_checked_too(tmp_path: Path) -> None:
    torch.manual_seed(4)
    model = SiglipVisionModel(tiny_tower_config("siglip_vision_model"))  # type: ignore[arg-type]
    model.config.save_pretrained(tmp_path)
    state = {name: tensor for name, tensor in model.state_dict().items() if "layers.0.mlp.fc2.bias" not in name}
    torch.save(state, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"missing encoder\.layers\.0\.mlp\.fc2\.bias"):
        build_vision_tower(arguments(tmp_path), delay_load=True).check()
