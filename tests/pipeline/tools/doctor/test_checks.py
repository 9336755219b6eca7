"""Each check finds what it is for, and finds nothing where nothing is."""

from __future__ import annotations

import fcntl
import shutil
import socket
import sqlite3
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from pipeline.assembly.parts import build_model
from pipeline.checkpoint.store import CheckpointStore
from pipeline.config import ExperimentConfig
from pipeline.index.build import ensure_index
from pipeline.run_folder.lease import hold_run
from pipeline.tools.doctor.data import check_encoder, check_index
from pipeline.tools.doctor.finding import Finding
from pipeline.tools.doctor.model_files import check_projector, check_weights
from pipeline.tools.doctor.run_folder import (
    check_checkpoint_folder,
    check_checkpoints,
    check_disk,
    check_file_system,
    check_resume,
)
from pipeline.tools.doctor.services import check_ray, check_tracking
from tests.pipeline.shards.archives import caption_files, tar_bytes
from tests.pipeline.tools.doctor.configs import small_config


def disk_of(config: ExperimentConfig) -> Finding:
    return check_disk(config.recipe, Path(config.run_dir), config.checkpoint)


def checkpoints_of(config: ExperimentConfig) -> Finding:
    return check_checkpoints(Path(config.run_dir), config.checkpoint)


def checkpoint_folder_of(config: ExperimentConfig) -> list[Finding]:
    return check_checkpoint_folder(Path(config.run_dir), config.checkpoint)


def resume_of(config: ExperimentConfig) -> Finding:
    return check_resume(Path(config.run_dir), config.checkpoint, config.to_record())


def weights_of(config: ExperimentConfig) -> Finding:
    return check_weights(config.model)


def projector_of(config: ExperimentConfig) -> Finding:
    return check_projector(config.model)


def index_of(config: ExperimentConfig) -> Finding:
    return check_index(config.model, config.data, Path(config.run_dir))


def encoder_of(config: ExperimentConfig) -> Finding:
    return check_encoder(config.model, config.data)


def tracking_of(config: ExperimentConfig) -> Finding:
    return check_tracking(config.tracking, Path(config.run_dir))


@pytest.fixture
def config(tmp_path: Path) -> ExperimentConfig:
    return small_config(tmp_path)


class Usage(NamedTuple):
    """Of a disk."""

    free: int


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


def test_disk_needs_room_for_another_checkpoint_and_a_half(
    config: ExperimentConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(config, 3)
    size = sum(path.stat().st_size for path in Path(config.run_dir).rglob("*.safetensors"))
    for free, status in ((int(1.6 * size), "ok"), (int(1.4 * size), "error")):
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "disk_usage", lambda _, free=free: Usage(free))
            assert disk_of(config).status == status


@pytest.mark.parametrize(
    ("stage", "rank", "training"),
    [
        ("pretrain", None, {}),
        ("finetune", None, {}),
        ("finetune", None, {"sharding": "fsdp", "cpu_offload": True}),
        ("finetune", 7, {}),
        ("finetune", 13, {"vision_tower_lr": 1e-4}),
    ],
)
def test_first_checkpoint_is_estimated_from_what_the_run_trains(
    config: ExperimentConfig, monkeypatch: pytest.MonkeyPatch, stage: str, rank: int | None, training: dict[str, Any]
) -> None:
    config = config.model_copy(
        update={
            "stage": stage,
            "lora": config.lora.model_copy(update={"rank": rank}),
            "training": config.training.model_copy(update=training),
        }
    )
    model = build_model(config.recipe, torch.device("cpu"))
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    size = 3 * 4 * trained  # a weight and two moments in float32

    for free, status in ((int(2.51 * size), "ok"), (int(2.49 * size), "error")):
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "disk_usage", lambda _, free=free: Usage(free))
            assert disk_of(config).status == status


def test_checkpoint_of_a_model_that_is_not_here_is_of_unknown_size(config: ExperimentConfig) -> None:
    parts = config.model.model_copy(update={"language_model": "/nope"})
    for rank in (None, 128):
        lora = config.lora.model_copy(update={"rank": rank})
        finding = disk_of(config.model_copy(update={"model": parts, "lora": lora}))
        assert (finding.status, "the model is not on this machine" in finding.detail) == ("warning", True)


def test_checkpoints_newest_damaged_is_a_warning_all_damaged_an_error(config: ExperimentConfig) -> None:
    assert "starts at step 0" in checkpoints_of(config).detail
    save(config, 3, 5)
    assert "from step 5" in checkpoints_of(config).detail
    for step, status in ((5, "warning"), (3, "error")):
        path = Path(config.run_dir) / "checkpoints" / f"step-{step:08d}" / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-1])
        assert checkpoints_of(config).status == status


def test_checkpoint_folder_elsewhere_that_cannot_be_written_is_an_error(
    config: ExperimentConfig, tmp_path: Path
) -> None:
    def with_folder(folder: str | None) -> ExperimentConfig:
        return config.model_copy(update={"checkpoint": config.checkpoint.model_copy(update={"folder": folder})})

    assert checkpoint_folder_of(with_folder(None)) == []
    assert checkpoint_folder_of(with_folder("s3://bucket/runs/n?region=us-east-1&endpoint_override=127.0.0.1:9")) == []
    assert statuses(checkpoint_folder_of(with_folder(str(tmp_path / "other")))) == {"checkpoint folder": "ok"}
    (finding,) = checkpoint_folder_of(with_folder(str(tmp_path / "a.tar" / "checkpoints")))
    assert finding.status == "error"
    assert "a.tar/checkpoints cannot be written" in finding.detail


def test_field_that_must_not_change_on_resume_is_an_error_with_both_values(config: ExperimentConfig) -> None:
    assert resume_of(config).status == "ok"
    saved = Path(config.run_dir) / "config.yaml"
    saved.parent.mkdir()
    saved.write_text(config.to_yaml())
    save(config, 3)
    assert "continues the run" in resume_of(config).detail
    finding = resume_of(config.model_copy(update={"seed": 13}))
    assert finding.status == "error"
    assert "seed: the run was started with 0, now 13" in finding.detail
    saved.write_text("name: [")
    assert resume_of(config).status == "error"


def test_config_of_a_start_that_failed_before_the_run_began_may_be_corrected(config: ExperimentConfig) -> None:
    saved = Path(config.run_dir) / "config.yaml"
    saved.parent.mkdir()
    for first in (config.to_yaml(), "name: ["):
        saved.write_text(first)
        finding = resume_of(config.model_copy(update={"seed": 13}))
        assert (finding.status, finding.detail) == ("ok", f"replaces {saved}; no run has started with it")
    save(config, 3)
    assert resume_of(config.model_copy(update={"seed": 13})).status == "error"


def test_language_model_without_weights_or_with_damaged_ones_is_an_error_naming_them(
    config: ExperimentConfig, tmp_path: Path
) -> None:
    def check(folder: Path | str) -> Finding:
        return weights_of(
            config.model_copy(update={"model": config.model.model_copy(update={"language_model": str(folder)})})
        )

    assert weights_of(config).status == "ok"
    assert check("owner/name").status == "ok"
    folder = tmp_path / "lm"
    folder.mkdir()
    assert "has no weights; expected one of model.safetensors" in check(folder).detail
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "p1.safetensors", "b": "p2.bin"}}')
    assert "model.safetensors.index.json names p1.safetensors, p2.bin, which do not exist" in check(folder).detail
    for garbage in (b"", b"\xff" * 64, b"\x02" + b"\0" * 7 + b"[]", b"\x08" + b"\0" * 7 + b'{"a":{}}'):
        (folder / "model.safetensors").write_bytes(garbage)
        finding = check(folder)
        assert finding.status == "error"
        assert f"{folder}/model.safetensors " in finding.detail
        assert "fetch or copy it again" in finding.detail


def test_projector_that_is_not_there_is_an_error(config: ExperimentConfig) -> None:
    assert projector_of(config).status == "ok"
    parts = config.model.model_copy(update={"pretrain_mm_mlp_adapter": "/nope"})
    finding = projector_of(config.model_copy(update={"model": parts}))
    assert finding.status == "error"
    assert "model.pretrain_mm_mlp_adapter /nope: expected a projector file" in finding.detail


def test_index_of_a_shard_that_grew_is_a_warning_naming_it(config: ExperimentConfig) -> None:
    assert "not indexed yet" in index_of(config).detail
    shard = Path(config.data.shards[0])
    ensure_index([str(shard)], Path(config.run_dir) / "index")
    assert index_of(config).status == "ok"
    shard.write_bytes(tar_bytes(caption_files("key", "long " * 3001)))
    finding = index_of(config)
    assert finding.status == "warning"
    assert f"{shard}: {shard.stat().st_size} bytes," in finding.detail
    shard.unlink()
    assert index_of(config).status == "warning"


def test_index_whose_rejected_samples_exceed_a_limit_is_an_error(config: ExperimentConfig) -> None:
    shard = Path(config.data.shards[0])
    shard.write_bytes(tar_bytes([*caption_files("key"), ("mute.txt", b"A cube.")]))
    ensure_index([str(shard)], Path(config.run_dir) / "index")
    assert index_of(config).status == "ok"
    strict = config.model_copy(update={"data": config.data.model_copy(update={"max_rejected_per_shard": 0})})
    finding = index_of(strict)
    assert finding.status == "error"
    assert "1 of 2 samples are unusable" in finding.detail


def test_template_that_does_not_fit_the_tokenizer_is_an_error(config: ExperimentConfig) -> None:
    assert encoder_of(config).status == "ok"
    other = config.model_copy(update={"data": config.data.model_copy(update={"template": "llama_3"})})
    assert encoder_of(other).status == "error"


def test_tracking_server_that_is_away_or_locked_is_a_warning(
    config: ExperimentConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def track(uri: str) -> ExperimentConfig:
        return config.model_copy(update={"tracking": config.tracking.model_copy(update={"uri": uri})})

    assert tracking_of(track("http://127.0.0.1:9")).status == "warning"
    database = sqlite3.connect(tmp_path / "mlflow.db", isolation_level=None)
    database.execute("CREATE TABLE runs (id)")
    assert tracking_of(track(f"sqlite:///{tmp_path}/mlflow.db")).status == "ok"
    database.execute("BEGIN EXCLUSIVE")
    monkeypatch.setattr("pipeline.tools.doctor.services._TIMEOUT_S", 0.1)
    assert "locked" in tracking_of(track(f"sqlite:///{tmp_path}/mlflow.db")).detail
    database.close()
    (tmp_path / "file").write_text("")
    assert tracking_of(track(f"sqlite:///{tmp_path}/new/mlflow.db")).status == "ok"
    assert not (tmp_path / "new").exists()
    for uri in ("foo://bar", "notauri", "http://[", "sqlite:////proc/m.db", f"sqlite:///{tmp_path}/file/m.db"):
        assert tracking_of(track(uri)).status == "warning", uri
    away = tracking_of(track("postgresql+psycopg2://u:secret@127.0.0.1:9/d"))
    assert (away.status, "refused" in away.detail, "secret" in away.detail) == ("warning", True, False)


def test_tracking_server_is_asked_and_named_without_the_password(config: ExperimentConfig) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        place = f"127.0.0.1:{free.getsockname()[1]}"
    for uri, said in (
        (f"http://me:s3cret@{place}", f"http://{place}: [Errno 111] Connection refused"),
        (f"postgresql://me:s3cret@{place}/d", f"postgresql://{place}/d: [Errno 111] Connection refused"),
        ("mssql://me:s3cret@h/d", "mssql://h/d, not tried"),
        ("foo://me:s3cret@h", "foo://h: expected"),
    ):
        tracking = config.tracking.model_copy(update={"uri": uri})
        detail = tracking_of(config.model_copy(update={"tracking": tracking})).detail
        assert detail.startswith(said)
        assert "s3cret" not in detail


def test_ray_is_not_started_where_it_is_not_addressed(
    config: ExperimentConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert statuses(check_ray(config.cluster)) == {"Ray": "ok"}


def test_ray_address_where_nothing_listens_is_an_error_and_ray_is_not_asked(
    config: ExperimentConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    monkeypatch.setattr("pipeline.launch.on_ray.cluster.describe_nodes", lambda _: pytest.fail("Ray was asked"))
    (finding,) = check_ray(config.cluster.model_copy(update={"launcher": "ray"}))
    assert (finding.check, finding.status) == ("Ray", "error")
    assert f"RAY_ADDRESS 127.0.0.1:{port}: nothing answers there" in finding.detail
