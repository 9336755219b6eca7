import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from model.backbones.llama import LlavaConfig, LlavaLlamaForCausalLM
from model.fusion.constants import IMAGE_TOKEN_INDEX
from model.hub.weights import LlavaModel, build_llava, load_llava, save_llava, save_projector, set_trainable
from tests.model.conftest import random_images

IDS = torch.tensor([[1, IMAGE_TOKEN_INDEX, 5, 7]])


def assert_same_weights(first: LlavaModel, second: LlavaModel) -> None:
    ours, theirs = first.state_dict(), second.state_dict()
    assert list(ours) == list(theirs)
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


def logits(model: LlavaModel) -> torch.Tensor:
    model.train(False)
    with torch.no_grad():
        out: torch.Tensor = model(IDS, images=random_images(1)).logits
    return out


def test_save_and_load_round_trip_without_the_tower_folder(llama_path: str, tower_path: str, tmp_path: Path) -> None:
    tower = tmp_path / "tower"
    shutil.copytree(tower_path, tower)
    model = build_llava(llama_path, str(tower))
    save_llava(model, tmp_path / "saved")
    shutil.rmtree(tower)
    loaded = load_llava(tmp_path / "saved")
    assert_same_weights(model, loaded)
    assert torch.equal(logits(model), logits(loaded))
    pixels = torch.randint(0, 256, (1, 21, 21, 3), dtype=torch.uint8)
    assert torch.equal(model.encode_vision(pixels), loaded.encode_vision(pixels))
    assert not any(p.requires_grad for p in loaded.get_vision_tower().parameters())  # type: ignore[union-attr]


def test_auto_classes_load_a_saved_model(llava: LlavaLlamaForCausalLM, tmp_path: Path) -> None:
    save_llava(llava, tmp_path)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), LlavaConfig)
    loaded: object = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert isinstance(loaded, LlavaLlamaForCausalLM)
    assert torch.equal(logits(loaded), logits(llava))


def test_load_original_checkpoint_takes_the_tower_from_its_folder(
    llava: LlavaLlamaForCausalLM, tower_path: str, tmp_path: Path
) -> None:
    """As published: model_type llava, tower named but not described, its tensors present or not."""
    save_llava(llava, tmp_path)
    file = next(tmp_path.glob("*.safetensors"))
    save_file({k: v for k, v in load_file(file).items() if ".vision_tower." not in k}, file, metadata={"format": "pt"})
    values = json.loads((tmp_path / "config.json").read_text())
    for name in ("mm_vision_config", "mm_vision_weights", "mm_image_mean", "mm_image_std"):
        del values[name]
    (tmp_path / "config.json").write_text(json.dumps({**values, "model_type": "llava"}))
    assert_same_weights(load_llava(tmp_path), llava)


def test_load_with_tower_kept_outside_reads_it_from_its_folder(
    bare_llava: LlavaLlamaForCausalLM, vision_args: object, tmp_path: Path
) -> None:
    bare_llava.get_model().initialize_vision_modules(vision_args, fsdp="full_shard")
    save_llava(bare_llava, tmp_path)
    loaded = load_llava(tmp_path)
    assert torch.equal(logits(loaded), logits(bare_llava))


def test_load_names_missing_tensors(llava: LlavaLlamaForCausalLM, tmp_path: Path) -> None:
    save_llava(llava, tmp_path)
    file = next(tmp_path.glob("*.safetensors"))
    state = load_file(file)
    del state["model.mm_projector.2.bias"], state["model.norm.weight"]
    save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"missing model\.mm_projector\.2\.bias.*missing model\.norm\.weight"):
        load_llava(tmp_path)


def test_load_language_model_points_to_build(llama_path: str) -> None:
    with pytest.raises(ValueError, match=r"model_type 'llama'.*build_llava"):
        load_llava(llama_path)


def test_build_from_complete_model_points_to_load(
    llava: LlavaLlamaForCausalLM, tower_path: str, tmp_path: Path
) -> None:
    save_llava(llava, tmp_path)
    with pytest.raises(ValueError, match=r"'llava_llama'; known: gemma, .* complete LLaVA model: use load_llava"):
        build_llava(str(tmp_path), tower_path)


def test_build_missing_language_model_is_named(tower_path: str) -> None:
    with pytest.raises(ValueError, match="language model: folder '/nowhere/llama' does not exist"):
        build_llava("/nowhere/llama", tower_path)


def test_build_with_projector_file_uses_it(
    make_llava: Callable[..., LlavaLlamaForCausalLM], llama_path: str, tower_path: str, tmp_path: Path
) -> None:
    first = make_llava()
    path = save_projector(first, tmp_path)
    torch.manual_seed(11)
    assert_same_weights(build_llava(llama_path, tower_path, projector_path=path), first)


def test_build_in_bfloat16_keeps_the_projector_exact(
    llava: LlavaLlamaForCausalLM, llama_path: str, tower_path: str, tmp_path: Path
) -> None:
    path = save_projector(llava, tmp_path)
    model = build_llava(llama_path, tower_path, projector_path=path, dtype=torch.bfloat16)
    assert model.lm_head.weight.dtype == torch.bfloat16
    assert next(model.get_vision_tower().parameters()).dtype == torch.bfloat16  # type: ignore[union-attr]
    assert torch.equal(model.model.mm_projector[0].weight, llava.model.mm_projector[0].weight)
    assert logits(model).dtype == torch.bfloat16


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_set_trainable_chooses_what_learns(llava: LlavaLlamaForCausalLM, stage: str) -> None:
    set_trainable(llava, stage)  # type: ignore[arg-type]
    learning = {name for name, parameter in llava.named_parameters() if parameter.requires_grad}
    expected = {
        name
        for name, _ in llava.named_parameters()
        if "mm_projector" in name or (stage == "finetune" and "vision_tower" not in name)
    }
    assert learning == expected


def test_set_trainable_pretrain_with_start_end_includes_input_embeddings(llava: LlavaLlamaForCausalLM) -> None:
    llava.config.tune_mm_mlp_adapter = llava.config.mm_use_im_start_end = True
    set_trainable(llava, "pretrain")
    assert llava.model.embed_tokens.weight.requires_grad
    assert not llava.lm_head.weight.requires_grad


def test_set_trainable_leaves_quantised_bytes_alone(llava: LlavaLlamaForCausalLM) -> None:
    norm = llava.model.norm
    norm.weight = torch.nn.Parameter(torch.zeros(5, dtype=torch.uint8), requires_grad=False)
    set_trainable(llava, "finetune")
    assert not norm.weight.requires_grad
    assert llava.lm_head.weight.requires_grad


def test_set_trainable_unknown_stage_refuses(llava: LlavaLlamaForCausalLM) -> None:
    with pytest.raises(ValueError, match="stage is 'both'; known: pretrain, finetune"):
        set_trainable(llava, "both")  # type: ignore[arg-type]
