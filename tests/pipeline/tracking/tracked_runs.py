"""Runs to track: what they write, and what a server then has of them."""

import json
from collections.abc import Callable
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Run

from pipeline.config import ExperimentConfig
from pipeline.launch.watch import tracked_run
from pipeline.tracking import RunTracker, open_run

MakeConfig = Callable[..., ExperimentConfig]


def write_steps(
    config: ExperimentConfig, steps: range, keys: tuple[str, ...] = ("train/loss",), delay_s: float = 0.0
) -> None:
    """Append metric lines as the training loop writes them; values and times are functions of the step."""
    with (Path(config.run_dir) / "metrics.jsonl").open("a", encoding="utf-8") as file:
        for step in steps:
            metrics = {key: 100.0 * index + 1.0 / (step + 1) for index, key in enumerate(keys)}
            entry = {"step": step, "time_s": 1700000000.25 + step + delay_s, "metrics": metrics}
            file.write(json.dumps(entry) + "\n")


def runs_of(config: ExperimentConfig, uri: str) -> list[Run]:
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(config.tracking.experiment)
    return list(client.search_runs([experiment.experiment_id])) if experiment else []


def history(uri: str, run_id: str, key: str) -> list[tuple[int, float, int]]:
    return [(m.step, m.value, m.timestamp) for m in MlflowClient(uri).get_metric_history(run_id, key)]


def expected_history(steps: range, delay_s: int = 0) -> list[tuple[int, float, int]]:
    return [(step, 1.0 / (step + 1), 1700000000250 + 1000 * (step + delay_s)) for step in steps]


def resume(config: ExperimentConfig, first: RunTracker, steps: range, delay_s: float) -> str:
    """Track a later attempt of a run; everything must have arrived in the same run, whose id is returned."""
    again = open_run(tracked_run(config), tags={}, interval_s=0.05)
    write_steps(config, steps, delay_s=delay_s)
    assert again.close() == 0
    assert first.run_id is not None
    assert again.run_id == first.run_id
    return first.run_id


def track(config: ExperimentConfig, steps: range) -> RunTracker:
    """Track one attempt from start to end; everything must have arrived."""
    tracker = open_run(tracked_run(config), tags={}, interval_s=0.05)
    write_steps(config, steps)
    tracker.finish("FINISHED")
    assert tracker.close() == 0
    return tracker
