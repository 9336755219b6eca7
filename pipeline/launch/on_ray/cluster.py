"""The Ray cluster of a run: joined or started, and looked at."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray
from ray import cloudpickle
from ray.job_config import JobConfig
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.config import ClusterConfig, ConfigError
from pipeline.launch.on_ray.door import check_admits
from pipeline.launch.on_ray.leftovers import end_with_this_process
from pipeline.parallel import own_code as own_code_module
from pipeline.parallel.cpus import usable_cpus
from pipeline.parallel.own_code import check_same_code, own_code
from pipeline.parallel.stop_signals import keep_signal_handlers

logger = logging.getLogger(__name__)

_LOOK_TIMEOUT_S = 60.0
_LOCAL_SETTINGS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # the end of a run is noticed by polling: 2 s by default
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # a local machine is not preempted
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # Ray's coming default, which it would otherwise announce as a warning
}
_GPU_ANSWER_S = 60.0


def connect(cluster: ClusterConfig) -> None:
    """Join the Ray cluster of this process's environment, or start a local one large enough for the run.

    Raises:
        ConfigError: the cluster refuses this process, or lacks CPUs or GPUs for the workers and a preprocessing task.
        ConnectionError: nothing answers at RAY_ADDRESS.
    """
    join_cluster(cluster)
    resources = ray.cluster_resources()
    wanted = cluster.min_workers * cluster.cpus_per_worker + 1
    if resources.get("CPU", 0) < wanted:
        raise ConfigError(
            f"{cluster.min_workers} workers with {cluster.cpus_per_worker} CPUs each and one preprocessing task need "
            f"{wanted} CPUs, the Ray cluster has {resources.get('CPU', 0)}; no CPU would be left to preprocess. Lower "
            "cluster.num_workers or cluster.cpus_per_worker, or add nodes"
        )
    if cluster.use_gpu and resources.get("GPU", 0) < cluster.min_workers:
        raise ConfigError(
            f"cluster.num_workers asks for {cluster.min_workers} with one GPU each, the Ray cluster has "
            f"{resources.get('GPU', 0)} GPUs; lower cluster.num_workers or add nodes"
        )


def join_cluster(cluster: ClusterConfig) -> None:
    """Join the Ray cluster of this process's environment, or start a local one; a second call does nothing."""
    if ray.is_initialized():
        return
    if address := os.environ.get("RAY_ADDRESS"):
        check_admits(address)
        with keep_signal_handlers(), _in_own_root():
            ray.init(job_config=_own_code_first())
    else:
        start_local_cluster(cluster)
    check_nodes_run_own_code()


def _own_code_first() -> JobConfig:
    """Put the folder of this project's packages first on the workers' import path, before a job's working directory."""
    return JobConfig(_py_driver_sys_path=[own_code().root])


@contextmanager
def _in_own_root() -> Iterator[None]:
    """Change into the folder of this project's packages: Ray puts the current one first on its workers' import path."""
    before = Path.cwd()
    os.chdir(own_code().root)
    try:
        yield
    finally:
        os.chdir(before)


def check_nodes_run_own_code() -> None:
    """Refuse a cluster with a node whose workers would run other code than this process.

    Raises:
        MixedCodeError: names the node, and both installations.
    """
    cloudpickle.register_pickle_by_value(own_code_module)  # a node may have another version, or none
    look = ray.remote(num_cpus=0, max_retries=0)(own_code_module.find_code)
    asked = {}
    for node in ray.nodes():
        if node["Alive"]:
            place = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            asked[look.options(scheduling_strategy=place).remote()] = str(node["NodeManagerHostname"])
    ready, late = ray.wait(list(asked), num_returns=len(asked), timeout=_LOOK_TIMEOUT_S)
    for answer in ready:
        try:
            found = ray.get(answer)
        except ray.exceptions.RayError as error:  # the node left meanwhile
            logger.warning("cannot tell which code node %s runs: %s", asked[answer], error)
            continue
        check_same_code(found, own_code(), f"node {asked[answer]}")
    for answer in late:
        logger.warning("node %s did not say within %.0f s which code it runs", asked[answer], _LOOK_TIMEOUT_S)


def gpu_capability() -> tuple[int, int] | None:
    """Return the CUDA compute capability of a GPU of the joined cluster; None when no free one answers in time."""
    try:
        found: tuple[int, int] | None = ray.get(
            ray.remote(num_gpus=1, num_cpus=0)(_capability_here).remote(), timeout=_GPU_ANSWER_S
        )
    except ray.exceptions.GetTimeoutError:
        return None
    return found


def _capability_here() -> tuple[int, int] | None:
    import torch

    return torch.cuda.get_device_capability() if torch.cuda.is_available() else None


def describe_nodes(cluster: ClusterConfig) -> list[tuple[str, float, float, float]]:
    """Return `(name, free CPUs, CPUs, GPUs)` of every node of the cluster that the environment names.

    Raises:
        ConfigError: it lacks CPUs or GPUs for the run.
        ConnectionError: it does not answer.
    """
    connect(cluster)
    return live_nodes()


def live_nodes() -> list[tuple[str, float, float, float]]:
    """Return the same of the cluster that was joined."""
    free = ray._private.state.available_resources_per_node()
    return [
        (
            str(node["NodeManagerHostname"]),
            float(free.get(node["NodeID"], {}).get("CPU", 0)),
            float(node["Resources"].get("CPU", 0)),
            float(node["Resources"].get("GPU", 0)),
        )
        for node in ray.nodes()
        if node["Alive"]
    ]


def start_local_cluster(cluster: ClusterConfig) -> None:
    """Start Ray on this machine for the length of the process."""
    for name, value in _LOCAL_SETTINGS.items():
        os.environ.setdefault(name, value)
    # Preprocessing and training share the cores of one machine; the operating system divides them.
    slots = math.ceil(cluster.max_workers * cluster.cpus_per_worker + cluster.data_workers)
    with keep_signal_handlers(), _in_own_root():
        ray.init(
            address="local",
            job_config=_own_code_first(),
            num_cpus=max(slots + 1, usable_cpus()),
            include_dashboard=False,
            log_to_driver=False,  # what the workers do is in metrics.jsonl, why they fail in the exception
            logging_level=logging.WARNING,
        )
    end_with_this_process()
