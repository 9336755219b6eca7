"""How many CPUs this process may use: fewer than the machine has in a container, a Slurm job, or under `taskset`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


def usable_cpus(root: Path = Path("/")) -> int:
    """Return the smaller of the CPUs in this process's affinity and the quota of its control groups; at least 1.

    Args:
        root: Where `proc` and `sys` are.
    """
    quotas = [*_quotas_v2(root), *_quotas_v1(root)]
    return max(1, int(min([float(len(os.sched_getaffinity(0))), *quotas])))


def _quotas_v2(root: Path) -> Iterator[float]:
    """Yield the quota of each group that this process is in, from its own to the outermost."""
    top = root / "sys/fs/cgroup"
    for line in _read(root / "proc/self/cgroup").splitlines():
        hierarchy, _, path = line.partition("::")
        if hierarchy == "0":
            folder = top / path.strip("/")
            for group in (folder, *folder.parents):
                quota, _, period = _read(group / "cpu.max").partition(" ")
                if quota.isdigit() and period.strip().isdigit():
                    yield int(quota) / int(period)
                if group == top:
                    break


def _quotas_v1(root: Path) -> Iterator[float]:
    for name in ("cpu", "cpu,cpuacct"):
        folder = root / "sys/fs/cgroup" / name
        quota, period = _read(folder / "cpu.cfs_quota_us").strip(), _read(folder / "cpu.cfs_period_us").strip()
        if quota.isdigit() and period.isdigit():  # -1 where there is no limit
            yield int(quota) / int(period)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
