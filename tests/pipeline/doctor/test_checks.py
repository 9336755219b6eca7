"""Each check finds what it is for, and finds nothing where nothing is."""

from __future__ import annotations

import fcntl
import shutil
import sqlite3
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from pipeline.config import ExperimentConfig, parse_config
from pipeline.doctor.data import check_encoder, check_index
from pipeline.doctor.finding import Finding
from pipeline.doctor.run_folder import check_checkpoints, check_disk, check_file_system
from pipeline.doctor.services import check_ray, check_tracking
from pipeline.shards.index import ensure_index
from pipeline.training.checkpoint import CheckpointStore
from pipeline.training.lease import hold_run
from tests.pipeline.shards.archives import caption_files, tar_bytes

WEIGHTS = Path(__file__).parents[3] / "pipeline" / "demo" / "weights"


@pytest.fixture
def config(tmp_path: Path) -> ExperimentConfig:
    (tmp_path / "a.tar").write_bytes(tar_bytes(caption_files("key")))
    return parse_config(
        {
            "name": "n",
            "run_dir": str(tmp_path / "run"),
            "stage": "finetune",
            "data": {"shards": [str(tmp_path / "a.tar")]},
            "model": {"language_model": str(WEIGHTS / "language_model"), "vision_tower": str(WEIGHTS / "tower")},
            "training": {"global_batch_size": 2, "learning_rate": 0.1},
            "cluster": {"launcher": "local"},
        },
        where="test",
    )


def save(config: ExperimentConfig, *steps: int) -> None:
    for step in steps:
        CheckpointStore(Path(config.run_dir) / "checkpoints", 9).save(step, {"model": {"w": torch.ones(50_000)}}, {})


def statuses(findings: list[Finding]) -> dict[str, str]:
    return {finding.check: finding.status for finding in findings}


def test_file_system_that_works_is_ok_and_leaves_no_trace(tmp_path: Path) -> None:
    assert statuses(check_file_system(tmp_path)) == {"fsync and rename": "ok", "lock": "ok"}
    assert list(tmp_path.iterdir()) == []


def test_locks_that_exclude_nobody_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)
    assert statuses(check_file_system(tmp_path))["lock"] == "error"


def test_run_that_is_held_is_an_error_naming_the_holder(tmp_path: Path) -> None:
    with hold_run(tmp_path):
        finding = check_file_system(tmp_path)[1]
    assert (finding.check, finding.status) == ("lock", "error")
    assert "is held by process" in finding.detail


def test_disk_needs_room_for_two_and_a_half_checkpoints(
    config: ExperimentConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(config, 3)
    size = sum(path.stat().st_size for path in Path(config.run_dir).rglob("*.safetensors"))

    class Usage(NamedTuple):
        free: int

    for free, status in ((int(2.6 * size), "ok"), (int(2.4 * size), "error")):
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "disk_usage", lambda _, free=free: Usage(free))
            assert check_disk(config).status == status


def test_checkpoints_newest_damaged_is_a_warning_all_damaged_an_error(config: ExperimentConfig) -> None:
    assert "starts from nothing" in check_checkpoints(config).detail
    save(config, 3, 5)
    assert "from step 5" in check_checkpoints(config).detail
    for step, status in ((5, "warning"), (3, "error")):
        path = Path(config.run_dir) / "checkpoints" / f"step-{step:08d}" / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-1])
        assert check_checkpoints(config).status == status


def test_index_of_a_shard_that_grew_is_a_warning_naming_it(config: ExperimentConfig) -> None:
    assert "not indexed yet" in check_index(config).detail
    shard = Path(config.data.shards[0])
    ensure_index([str(shard)], Path(config.run_dir) / "index")
    assert check_index(config).status == "ok"
    shard.write_bytes(tar_bytes(caption_files("key", "long " * 3001)))
    finding = check_index(config)
    assert finding.status == "warning"
    assert f"{shard}: {shard.stat().st_size} bytes," in finding.detail
    shard.unlink()
    assert check_index(config).status == "warning"


def test_index_whose_rejected_samples_exceed_a_limit_is_an_error(config: ExperimentConfig) -> None:
    shard = Path(config.data.shards[0])
    shard.write_bytes(tar_bytes([*caption_files("key"), ("mute.txt", b"A cube.")]))
    ensure_index([str(shard)], Path(config.run_dir) / "index")
    assert check_index(config).status == "ok"
    strict = config.model_copy(update={"data": config.data.model_copy(update={"max_rejected_per_shard": 0})})
    finding = check_index(strict)
    assert finding.status == "error"
    assert "1 of 2 samples are unusable" in finding.detail


def test_template_that_does_not_fit_the_tokenizer_is_an_error(config: ExperimentConfig) -> None:
    assert check_encoder(config).status == "ok"
    other = config.model_copy(update={"data": config.data.model_copy(update={"template": "llama_3"})})
    assert check_encoder(other).status == "error"


def test_tracking_server_that_is_away_or_locked_is_a_warning(
    config: ExperimentConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def track(uri: str) -> ExperimentConfig:
        return config.model_copy(update={"tracking": config.tracking.model_copy(update={"uri": uri})})

    assert check_tracking(track("http://127.0.0.1:9")).status == "warning"
    database = sqlite3.connect(tmp_path / "mlflow.db", isolation_level=None)
    database.execute("CREATE TABLE runs (id)")
    assert check_tracking(track(f"sqlite:///{tmp_path}/mlflow.db")).status == "ok"
    database.execute("BEGIN EXCLUSIVE")
    monkeypatch.setattr("pipeline.doctor.services._TIMEOUT_S", 0.1)
    assert "locked" in check_tracking(track(f"sqlite:///{tmp_path}/mlflow.db")).detail
    database.close()


def test_ray_is_not_started_where_it_is_not_addressed(
    config: ExperimentConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert statuses(check_ray(config.cluster)) == {"Ray": "ok"}
