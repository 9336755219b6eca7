"""Where shards are read: on this machine, or on a Ray cluster that is joined only when there is something to read."""

from __future__ import annotations

import pytest

from pipeline.config import ClusterConfig
from pipeline.launch.run_maps import choose_run_map
from pipeline.parallel.children import run_on_cores


def test_choose_run_map_takes_this_machine_unless_there_is_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "nowhere.invalid:6379")
    assert choose_run_map(ClusterConfig(launcher="local")) is run_on_cores
    assert choose_run_map(ClusterConfig(launcher="ray")) is not run_on_cores
    monkeypatch.delenv("RAY_ADDRESS")
    assert choose_run_map(ClusterConfig(launcher="ray")) is run_on_cores


def test_choose_run_map_joins_no_cluster_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "nowhere.invalid:6379")
    monkeypatch.setattr("pipeline.launch.on_ray.cluster.join_cluster", lambda _: pytest.fail("joined"))
    assert list(choose_run_map(ClusterConfig(launcher="ray"))(abs, [])) == []
