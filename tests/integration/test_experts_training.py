"""Experts in training: the balancing loss is of the global batch, loads are logged, a killed run goes on bit by bit."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import torch
from rich.console import Console

from pipeline.config import ConfigError, load_config
from pipeline.launch.run import run_training
from tests.integration.conftest import WriteConfig
from tests.integration.runs import assert_same_run, run, start, wait_for_steps, weights
from tests.integration.test_pairs_training import save_language_model
from tests.model.tiny import save_tiny_tower

QUIET = Console(quiet=True)


def options(tmp_path: Path, kind: str = "qwen3_moe") -> list[str]:
    save_language_model(kind, tmp_path / "lm")
    save_tiny_tower("clip_vision_model", tmp_path / "tower")
    return [
        f"model.language_model={tmp_path / 'lm'}",
        f"model.vision_tower={tmp_path / 'tower'}",
        f"data.index_dir={tmp_path / 'index'}",
        "data.max_length=127",
        "training.global_batch_size=7",
        "training.micro_batch_tokens=127",
        "training.max_steps=3",
        "training.expert_balance=0.1",
        "checkpoint.every_steps=1",
    ]


def logged(run_dir: Path, name: str) -> torch.Tensor:
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return torch.tensor([json.loads(line)["metrics"][name] for line in lines])


def test_balance_does_not_depend_on_batches_and_moves_the_routers(write_config: WriteConfig, tmp_path: Path) -> None:
    overrides = options(tmp_path)
    run_training(load_config(write_config("small", "finetune"), overrides), QUIET)
    large = [*overrides, "training.micro_batch_tokens=601"]
    run_training(load_config(write_config("large", "finetune"), large), QUIET)
    without = [*overrides, "training.expert_balance=0"]
    run_training(load_config(write_config("without", "finetune"), without), QUIET)
    for name in ("train/loss", "train/expert_balance_loss", "train/expert_load_max"):
        assert torch.allclose(logged(tmp_path / "small", name), logged(tmp_path / "large", name), rtol=1e-4), name
    assert 0.1 < logged(tmp_path / "small", "train/expert_balance_loss")[0] < 1  # 0.1 x 2 experts per token, if equal
    assert logged(tmp_path / "small", "train/expert_load_max").min() >= 1
    first = [logged(tmp_path / name, "train/loss")[0] for name in ("small", "without")]
    assert torch.allclose(first[0], first[1])  # the loss that is logged is the cross-entropy alone
    router = "model.layers.0.mlp.gate.weight"
    assert not torch.allclose(weights(tmp_path / "small")[router], weights(tmp_path / "without")[router], atol=1e-5)


@pytest.mark.chaos
def test_killed_run_goes_on_bit_by_bit(write_config: WriteConfig, tmp_path: Path) -> None:
    overrides = [*options(tmp_path, "gpt_oss"), "training.max_steps=5"]
    run_training(load_config(write_config("calm", "finetune"), overrides), QUIET)
    config = write_config("killed", "finetune")
    process = start("jobs", "finetune", "--config", str(config), *overrides)
    wait_for_steps(tmp_path / "killed", 2, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    run("jobs", "finetune", "--config", str(config), *overrides)
    assert len(logged(tmp_path / "killed", "train/expert_balance_loss")) == 5
    assert_same_run(tmp_path / "calm", tmp_path / "killed")


def test_balance_without_experts_or_in_pretraining_is_refused(write_config: WriteConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no experts that such a loss balances"):
        run_training(load_config(write_config("dense", "finetune"), ["training.expert_balance=0.1"]), QUIET)
    with pytest.raises(ConfigError, match="the routers are frozen"):
        run_training(load_config(write_config("pre"), options(tmp_path)), QUIET)
