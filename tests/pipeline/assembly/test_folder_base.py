"""Adapters and their base: given in place of a model, moved, or changed after the adapters were trained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.files.fingerprint import fingerprint
from model.hub.lora import adapter_state, add_lora
from model.hub.weights import build_llava, pretrained_state
from pipeline.assembly.facts import read_model_tokenizer
from pipeline.assembly.folder import load_model_folder, read_recipe, save_adapter_folder
from pipeline.assembly.merge import merge_model
from pipeline.assembly.part_files import check_part_files
from pipeline.config import ConfigError, ModelConfig, load_config
from tests.model.tiny import save_tiny_backbone, save_tiny_tower
from tests.pipeline.samples.prompt.toy_tokenizers import build_tokenizer


@pytest.fixture
def adapters(tmp_path: Path) -> Path:
    """A run's folder whose result is adapters."""
    base, tower = save_tiny_backbone("llama", tmp_path / "lm"), save_tiny_tower("clip_vision_model", tmp_path / "tower")
    build_tokenizer("first").save_pretrained(base)
    run = tmp_path / "run"
    file = tmp_path / "config.yaml"
    file.write_text(
        f"name: t\nrun_dir: {run}\nstage: finetune\ndata: {{shards: [{tmp_path}/x.tar], template: v1}}\n"
        f"model: {{language_model: {base}, vision_tower: {tower}}}\nlora: {{rank: 2}}\n"
        "training: {global_batch_size: 1, micro_batch_tokens: 3000, learning_rate: 0.1}\n"
    )
    config = load_config(file)
    model = build_llava(base, tower)
    add_lora(model, 2, 4)
    save_adapter_folder(model, adapter_state(model), pretrained_state(model), config.model, config.data, run / "model")
    shutil.copy(file, run / "config.yaml")
    return run


def test_adapters_open_on_the_base_that_they_were_trained_on(adapters: Path) -> None:
    load_model_folder(adapters / "model")


@pytest.mark.parametrize("part", ["lm", "tower"])
@pytest.mark.parametrize("change", ["one value", "config.json"])
def test_adapters_whose_base_has_changed_are_refused(adapters: Path, part: str, change: str) -> None:
    folder = adapters.parent / part
    if change == "one value":
        file = folder / "model.safetensors"
        state = load_file(file)
        name = sorted(state)[len(state) // 2]
        state[name].view(-1)[0] += 1
        save_file(state, file, metadata={"format": "pt"})
    else:
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"layer_norm_eps": 0.5, "rms_norm_eps": 0.5}))
    for open_it in (load_model_folder, lambda path: merge_model(path, adapters.parent / "out")):
        with pytest.raises(ConfigError, match=rf"adapters that were trained on \S+{part} as it was then"):
            open_it(adapters / "model")


def test_adapters_whose_base_is_gone_say_where_its_path_stands(adapters: Path) -> None:
    shutil.move(adapters.parent / "lm", adapters.parent / "elsewhere")
    with pytest.raises(ConfigError, match=r"language_model is no longer at the path in `base` of its ray_llava\.json"):
        load_model_folder(adapters / "model")
    recipe = adapters / "model" / "ray_llava.json"
    recipe.write_text(recipe.read_text().replace(f"{adapters.parent}/lm", f"{adapters.parent}/elsewhere"))
    load_model_folder(adapters / "model")


@pytest.mark.parametrize("inside", ["model", ""])
def test_adapters_or_their_run_given_as_the_base_are_answered_with_what_to_do(adapters: Path, inside: str) -> None:
    given = adapters / inside
    for tower in (str(adapters.parent / "tower"), None):
        parts = ModelConfig(language_model=str(given), vision_tower=tower)
        for check in (check_part_files, read_model_tokenizer):
            with pytest.raises(ValueError, match=rf"adapters, .*run `ray-llava merge {given} WHOLE` first"):
                check(parts)


def test_run_with_a_whole_model_given_as_the_base_names_that(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("name: t\n")
    parts = ModelConfig(language_model=str(tmp_path))
    with pytest.raises(ConfigError, match=r"holds no whole model; .* set model\.pretrain_mm_mlp_adapter to that run"):
        check_part_files(parts)
    save_tiny_backbone("llama", tmp_path / "model")
    with pytest.raises(ConfigError, match=rf"is the folder of a run; give its model: {tmp_path}/model"):
        check_part_files(parts)


def test_fingerprint_samples_every_tensor_and_passes_over_versions(tmp_path: Path) -> None:
    state = {f"t{number}": torch.zeros(100_003) for number in range(7)}
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"hidden_size": 3, "transformers_version": "4.37.0"}')
    before = fingerprint(tmp_path)
    (tmp_path / "config.json").write_text('{"transformers_version": "5.0.0", "hidden_size": 3}')
    assert fingerprint(tmp_path) == before
    for number in range(7):
        save_file({**state, f"t{number}": torch.ones(100_003)}, tmp_path / "model.safetensors")
        assert fingerprint(tmp_path) != before


def test_recipe_of_a_pretraining_run_says_that_it_left_no_model(tmp_path: Path) -> None:
    (tmp_path / "projector").mkdir()
    (tmp_path / "projector" / "mm_projector.safetensors").write_bytes(b"")
    with pytest.raises(ConfigError, match="is a run of projector pretraining, which leaves a projector"):
        read_recipe(tmp_path)
