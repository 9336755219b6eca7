"""Finetuning with adapters: what learns, what is kept, and that every verb opens the result."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from jobs.generate import answer, build_conversation
from model.hub.lora import merge_lora
from pipeline.assembly.export import export_model
from pipeline.assembly.facts import load_tokenizer
from pipeline.assembly.folder import open_model
from pipeline.assembly.merge import merge_model
from pipeline.assembly.parts import join_parts
from pipeline.config import ConfigError, load_config
from pipeline.launch.run import run_training
from tests.integration.conftest import WEIGHTS, WriteConfig
from tests.integration.runs import losses, weights

LORA = (
    "lora.rank=3",
    "lora.dropout=0.1",
    "lora.targets=[q_proj, down_proj]",
    "training.global_batch_size=5",
    "training.max_steps=4",
    "checkpoint.every_steps=1",
    "checkpoint.keep_last=9",
)


def test_adapters_learn_are_saved_alone_and_every_verb_opens_them(write_config: WriteConfig, tmp_path: Path) -> None:
    config = load_config(write_config("run", "finetune"), [*LORA, "training.learning_rate=0.01"])
    folder = run_training(config).output
    assert losses(tmp_path / "run")[-1][1] < losses(tmp_path / "run")[0][1]
    saved = {name for file in (tmp_path / "run" / "checkpoints").glob("*4/model*") for name in load_file(file)}
    assert saved
    assert all(".lora_" in name or "mm_projector" in name for name in saved)
    assert {name.split(".lora_")[0].split(".")[-1] for name in saved if ".lora_" in name} == {"q_proj", "down_proj"}
    assert not list(folder.glob("model*.safetensors"))
    assert json.loads((folder / "adapter_config.json").read_text())["lora_alpha"] == 6

    opened, tokenizer = open_model(tmp_path / "run"), load_tokenizer(str(folder))
    talk = build_conversation("What is it?", 0)
    said = answer(opened, tokenizer, talk, [], 5)
    adapted = first_logits(opened.model)
    assert not torch.equal(adapted, first_logits(join_parts(config.model, None, torch.float32).train(False)))
    merge_model(tmp_path / "run", tmp_path / "merged")
    merged = open_model(tmp_path / "merged")
    assert not [name for name in merged.model.state_dict() if "lora" in name]
    assert torch.allclose(first_logits(merged.model), adapted, atol=1e-5)
    assert answer(merged, tokenizer, talk, [], 5) == said
    export_model(tmp_path / "run", tmp_path / "exported", torch.float32)
    exported = load_file(tmp_path / "exported" / "model.safetensors")
    name = "layers.1.self_attn.q_proj.weight"
    whole = merged.model.state_dict()[f"model.{name}"]
    assert torch.allclose(exported[f"language_model.model.{name}"], whole, atol=1e-6)


def first_logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(torch.tensor([[1, 7, 11, 5]])).logits
    return logits


def test_peft_itself_opens_the_adapters(write_config: WriteConfig, tmp_path: Path) -> None:
    from peft import PeftModel

    config = load_config(write_config("run", "finetune"), [*LORA, "training.max_steps=1"])
    folder = run_training(config).output
    ours = open_model(tmp_path / "run").model
    plain = join_parts(config.model, folder, torch.float32).train(False)
    theirs = PeftModel.from_pretrained(plain, str(folder))
    assert torch.allclose(first_logits(theirs), first_logits(ours), atol=1e-6)
    merge_lora(ours)


def test_resume_of_adapters_equals_an_undisturbed_run_bitwise(write_config: WriteConfig, tmp_path: Path) -> None:
    config = load_config(write_config("run", "finetune"), LORA)
    run_training(config)
    calm, calm_losses = weights(tmp_path / "run"), losses(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "model")
    for step in (3, 4):
        shutil.rmtree(tmp_path / "run" / "checkpoints" / f"step-{step:08d}")
    result = run_training(config)
    assert result.metrics["train/loss"] == calm_losses[-1][1]
    again = weights(tmp_path / "run")
    assert again.keys() == calm.keys()
    assert [name for name in calm if not torch.equal(calm[name], again[name])] == []


@pytest.mark.parametrize(
    ("stage", "overrides", "message"),
    [
        ("pretrain", ["lora.rank=2"], "use it with finetune"),
        ("finetune", ["lora.quantize_base=nf4"], "set lora.rank"),
        ("finetune", ["lora.rank=2", "lora.quantize_base=nf4", "training.sharding=fsdp"], "cannot be sharded"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    write_config: WriteConfig, stage: str, overrides: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(write_config("run", stage), overrides)


def test_quantized_base_without_its_packages_says_what_to_install(
    write_config: WriteConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model.hub.quantization._PACKAGES", ("no_such_package",))
    overrides = ["lora.rank=2", "lora.quantize_base=nf4"]
    with pytest.raises(ValueError, match=r"need no_such_package; install ray-llava\[qlora\]"):
        run_training(load_config(write_config("run", "finetune"), overrides))


def test_whole_model_is_not_merged(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no adapters to merge"):
        merge_model(WEIGHTS / "language_model", tmp_path / "out")
