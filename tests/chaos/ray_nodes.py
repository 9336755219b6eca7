"""Machines that leave and join a Ray cluster while it trains, on one machine: a node is a raylet with its workers."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import ray
from ray._private.ray_constants import PROCESS_TYPE_RAYLET
from ray.cluster_utils import Cluster

from tests.chaos.ledger import (
    Record,
    ViolationError,
    check_exactly_once,
    step_samples,
    surviving_history,
)
from tests.chaos.ray_runs import TITLES, RayRun, started, wait_until
from tests.chaos.world import NUM_EPOCHS, NUM_SAMPLES, World

_NODES = 3
_CPUS_PER_NODE = 4
_STORE_BYTES = 100 << 20
_REMOVALS_PER_RUN = 5
_GROUP_TIMEOUT_S = 180.0
_SETTINGS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "CHAOS_STEP_DELAY_S": "1.0",  # a model large enough that nodes can leave while it trains
}
_FIXED = ("cluster.num_workers=2", "cluster.cpus_per_worker=1")
# One worker fits on a node, with a data worker, so that the number of workers follows the number of nodes. Ray Train
# counts the CPUs of all nodes together: those of two nodes must not add up to a third worker that fits on neither.
_ELASTIC = ("cluster.num_workers=[1,3]", "cluster.cpus_per_worker=3", "cluster.resize_interval_s=2")


class NodeChanges(NamedTuple):
    """What removing and adding nodes came to."""

    runs: int
    nodes_removed: int
    """Each hosted a training worker, and was killed with everything on it."""
    nodes_added: int
    worker_numbers_seen: list[str]
    """Of each run: the number of training workers of its groups, in order."""
    samples_lost: int
    samples_trained_twice: int
    global_batches_that_differ: int


class Machines:
    """The nodes of a cluster; the head does no work."""

    def __init__(self) -> None:
        self._cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
        self._nodes = [self._start() for _ in range(_NODES)]
        self._cluster.wait_for_nodes()

    @property
    def address(self) -> str:
        """What RAY_ADDRESS must be to join."""
        return str(self._cluster.address)

    def remove_training_node(self, rng: random.Random) -> bool:
        """Kill a random node that hosts a training worker, with all its processes; false when none does."""
        hosts = [node for node in self._nodes if _hosts_training(node)]
        if not hosts:
            return False
        doomed = rng.choice(hosts)
        self._nodes.remove(doomed)
        self._cluster.remove_node(doomed, allow_graceful=False)
        return True

    def add(self) -> None:
        """Start another node."""
        self._nodes.append(self._start())

    def shut_down(self) -> None:
        """End all nodes."""
        self._cluster.shutdown()

    def _start(self) -> Any:
        return self._cluster.add_node(num_cpus=_CPUS_PER_NODE, object_store_memory=_STORE_BYTES, wait=False)


@contextmanager
def machines(environment: dict[str, str]) -> Iterator[Machines]:
    """Run a cluster inside the block, whose processes all have these variables."""
    before = dict(os.environ)
    os.environ.update(environment)
    cluster = Machines()
    try:
        yield cluster
    finally:
        cluster.shut_down()
        ray.shutdown()
        os.environ.clear()
        os.environ.update(before)


def change_nodes(
    world: World, folder: Path, rng: random.Random, reference: list[list[int]], num_removals: int, *, elastic: bool
) -> NodeChanges:
    """Remove nodes in the middle of training until there were enough, adding one after each.

    Args:
        world: what to train on.
        folder: for run folders.
        rng: decides nodes and moments.
        reference: samples of every step of an undisturbed run, sorted.
        num_removals: how many nodes to remove.
        elastic: let the run shrink and grow with the cluster; otherwise it waits for two workers.

    Raises:
        ViolationError: a sample lost or repeated, another global batch, or an elastic run that kept its size.
    """
    removed = added = 0
    seen: list[str] = []
    while removed < num_removals:
        run = RayRun(
            world, folder / f"nodes-{'elastic' if elastic else 'fixed'}-{len(seen)}", _ELASTIC if elastic else _FIXED
        )
        with machines(run.environment() | _SETTINGS) as cluster:
            run.extra_environment = {"RAY_ADDRESS": cluster.address, **_SETTINGS}
            with started(run):
                for _ in range(min(_REMOVALS_PER_RUN, num_removals - removed)):
                    workers = _newest_group(run).size
                    if not wait_until(run, run.num_steps_reported() + rng.randint(3, 5) * max(1, workers)):
                        break
                    time.sleep(rng.uniform(0.0, 1.0))
                    group = _newest_group(run)
                    if cluster.remove_training_node(rng):
                        removed += 1
                        if elastic:  # so that the run goes on with fewer workers first
                            _wait_for_another_group(run, group)
                        cluster.add()
                        added += 1
                result = run.wait()
        _check(result.records, reference)
        sizes = _sizes(result.records)
        if elastic and len(set(sizes)) == 1:
            raise ViolationError(f"{run.run_dir}: nodes came and went, the number of workers stayed {sizes}")
        seen.append(" ".join(map(str, sizes)))
    return NodeChanges(len(seen), removed, added, seen, 0, 0, 0)


def _check(records: list[Record], reference: list[list[int]]) -> None:
    history = surviving_history(records)
    check_exactly_once(history, NUM_SAMPLES, NUM_EPOCHS)
    for number, step in enumerate(history):
        if sorted(step_samples(step)) != reference[number]:
            raise ViolationError(f"step {number} held {step_samples(step)}, undisturbed {reference[number]}")


def _sizes(records: list[Record]) -> list[int]:
    return list({record.group: record.world_size for record in records}.values())


class _Group(NamedTuple):
    """The workers of one start."""

    name: str
    size: int


def _newest_group(run: RayRun) -> _Group:
    """Return the group that reported last; one without a name before any has."""
    lines = run.witness.read_bytes().split(b"\n")[:-1] if run.witness.exists() else []
    if not lines:
        return _Group("", 1)
    last = json.loads(lines[-1])
    return _Group(last["group"], last["world_size"])


def _wait_for_another_group(run: RayRun, group: _Group) -> None:
    deadline = time.monotonic() + _GROUP_TIMEOUT_S
    while run.is_alive() and _newest_group(run).name == group.name and time.monotonic() < deadline:
        time.sleep(0.05)


def _hosts_training(node: Any) -> bool:
    raylet = psutil.Process(node.all_processes[PROCESS_TYPE_RAYLET][0].process.pid)
    titles = []
    for process in raylet.children(recursive=True):
        try:
            titles.append(" ".join(process.cmdline()))
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return any(title.startswith(TITLES["train worker"]) for title in titles)
