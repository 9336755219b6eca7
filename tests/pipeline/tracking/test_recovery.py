"""What a power loss leaves: an mlflow.json that is newer than the lines it counts, or unreadable."""

import json
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient

from pipeline.checkpoint.store import CheckpointStore
from pipeline.config import ExperimentConfig
from pipeline.launch.watch import tracked_run
from pipeline.tracking import open_run, replay
from tests.pipeline.tracking.tracked_runs import (
    MakeConfig,
    expected_history,
    history,
    resume,
    runs_of,
    track,
    write_steps,
)

DELAY_S = 1000
"""Between a step and its repetition."""


def lose_lines(config: ExperimentConfig, name: str, num_lines: int) -> None:
    path = Path(config.run_dir) / name
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-num_lines]))


def test_steps_whose_lines_were_lost_are_at_the_server_once_and_new_ones_arrive(
    make_config: MakeConfig, tracking_uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    config = make_config()
    first = track(config, range(6))
    lose_lines(config, "metrics.jsonl", 2)
    assert open_run(tracked_run(config), tags={}).close() == 0  # a start that was killed before its first step
    run_id = resume(config, first, range(4, 9), DELAY_S)
    expected = expected_history(range(6)) + expected_history(range(6, 9), DELAY_S)
    assert history(tracking_uri, run_id, "train/loss") == expected
    assert "where no line ends: lines were lost" in caplog.text
    assert "not a metrics entry" not in caplog.text


def test_steps_that_were_computed_again_without_tracking_arrive_once_in_a_replay(
    make_config: MakeConfig, tracking_uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    config = make_config()
    first = track(config, range(6))
    lose_lines(config, "metrics.jsonl", 3)
    write_steps(config, range(3, 5), keys=("train/loss", "longer"), delay_s=DELAY_S)
    write_steps(config, range(5, 9), delay_s=DELAY_S)
    assert replay(Path(config.run_dir), tracking_uri).num_pending() == 0
    assert first.run_id is not None
    expected = expected_history(range(6)) + expected_history(range(6, 9), DELAY_S)
    assert history(tracking_uri, first.run_id, "train/loss") == expected
    assert "not a metrics entry" not in caplog.text


def test_operations_after_lost_ones_are_sent(make_config: MakeConfig, tracking_uri: str) -> None:
    config = make_config()
    first = track(config, range(3))
    lose_lines(config, "tracking.jsonl", 1)
    assert open_run(tracked_run(config), tags={}, interval_s=0.05).close() == 0
    (run,) = runs_of(config, tracking_uri)
    assert run.info.run_id == first.run_id
    assert (run.info.status, run.data.tags["ray_llava.attempt"]) == ("RUNNING", "2")


def test_steps_lost_together_with_the_state_are_at_the_server_once(make_config: MakeConfig, tracking_uri: str) -> None:
    config = make_config()
    first = track(config, range(5))
    state_path = Path(config.run_dir) / "mlflow.json"
    known = json.loads(state_path.read_text())
    names = ("run_key", "run_id", "experiment_id", "tracking_uri")
    store = CheckpointStore(Path(config.run_dir) / "checkpoints", 5)
    store.save(3, {"model": {"w": torch.ones(3)}}, {"mlflow": {name: known[name] for name in names}})
    state_path.write_bytes(b"")
    lose_lines(config, "metrics.jsonl", 2)
    run_id = resume(config, first, range(3, 7), DELAY_S)
    expected = expected_history(range(5)) + expected_history(range(5, 7), DELAY_S)
    assert history(tracking_uri, run_id, "train/loss") == expected


def test_steps_that_a_deleted_run_had_are_sent_to_its_successor(make_config: MakeConfig, tracking_uri: str) -> None:
    config = make_config()
    first = track(config, range(6))
    lose_lines(config, "metrics.jsonl", 2)
    assert first.run_id is not None
    MlflowClient(tracking_uri).delete_run(first.run_id)
    write_steps(config, range(4, 7), delay_s=DELAY_S)
    second = replay(Path(config.run_dir), tracking_uri).state.run_id
    assert second is not None
    expected = expected_history(range(4)) + expected_history(range(4, 7), DELAY_S)
    assert history(tracking_uri, second, "train/loss") == expected
