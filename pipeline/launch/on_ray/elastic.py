"""Elastic sizes of a run that leave a CPU for preprocessing; Ray Train's own give workers every CPU of a cluster."""

from __future__ import annotations

import logging
import time
from typing import Any

import ray
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy

from pipeline.parallel.worker_log import mark_own_lines

logger = logging.getLogger(__name__)

_TELL_INTERVAL_S = 30.0


def num_workers_with_stream(cpus: float, cpus_per_worker: float) -> int:
    """Return how many workers leave one CPU for preprocessing."""
    return max(0, int((cpus - 1) / cpus_per_worker + 1e-9))


class LeavesRoomForStream(ElasticScalingPolicy):  # type: ignore[misc]  # Ray Train publishes no types
    """Ray Train's elastic policy, whose sizes stop where the stream would get no CPU."""

    _told_s = float("-inf")

    def _count_possible_workers(self, reserved_resources: Any) -> int:
        possible = int(super()._count_possible_workers(reserved_resources))
        cpus_per_worker = float(self.scaling_config._resources_per_worker_not_none.get("CPU", 0))
        if not cpus_per_worker:
            return possible
        cpus = float(ray.cluster_resources().get("CPU", 0))
        limit = num_workers_with_stream(cpus, cpus_per_worker)
        least = self.scaling_config.min_workers
        if limit < least:
            self._tell(
                f"the cluster has {cpus:g} CPUs; {least} workers of {cpus_per_worker:g} and one for preprocessing do "
                "not fit: waiting for nodes"
            )
        return min(possible, limit)

    def _tell(self, text: str) -> None:
        mark_own_lines()
        now = time.monotonic()
        if now - self._told_s >= _TELL_INTERVAL_S:
            self._told_s = now
            logger.warning(text)


class ElasticTrainer(TorchTrainer):  # type: ignore[misc]  # Ray Train publishes no types
    """A trainer whose elastic sizes leave room for the stream; with a fixed number of workers, Ray's own."""

    def _initialize_and_run_controller(self, **parts: Any) -> Any:
        if self.scaling_config.elasticity_enabled:
            parts["scaling_policy"] = LeavesRoomForStream(self.scaling_config)
        return super()._initialize_and_run_controller(**parts)
