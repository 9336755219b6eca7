"""What holds for the whole suite: no limits of time per example, and how tests are spread over processes."""

from __future__ import annotations

import functools
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadScopeScheduling

ROOT = Path(__file__).parents[1]

if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # under nohup; programs started by tests would inherit it
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

# How fast a machine is must not decide whether a test passes.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


class RayApart(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no type information
    """Hands out tests one by one, but all files with tests that need Ray to one process.

    Ray then starts once, and its tests do not compete for cores. Files are told by their text, since the process that
    hands out knows names only; `--dist loadgroup` would do, but xdist 3.8 groups nothing under pytest 9.2.
    """

    def _split_scope(self, nodeid: str) -> str:
        return "ray" if _uses_ray(nodeid.partition("::")[0]) else nodeid


@functools.cache
def _uses_ray(path: str) -> bool:
    return "pytest.mark.ray" in (ROOT / path).read_text(encoding="utf-8")


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> RayApart:
    """Take the place of the scheduler that `--dist` names."""
    return RayApart(config, log)


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """One Ray for all tests of a session, on this machine only, with room for two workers and their data.

    Its processes have the credentials of the buckets that tests serve.
    """
    import ray  # most tests do without, and it takes seconds to load

    from pipeline.config import ClusterConfig
    from pipeline.launch.on_ray.cluster import start_local_cluster

    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ACCESS_KEY_ID", "id")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "key")
        start_local_cluster(ClusterConfig(num_workers=2, cpus_per_worker=0.5, data_workers=2))
    yield
    ray.shutdown()


def pytest_configure() -> None:
    """Hear SIGINT, and let the processes that tests start hear it, also where a script starts the suite with `&`."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
