"""A run that mixes two sources and changes their weights on the way: counted per source, exact, resumable."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from pipeline.config import ConfigError, ExperimentConfig, load_config
from pipeline.launch.prepare import prepare_source
from pipeline.launch.run import run_training
from tests.integration.conftest import WriteConfig
from tests.integration.runs import assert_same_run, losses

CHANGE = "{from_step: %d, weights: {captions: 1, chat: 3}}"


@pytest.fixture
def mixed(write_config: WriteConfig, shards: dict[str, list[str]]) -> ExperimentConfig:
    return mix(write_config("mix", "finetune"), shards, CHANGE % 4)


def mix(path: Path, shards: dict[str, list[str]], change: str) -> ExperimentConfig:
    sources = {
        "captions": {"shards": shards["pretrain"], "weight": 2},
        "chat": {"shards": shards["finetune"], "weight": 1},
    }
    overrides = ["data.shards=[]", f"data.sources={json.dumps(sources)}", f"data.mix_changes=[{change}]"]
    return load_config(path, [*overrides, "checkpoint.keep_last=9"])


def rewind(run_dir: Path, step: int) -> None:
    """Forget what came after a checkpoint."""
    for folder in (run_dir / "checkpoints").iterdir():
        if folder.name > f"step-{step:08d}":
            shutil.rmtree(folder)
    lines = (run_dir / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run_dir / "metrics.jsonl").write_text("".join(lines[:step]))


def test_mixed_run_counts_each_source_as_planned_and_resumes_bitwise(
    mixed: ExperimentConfig, write_config: WriteConfig, shards: dict[str, list[str]], tmp_path: Path
) -> None:
    run_training(mixed)
    plan = prepare_source(mixed, console=Console(quiet=True)).plan
    lines = [json.loads(line)["metrics"] for line in (tmp_path / "mix" / "metrics.jsonl").read_text().splitlines()]
    for step, metrics in enumerate(lines):
        planned = plan.planned_by_source(step + 1)
        assert {name: metrics[f"data/samples_trained/{name}"] for name in planned} == planned
        assert sum(planned.values()) == metrics["data/samples_trained"] == 13 * (step + 1)
        by_source = [metrics[f"train/loss/{name}"] for name in planned]
        assert min(by_source) <= metrics["train/loss"] <= max(by_source)
    assert plan.planned_by_source(4) == {"captions": 35, "chat": 17}  # 52 samples by 2 : 1
    assert plan.planned_by_source(7) == {"captions": 45, "chat": 46}  # and 39 more by 1 : 3

    resumed = mix(write_config("again", "finetune"), shards, CHANGE % 4)
    shutil.copytree(tmp_path / "mix", tmp_path / "again")
    rewind(tmp_path / "again", 4)
    run_training(resumed)
    assert_same_run(tmp_path / "mix", tmp_path / "again")


def test_resumed_mix_may_change_its_future_but_not_its_past(
    mixed: ExperimentConfig, write_config: WriteConfig, shards: dict[str, list[str]], tmp_path: Path
) -> None:
    run_training(mixed)
    before = losses(tmp_path / "mix")
    rewind(tmp_path / "mix", 4)
    path = tmp_path / "mix.yaml"
    with pytest.raises(ConfigError, match="steps before 4 are trained, with the changes none"):
        run_training(mix(path, shards, CHANGE % 3))
    run_training(mix(path, shards, CHANGE % 5))
    after = losses(tmp_path / "mix")
    assert after[:4] == before[:4]
    assert [one != other for one, other in zip(after[4:], before[4:], strict=True)] == [True] * 3
