"""The comparison of runs, on runs of one process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from rich.console import Console

from benchmarks.ranks.rank_agreement import RESUMED_STEP, compare_end, compare_runs
from benchmarks.ranks.rank_runs import NUM_STEPS, Inputs, RunSettings, config_of, fork_run, write_inputs
from pipeline.config import ExperimentConfig, ModelConfig
from pipeline.launch.run import run_training
from pipeline.parallel.ranks import Workers


@pytest.fixture
def config(tmp_path: Path) -> ExperimentConfig:
    torch.set_num_threads(1)
    written = write_inputs(tmp_path, Workers(0, 1, torch.device("cpu")))
    inputs = Inputs(tmp_path / "runs", ModelConfig(**written["model"]), written["shards"], use_gpu=False)
    return config_of(RunSettings("finetune", "float32", 1), inputs)


def train(config: ExperimentConfig) -> Path:
    run_training(config, Console(quiet=True))
    return Path(config.run_dir)


def test_resumed_run_is_equal_and_another_is_found_different(config: ExperimentConfig) -> None:
    run = train(config)
    resumed = compare_end(train(fork_run(config, "-resumed", RESUMED_STEP)), run)
    assert resumed["steps"] == list(range(RESUMED_STEP, NUM_STEPS))
    assert resumed["bitwise_equal"]
    assert resumed["tensors"] == 4 * 25  # weights, two moments and a counter
    other = train(fork_run(config, "-other", 0))
    report = compare_runs(other, run, run, "float32")
    assert report["passed"], report
    assert report["num_gradients"] == 25
    assert report["differences"]["gradients of the first step"]["value"] == 0
    lines = (other / "metrics.jsonl").read_text().splitlines()
    first = json.loads(lines[0])
    first["metrics"]["train/loss"] *= 1.01
    (other / "metrics.jsonl").write_text("\n".join([json.dumps(first), *lines[1:]]))
    assert not compare_runs(other, run, run, "float32")["passed"]
    assert not compare_end(other, run)["bitwise_equal"]
