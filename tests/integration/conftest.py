"""A small data set and the demo's small backbones: enough to train for a few steps in seconds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.tools.demo.shards import DemoSizes, write_demo_shards

WEIGHTS = Path(__file__).parents[2] / "pipeline" / "tools" / "demo" / "weights"

CONFIG = """
name: {stage}-test
run_dir: {run_dir}
stage: {stage}
seed: 3
data: {{shards: {shards}, template: {template}, max_length: 512}}
model: {{language_model: {weights}/language_model, vision_tower: {weights}/tower}}
training: {{global_batch_size: 13, micro_batch_tokens: 601, learning_rate: 0.001, num_epochs: 2, max_steps: 7}}
checkpoint: {{every_steps: 2}}
cluster: {{launcher: local, data_workers: 0, torch_threads: 1, cpus_per_worker: 0.5}}
tracking: {{enabled: false}}
"""

WriteConfig = Callable[..., Path]


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    return write_demo_shards(tmp_path_factory.mktemp("shards"), DemoSizes(pretrain=61, finetune=61, held_out=7))


@pytest.fixture
def write_config(tmp_path: Path, shards: dict[str, list[str]]) -> WriteConfig:
    """Write a config for a stage and return its path; `run` names the run folder under tmp_path."""

    def write(run: str, stage: str = "pretrain") -> Path:
        path = tmp_path / f"{run}.yaml"
        template = "plain" if stage == "pretrain" else "v1"
        text = CONFIG.format(
            stage=stage, run_dir=tmp_path / run, shards=shards[stage], template=template, weights=WEIGHTS
        )
        path.write_text(text)
        return path

    return write
