"""Load of machines: looks of all ranks joined into names that MLflow's pages group."""

from __future__ import annotations

from pathlib import Path

import torch

from pipeline.parallel.ranks import Workers
from pipeline.training.measures.machines import Look, MachineWatch, join_looks


def test_looks_are_joined_by_machine_and_gpus_numbered_on_each() -> None:
    looks = [
        Look("a", {"cpu_utilization_percentage": 7.0}, {"utilization_percentage": 11.0}),
        Look("b", {"cpu_utilization_percentage": 13.0}, {"utilization_percentage": 17.0}),
        Look("a", {"cpu_utilization_percentage": 8.0}, {"utilization_percentage": 19.0}),
    ]
    assert join_looks(looks) == {
        "system/a/cpu_utilization_percentage": 7.0,
        "system/a/gpu_0_utilization_percentage": 11.0,
        "system/a/gpu_1_utilization_percentage": 19.0,
        "system/b/cpu_utilization_percentage": 13.0,
        "system/b/gpu_0_utilization_percentage": 17.0,
    }


def test_first_step_is_looked_at_and_the_next_only_after_a_while(tmp_path: Path) -> None:
    watch = MachineWatch(Workers(0, 1, torch.device("cpu")), tmp_path)
    assert (watch.is_due(), watch.is_due()) == (True, False)
    found = {name.split("/")[2]: value for name, value in watch.look().items()}
    assert 0 <= found["cpu_utilization_percentage"] <= 100
    assert 0 < found["system_memory_usage_percentage"] < 100
    assert found["disk_available_megabytes"] > 0
    assert not [name for name in found if name.startswith("gpu_")]
