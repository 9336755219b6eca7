"""What reads shards before a run: the processes of this machine, or the Ray cluster of the environment."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pipeline.config import ClusterConfig
from pipeline.parallel.children import run_on_cores, survive_in_tasks
from pipeline.parallel.run_map import RunMap


def choose_run_map(cluster: ClusterConfig) -> RunMap:
    """Return what reads shards: the Ray cluster of the environment if the run is for Ray, else this machine's cores.

    The cluster is joined when there is something to read.
    """
    if cluster.launcher == "local" or not os.environ.get("RAY_ADDRESS"):
        return run_on_cores

    def run(function: Callable[[Any], Any], items: Sequence[Any], /) -> Iterator[Any]:
        from pipeline.launch.on_ray.cluster import join_cluster  # the others work where Ray is not installed
        from pipeline.parallel.ray_map import map_on_cluster

        if items:
            join_cluster(cluster)
            yield from map_on_cluster(function, items)

    return survive_in_tasks(run)
