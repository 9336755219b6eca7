"""Data that cannot be trained on end a run under Ray before its workers, in the words that `--dry-run` says."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.conftest import WriteConfig, shards, write_config
from tests.jobs.conftest import RunCommand
from tests.jobs.test_refusals import AFTER_SHARDS, assert_refused_alike

__all__ = ["shards", "write_config"]


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("name", AFTER_SHARDS)
def test_data_that_cannot_be_trained_on_are_refused_on_ray_too(
    run_command: RunCommand, write_config: WriteConfig, tmp_path: Path, name: str
) -> None:
    stage, make, said, exit_code = AFTER_SHARDS[name]
    config, overrides = str(write_config("run", stage)), make(tmp_path)
    on_ray = ["cluster.launcher=ray", "cluster.data_workers=1"]
    ended = {
        "train": run_command(stage, "-c", config, *overrides, *on_ray),
        "dry-run": run_command(stage, "--dry-run", "-c", config, *overrides),
    }
    assert_refused_alike(ended, said, exit_code)
    assert not (tmp_path / "run" / "restarts.jsonl").exists()
