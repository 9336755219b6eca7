"""The tracking server as something that dies: what it must hold after a replay, point by point."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from pipeline.tracking.journal import shown_name
from tests.chaos.ledger import ViolationError
from tests.chaos.nursery import Nursery
from tests.chaos.runs import Run
from tests.chaos.world import World

_ENABLED = "tracking.enabled=true"


def check_replay(world: World, nursery: Nursery, folder: Path, environment: dict[str, str]) -> int:
    """Track a run, forget how much of it was sent, send it again; returns the points that the server has.

    Raises:
        ViolationError: a point is missing, or there twice.
    """
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    run = Run(world, nursery, folder / "run", overrides=(_ENABLED, f"tracking.uri={uri}"), environment=environment)
    run.finish()
    state_file = run.run_dir / "mlflow.json"
    state = json.loads(state_file.read_text())
    # As if the process had died after the server's last answer, before it wrote it down.
    state_file.write_text(json.dumps({**state, "num_operations": 0, "metrics_offset_bytes": 0}))
    child = nursery.start("replay", [str(run.run_dir), uri], folder / "replay.log", environment)
    if code := child.wait(120.0):
        raise ViolationError(f"the replay ended with {code}:\n{child.output()}")
    return check_points(run.run_dir, uri)


def check_points(run_dir: Path, uri: str) -> int:
    """Verify that a server has every number of metrics.jsonl exactly once; returns how many that are.

    Raises:
        ViolationError: names the first metric that differs.
    """
    from mlflow import MlflowClient  # two seconds, which most parts need not spend

    run_id = json.loads((run_dir / "mlflow.json").read_text())["run_id"]
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    expected = Counter(
        (shown_name(key), line["step"], value) for line in lines for key, value in line["metrics"].items()
    )
    client = MlflowClient(uri)
    found: Counter[tuple[str, int, float]] = Counter()
    for key in set(client.get_run(run_id).data.metrics) - {"train/loss_smoothed"}:  # of checkpoints, not of steps
        found.update((key, point.step, point.value) for point in client.get_metric_history(run_id, key))
    if found != expected:
        missing, surplus = list((expected - found).items())[:3], list((found - expected).items())[:3]
        raise ViolationError(f"{uri}: points differ from metrics.jsonl: missing {missing}, too many {surplus}")
    return found.total()
