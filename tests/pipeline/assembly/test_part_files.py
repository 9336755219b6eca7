"""Every part of a run is compared with its config before anything is started."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from model.hub.weights import build_llava, save_llava, save_projector
from pipeline.assembly.part_files import check_part_files
from pipeline.config import ConfigError, ModelConfig, load_config
from pipeline.launch.run import run_training
from tests.model.tiny import save_tiny_backbone, save_tiny_tower
from tests.pipeline.samples.prompt.toy_tokenizers import build_tokenizer

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 135\n"


@pytest.fixture
def parts(tmp_path: Path) -> ModelConfig:
    language_model, tokenizer = save_tiny_backbone("llama", tmp_path / "lm"), build_tokenizer("first")
    model = AutoModelForCausalLM.from_pretrained(language_model)
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(language_model)
    tokenizer.save_pretrained(language_model)
    tower = save_tiny_tower("siglip_vision_model", tmp_path / "tower")
    projector = save_projector(build_llava(language_model, tower), tmp_path / "projector.safetensors")
    return ModelConfig(language_model=language_model, vision_tower=tower, pretrain_mm_mlp_adapter=str(projector))


def weights_of(parts: ModelConfig, part: str) -> Path:
    if part == "projector":
        return Path(str(parts.pretrain_mm_mlp_adapter))
    return Path(parts.language_model if part == "lm" else str(parts.vision_tower)) / "model.safetensors"


@pytest.mark.parametrize("part", ["lm", "tower", "projector"])
@pytest.mark.parametrize("damage", ["missing", "misshaped", "unknown", "pointer", "half"])
def test_each_part_is_checked_and_named(parts: ModelConfig, part: str, damage: str) -> None:
    check_part_files(parts)
    file = weights_of(parts, part)
    state = load_file(file)
    name = sorted(name for name in state if "layers.1" not in name and "layers.2" not in name and "head" not in name)[0]
    if damage == "missing":
        del state[name]
    elif damage == "misshaped":
        state[name] = torch.zeros(3)
    else:
        state["model.mm_projector.9.weight" if part == "projector" else "layers.7.weight"] = torch.zeros(3)
    save_file(state, file, metadata={"format": "pt"})
    if damage == "pointer":
        file.write_bytes(POINTER)
    elif damage == "half":
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    where = file if damage in ("pointer", "half") or part == "projector" else file.parent
    with pytest.raises(ConfigError, match=rf"^model: {where}"):
        check_part_files(parts)


@pytest.mark.parametrize("lacking", ["layers.0.mlp.up_proj.weight", "mm_projector.0.bias", "encoder.layers.0.mlp"])
def test_whole_llava_folder_is_checked_with_its_tower(parts: ModelConfig, lacking: str, tmp_path: Path) -> None:
    save_llava(build_llava(parts.language_model, str(parts.vision_tower)), tmp_path / "whole")
    whole = ModelConfig(language_model=str(tmp_path / "whole"))
    check_part_files(whole)
    file = tmp_path / "whole/model.safetensors"
    state = load_file(file)
    gone = next(name for name in sorted(state) if lacking in name)
    save_file({name: tensor for name, tensor in state.items() if name != gone}, file, metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=rf"missing {gone}"):
        check_part_files(whole)


@pytest.mark.parametrize("launcher", ["local", "ray"])
def test_run_with_a_damaged_tower_ends_before_it_starts_anything(
    launcher: str, parts: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.launch.on_ray.cluster.connect", lambda _: pytest.fail("Ray was asked for"))
    weights_of(parts, "tower").write_bytes(POINTER)
    file = tmp_path / "config.yaml"
    file.write_text(
        f"name: t\nrun_dir: {tmp_path}/run\nstage: finetune\ndata: {{shards: [{tmp_path}/x.tar], template: v1}}\n"
        f"model: {{language_model: {parts.language_model}, vision_tower: {parts.vision_tower}}}\n"
        "training: {global_batch_size: 1, micro_batch_tokens: 3000, learning_rate: 0.1}\n"
        f"cluster: {{launcher: {launcher}}}\n"
    )
    with pytest.raises(ConfigError, match=r"tower/model\.safetensors is a Git LFS pointer"):
        run_training(load_config(file))
    assert not (tmp_path / "run/index").exists()
