"""A run's gauges: from its files, on Ray's metrics endpoint, and in the dashboard of Grafana."""

from __future__ import annotations

import json
import re
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.checkpoint.manifest import MANIFEST_NAME, Manifest, encode_manifest
from pipeline.checkpoint.storage import FolderStorage
from pipeline.launch.on_ray.gauges import RUN_GAUGES, STEP_GAUGES, RunGauges

DASHBOARD = Path(__file__).parents[4] / "deploy" / "grafana" / "ray_llava.json"


def gauges_of(folder: Path, clock: Callable[[], float] = time.time) -> RunGauges:
    tags = {"run": "seen-from-outside", "stage": "pretrain"}
    return RunGauges(tags, folder, FolderStorage(folder / "checkpoints"), 23, clock)


def log_step(folder: Path, step: int, time_s: float) -> None:
    metrics = {meaning.key: 0.5 for meaning in STEP_GAUGES.values()} | {"train/loss": 100.0 - step}
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": step, "time_s": time_s, "metrics": metrics}) + "\n")


def test_gauges_follow_steps_checkpoints_and_restarts_of_this_start(tmp_path: Path) -> None:
    now = 1000.0
    (tmp_path / "restarts.jsonl").write_text('{"attempt": 1, "step": 0}\n')  # of an earlier command
    gauges = gauges_of(tmp_path, clock=lambda: now)
    first = gauges.values()
    assert first.keys() == RUN_GAUGES.keys()
    assert (first["llava_step"], first["llava_checkpoint_step"], first["llava_restarts"]) == (0, 0, 0)

    now = 1011.0
    log_step(tmp_path, 4, 1007.0)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "time')  # being written
    with (tmp_path / "restarts.jsonl").open("a") as file:
        file.write('{"attempt": 2, "step": 0}\n' * 3)
    found = gauges.values()
    assert (found["llava_step"], found["llava_loss"], found["llava_total_steps"]) == (5, 96.0, 23)
    assert (found["llava_step_age_seconds"], found["llava_checkpoint_age_seconds"]) == (4.0, 11.0)
    assert found["llava_restarts"] == 2

    saved = tmp_path / "checkpoints" / "step-00000005"
    saved.mkdir(parents=True)
    (saved / MANIFEST_NAME).write_bytes(encode_manifest(Manifest(5, {}, {}, 0.5)))
    found = gauges.values()
    assert (found["llava_checkpoint_step"], found["llava_checkpoint_age_seconds"]) == (5, 0.0)


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_gauges_are_on_the_metrics_endpoint_of_ray(tmp_path: Path) -> None:
    import ray

    port = ray.nodes()[0]["MetricsExportPort"]
    log_step(tmp_path, 11, time.time())
    with gauges_of(tmp_path):
        found: dict[str, str] = {}
        deadline = time.monotonic() + 120
        while len(found) < len(STEP_GAUGES) + len(RUN_GAUGES) and time.monotonic() < deadline:
            time.sleep(1.0)
            page = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
            lines = [line for line in page.splitlines() if 'run="seen-from-outside"' in line]
            found = {line.partition("{")[0]: line.rpartition(" ")[2] for line in lines}
    assert found.keys() == {f"ray_{name}" for name in (*STEP_GAUGES, *RUN_GAUGES)}
    assert (float(found["ray_llava_step"]), float(found["ray_llava_loss"])) == (12, 89)


def test_every_gauge_is_shown_by_the_dashboard_and_no_other() -> None:
    text = DASHBOARD.read_text()
    shown = set(re.findall(r"ray_(llava_\w+)", text))
    assert shown <= STEP_GAUGES.keys() | RUN_GAUGES.keys()
    assert {"llava_loss", "llava_mfu", "llava_data_wait_fraction", *RUN_GAUGES} <= shown
    dashboard = json.loads(text)
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    places = [panel["gridPos"] for panel in dashboard["panels"]]
    areas = [(range(at["x"], at["x"] + at["w"]), range(at["y"], at["y"] + at["h"])) for at in places]
    cells = [(x, y) for xs, ys in areas for x in xs for y in ys]
    assert len(set(cells)) == len(cells)  # no panel covers another
    assert max(x for x, _ in cells) < 24
