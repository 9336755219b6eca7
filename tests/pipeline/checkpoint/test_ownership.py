"""A checkpoint is continued by the run that wrote it, under a config and data that compute the same."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from pipeline.checkpoint.ownership import check_own
from pipeline.checkpoint.store import Checkpoint
from pipeline.config import ConfigError, ExperimentConfig, parse_config
from pipeline.plan.plan import build_plan
from pipeline.run_folder.metrics_log import METRICS_FILE
from pipeline.stream.rank_step import BatchSource

STEP = 3
MakeConfig = Callable[..., ExperimentConfig]


@pytest.fixture
def make_config(tmp_path: Path) -> MakeConfig:
    def make(run: str = "run", checkpoint: dict[str, Any] | None = None, **data: Any) -> ExperimentConfig:
        tree = {
            "name": "own", "run_dir": str(tmp_path / run), "stage": "pretrain",
            "model": {"language_model": str(tmp_path / "lm"), "vision_tower": "hub/tower"},
            "training": {"global_batch_size": 13, "learning_rate": 0.1},
            "data": {"shards": ["a.tar"], "max_length": 99, **data},
            "checkpoint": checkpoint or {},
        }  # fmt: skip
        return parse_config(tree, where="test")

    return make


def source_of(data_fingerprint: str = "data", num_samples: int = 61) -> BatchSource:
    plan = build_plan(
        np.full(num_samples, 7, np.int32), data_fingerprint=data_fingerprint, seed=0, global_batch_size=13,
        num_epochs=1, max_steps=None, micro_batch_tokens=99,
    )  # fmt: skip
    return cast(BatchSource, SimpleNamespace(plan=plan))


def checkpoint_of(config: ExperimentConfig, source: BatchSource, **state: Any) -> Checkpoint:
    fingerprint = source.plan.fingerprint_before(STEP)
    facts = {"config": config.model_dump(mode="json"), "plan_fingerprint": fingerprint, **state}
    return Checkpoint(Path("checkpoints/step-00000003"), STEP, facts)


def test_check_own_same_run_passes(make_config: MakeConfig) -> None:
    config, source = make_config(), source_of()
    check_own(checkpoint_of(config, source), source.plan, config.to_record())


def test_check_own_config_of_another_version_is_refused_by_its_unknown_key(make_config: MakeConfig) -> None:
    config, source = make_config(), source_of()
    checkpoint = checkpoint_of(config, source)
    checkpoint.state["config"]["warp"] = 9
    with pytest.raises(ConfigError, match=r"(?s)step-00000003 was written under a config .*warp.*Resume it with"):
        check_own(checkpoint, source.plan, config.to_record())


def test_check_own_fixed_field_changed_is_refused_and_free_one_is_not(make_config: MakeConfig) -> None:
    source = source_of()
    checkpoint = checkpoint_of(make_config(), source)
    check_own(checkpoint, source.plan, make_config(max_rejected_in_a_row=3).to_record())
    with pytest.raises(ConfigError, match=r"data\.max_length: the run was started with 99, now 98"):
        check_own(checkpoint, source.plan, make_config(max_length=98).to_record())


def test_check_own_other_weights_for_trained_steps_of_a_mix_are_refused(make_config: MakeConfig) -> None:
    def mixed(from_step: int) -> ExperimentConfig:
        sources = {name: {"shards": [f"{name}.tar"], "weight": 1} for name in ("a", "b")}
        changes = [{"from_step": from_step, "weights": {"a": 1, "b": 3}}]
        return make_config(shards=[], sources=sources, mix_changes=changes)

    source = source_of()
    checkpoint = checkpoint_of(mixed(2), source)
    check_own(checkpoint, source.plan, mixed(2).to_record())
    with pytest.raises(ConfigError, match="the steps before 3 are trained"):
        check_own(checkpoint, source.plan, mixed(1).to_record())


def test_check_own_other_data_are_refused_and_said_not_to_come_from_the_config(make_config: MakeConfig) -> None:
    config, before, now = make_config(), source_of(), source_of("others")
    one, other = before.plan.fingerprint_before(STEP)[:12], now.plan.fingerprint_before(STEP)[:12]
    message = rf"trained on plan {one}, the data now give plan {other}: .*\(not by the config\)"
    with pytest.raises(ConfigError, match=message):
        check_own(checkpoint_of(config, before), now.plan, config.to_record())


def test_check_own_other_data_by_a_free_field_name_it_with_both_values(make_config: MakeConfig) -> None:
    before, now = source_of(), source_of(num_samples=60)
    checkpoint = checkpoint_of(make_config(index_dir="one", on_bad_shard="fail"), before)
    with pytest.raises(ConfigError) as caught:
        check_own(checkpoint, now.plan, make_config(index_dir="two", on_bad_shard="quarantine").to_record())
    told = re.search(r"changed since \((.*)\)\. Restore", str(caught.value))
    assert told is not None
    assert told[1].split("; ") == [
        "data.index_dir: one before, two now",
        "data.on_bad_shard: fail before, quarantine now",
    ]


def test_check_own_plan_is_compared_up_to_the_step_of_the_checkpoint_only(make_config: MakeConfig) -> None:
    config, source = make_config(), source_of()
    asked: list[int] = []

    def fingerprint_before(step: int) -> str:
        asked.append(step)
        return "same"

    watched = SimpleNamespace(plan=SimpleNamespace(fingerprint_before=fingerprint_before))
    checkpoint = checkpoint_of(config, source, plan_fingerprint="same")
    check_own(checkpoint, cast(BatchSource, watched).plan, config.to_record())
    assert asked == [STEP]


def test_check_own_other_weight_files_are_refused(make_config: MakeConfig, tmp_path: Path) -> None:
    (tmp_path / "lm").mkdir()
    (tmp_path / "lm" / "model.safetensors").write_bytes(b"weights")
    config, source = make_config(), source_of()
    check_own(checkpoint_of(config, source, weights={}), source.plan, config.to_record())
    with pytest.raises(ConfigError, match=f"weight files in {tmp_path / 'lm'} are not those"):
        check_own(
            checkpoint_of(config, source, weights={str(tmp_path / "lm"): "another digest"}),
            source.plan,
            config.to_record(),
        )


def test_check_own_checkpoints_of_a_run_elsewhere_are_refused_in_a_folder_that_both_name(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    shared = {"folder": str(tmp_path / "kept")}
    source = source_of()
    checkpoint = checkpoint_of(make_config("first", shared), source)
    check_own(checkpoint, source.plan, make_config("first", shared).to_record())
    with pytest.raises(
        ConfigError, match=rf"kept holds the checkpoints of the run in {tmp_path / 'first'}, and run_dir"
    ):
        check_own(checkpoint, source.plan, make_config("second", shared).to_record())


def test_check_own_run_folder_that_moved_with_its_metrics_continues(make_config: MakeConfig, tmp_path: Path) -> None:
    shared = {"folder": str(tmp_path / "kept")}
    source = source_of()
    (tmp_path / "second").mkdir()
    (tmp_path / "second" / METRICS_FILE).touch()
    check_own(
        checkpoint_of(make_config("first", shared), source), source.plan, make_config("second", shared).to_record()
    )


def test_check_own_run_folder_under_another_name_continues_its_own_checkpoints(make_config: MakeConfig) -> None:
    source = source_of()
    check_own(checkpoint_of(make_config("first"), source), source.plan, make_config("second").to_record())
