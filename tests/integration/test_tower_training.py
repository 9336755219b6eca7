"""A vision tower that learns: the same loss however batches are cut, sharded, resumed, and kept in every result."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline.assembly.folder import open_model
from pipeline.config import ConfigError, load_config
from pipeline.launch.run import run_training
from tests.integration.conftest import WEIGHTS, WriteConfig
from tests.integration.runs import assert_same_run, losses, run, weights

TOWER = (
    "training.vision_tower_lr=0.001",
    "training.vision_batch_size=3",
    "training.global_batch_size=5",
    "training.max_steps=3",
    "checkpoint.every_steps=1",
    "checkpoint.keep_last=9",
)
PATCHES = "model.vision_tower.vision_tower.embeddings.patch_embedding.weight"


def start_weights() -> torch.Tensor:
    return load_file(WEIGHTS / "tower" / "model.safetensors")["embeddings.patch_embedding.weight"]


def test_tower_learns_and_resumes_bitwise(write_config: WriteConfig, tmp_path: Path) -> None:
    run_training(load_config(write_config("calm", "finetune"), TOWER))
    trained = weights(tmp_path / "calm")[PATCHES]
    assert (trained - start_weights()).abs().max() > 1e-4
    config = load_config(write_config("again", "finetune"), TOWER)
    run_training(config)
    shutil.rmtree(tmp_path / "again" / "model")
    for step in (2, 3):
        shutil.rmtree(tmp_path / "again" / "checkpoints" / f"step-{step:08d}")
    (tmp_path / "again" / "metrics.jsonl").write_text(
        "".join((tmp_path / "again" / "metrics.jsonl").read_text().splitlines(keepends=True)[:1])
    )
    run_training(config)
    assert_same_run(tmp_path / "calm", tmp_path / "again")


def test_cutting_a_batch_otherwise_changes_neither_loss_nor_tower(write_config: WriteConfig, tmp_path: Path) -> None:
    wide = ["training.micro_batch_tokens=2003", "training.gradient_checkpointing=true"]
    run_training(load_config(write_config("wide", "finetune"), [*TOWER, *wide]))
    run_training(load_config(write_config("narrow", "finetune"), [*TOWER, "training.micro_batch_tokens=512"]))
    ours, theirs = losses(tmp_path / "wide"), losses(tmp_path / "narrow")
    assert [loss for _, loss in ours] == pytest.approx([loss for _, loss in theirs], rel=1e-4)


def test_two_sharded_ranks_train_the_tower_like_one(write_config: WriteConfig, tmp_path: Path) -> None:
    run_training(load_config(write_config("whole", "finetune"), TOWER))
    path = write_config("sharded", "finetune")
    overrides = [*TOWER, "training.sharding=fsdp"]
    run("torch.distributed.run", "--nproc-per-node=2", "-m", "jobs", "finetune", "--config", str(path), *overrides)
    ours, theirs = weights(tmp_path / "sharded"), weights(tmp_path / "whole")
    assert ours.keys() == theirs.keys()
    assert (ours[PATCHES] - start_weights()).abs().max() > 1e-4
    assert [loss for _, loss in losses(tmp_path / "sharded")] == pytest.approx(
        [loss for _, loss in losses(tmp_path / "whole")], rel=2e-4
    )


def test_adapters_beside_a_learning_tower_keep_it_in_their_folder(write_config: WriteConfig, tmp_path: Path) -> None:
    config = load_config(write_config("run", "finetune"), [*TOWER, "training.max_steps=1", "lora.rank=2"])
    folder = run_training(config).output
    saved = load_file(folder / "mm_projector.safetensors")[PATCHES]
    assert (saved - start_weights()).abs().max() > 1e-4
    opened = open_model(folder).model.state_dict()
    assert torch.equal(opened[PATCHES], saved)


def test_tower_rate_in_pretraining_is_refused(write_config: WriteConfig) -> None:
    with pytest.raises(ConfigError, match="stage pretrain trains the projector only"):
        load_config(write_config("run"), ["training.vision_tower_lr=0.001"])
