"""CPUs of the control groups and the affinity, not of the machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.parallel.cpus import usable_cpus


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of 64 CPUs, of which this process may use 48."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(48)))
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    return tmp_path


def test_affinity_counts_where_there_is_no_quota(machine: Path) -> None:
    assert usable_cpus(machine) == 48


@pytest.mark.parametrize(("quota", "expected"), [("max 100000", 48), ("350000 100000", 3), ("50000 100000", 1)])
def test_quota_of_a_container_counts(machine: Path, quota: str, expected: int) -> None:
    (machine / "proc/self/cgroup").write_text("0::/\n")
    (machine / "sys/fs/cgroup/cpu.max").write_text(quota + "\n")
    assert usable_cpus(machine) == expected


def test_smallest_quota_of_the_groups_around_counts(machine: Path) -> None:
    (machine / "proc/self/cgroup").write_text("0::/slurm/job_7/step_0\n")
    step = machine / "sys/fs/cgroup/slurm/job_7/step_0"
    step.mkdir(parents=True)
    (step / "cpu.max").write_text("max 100000\n")
    (step.parent / "cpu.max").write_text("1300000 100000\n")
    (step.parents[1] / "cpu.max").write_text("3100000 100000\n")
    assert usable_cpus(machine) == 13


def test_quota_of_the_first_version_counts(machine: Path) -> None:
    folder = machine / "sys/fs/cgroup/cpu"
    folder.mkdir()
    (folder / "cpu.cfs_period_us").write_text("100000\n")
    (folder / "cpu.cfs_quota_us").write_text("-1\n")
    assert usable_cpus(machine) == 48
    (folder / "cpu.cfs_quota_us").write_text("700000\n")
    assert usable_cpus(machine) == 7
