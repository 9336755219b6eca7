"""Sizes of elastic runs leave a CPU for the stream."""

from __future__ import annotations

import logging

import pytest
from ray.train import ScalingConfig

from pipeline.launch.on_ray.elastic import LeavesRoomForStream, num_workers_with_stream


@pytest.mark.parametrize(
    ("cpus", "cpus_per_worker", "expected"),
    [(2, 1, 1), (3, 1, 2), (1, 1, 0), (8, 3, 2), (7, 3, 2), (2, 0.5, 2), (1.3, 0.1, 3), (64, 7, 9)],
)
def test_workers_leave_one_cpu(cpus: float, cpus_per_worker: float, expected: int) -> None:
    assert num_workers_with_stream(cpus, cpus_per_worker) == expected


def policy(sizes: tuple[int, int]) -> LeavesRoomForStream:
    return LeavesRoomForStream(ScalingConfig(num_workers=sizes, resources_per_worker={"CPU": 1}))


def test_size_follows_the_cluster_down_and_up_again(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    for cpus in (5, 2, 3, 5):
        monkeypatch.setattr("ray.cluster_resources", lambda cpus=cpus: {"CPU": float(cpus)})
        sizes.append(policy((1, 3))._count_possible_workers({"node": {"CPU": float(cpus)}}))
    assert sizes == [3, 1, 2, 3]


def test_too_small_a_cluster_is_waited_for_saying_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 2.0})
    chosen = policy((2, 3))
    with caplog.at_level(logging.WARNING):
        assert [chosen._count_possible_workers({"node": {"CPU": 2.0}}) for _ in range(3)] == [1, 1, 1]
    assert caplog.text.count("the cluster has 2 CPUs; 2 workers of 1 and one for preprocessing do not fit") == 1
