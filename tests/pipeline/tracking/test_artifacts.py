"""Files that a server does not take hold up nothing else, and arrive once it takes them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipeline.launch.watch import tracked_run
from pipeline.tracking import open_run, replay
from pipeline.tracking.artifacts import ArtifactError
from pipeline.tracking.probe import Probed, probe_server
from tests.pipeline.tracking.servers import Relay, Server, serve_mlflow
from tests.pipeline.tracking.tracked_runs import MakeConfig, expected_history, history, runs_of, write_steps


@pytest.fixture
def relay(mlflow_server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Relay]:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    relay = Relay(mlflow_server)
    yield relay
    relay.close()


def write_result(run_dir: str) -> Path:
    folder = Path(run_dir) / "projector"
    folder.mkdir(parents=True)
    (folder / "mm_projector.safetensors").write_bytes(b"weights" * 1013)
    return folder


@pytest.mark.parametrize("status", [403, 500, 507])
def test_server_that_refuses_files_gets_everything_else_and_the_files_later(
    make_config: MakeConfig, relay: Relay, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    relay.status = status
    config = make_config(uri=relay.uri)
    tracker = open_run(tracked_run(config), tags={}, interval_s=0.05)
    write_steps(config, range(7))
    tracker.log_artifacts(write_result(config.run_dir), "projector")
    tracker.finish("FINISHED")
    assert tracker.close() == 2
    assert tracker.pending_files() == ["config/attempt-001.yaml", "projector"]
    assert relay.num_uploads >= 2
    assert (
        caplog.text.count("config/attempt-001.yaml, projector not uploaded: ")
        + caplog.text.count("config/attempt-001.yaml not uploaded: ")
        >= 1
    )

    (run,) = runs_of(config, relay.uri)
    assert (run.info.status, len(run.data.params) > 10) == ("FINISHED", True)
    assert history(relay.uri, run.info.run_id, "train/loss") == expected_history(range(7))
    with pytest.raises(ArtifactError, match=r"config/attempt-001\.yaml, projector not uploaded"):
        replay(Path(config.run_dir), None)
    relay.status = None
    assert replay(Path(config.run_dir), None).num_pending() == 0
    client = MlflowClient(relay.uri)
    names = [file.path for folder in ("config", "projector") for file in client.list_artifacts(run.info.run_id, folder)]
    assert names == ["config/attempt-001.yaml", "projector/mm_projector.safetensors"]


def test_upload_may_take_longer_than_an_ordinary_request_and_metrics_do_not_wait_for_it(
    make_config: MakeConfig, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    relay.delay_s = 2.0
    config = make_config(uri=relay.uri)
    tracker = open_run(tracked_run(config), tags={}, interval_s=0.05)
    write_steps(config, range(5))
    tracker.finish("FINISHED")
    assert tracker.close() == 0
    assert relay.num_uploads == 1


def test_file_that_fails_alone_does_not_hold_up_the_others(make_config: MakeConfig, mlflow_server: Server) -> None:
    config = make_config(uri=mlflow_server.uri)
    tracker = open_run(tracked_run(config), tags={}, interval_s=0.05)
    tracker.log_artifacts(write_result(config.run_dir) / "missing.bin")
    tracker.log_artifacts(Path(config.run_dir) / "projector", "projector")
    tracker.finish("FINISHED")
    assert tracker.close() == 1
    assert tracker.pending_files() == ["missing.bin"]


def test_probe_stores_and_removes_a_file(mlflow_server: Server, tmp_path: Path) -> None:
    probed = probe_server(mlflow_server.uri, str(tmp_path))
    assert (probed.is_known, probed.file_error) == (False, None)
    client = MlflowClient(mlflow_server.uri)
    experiment_id = client.create_experiment(str(tmp_path))
    again = probe_server(mlflow_server.uri, str(tmp_path))
    assert again == Probed(True, True, probed.artifact_root[:-1] + experiment_id, None, tried_file=True)
    client.delete_experiment(experiment_id)
    with pytest.raises(ValueError, match="was deleted and takes no runs"):
        probe_server(mlflow_server.uri, str(tmp_path))


def test_probe_names_a_store_that_refuses_files(relay: Relay, tmp_path: Path) -> None:
    relay.status = 500
    error = probe_server(relay.uri, str(tmp_path)).file_error
    assert error is not None
    assert "500" in error


def test_probe_names_files_kept_where_only_the_server_can_write(tmp_path: Path) -> None:
    backend = f"sqlite:///{tmp_path / 'own.db'}"
    place = "/dev/null/files"  # stands for a path of another machine
    with serve_mlflow(backend, "--default-artifact-root", place, "--no-serve-artifacts") as server:
        probed = probe_server(server.uri, "any")
    assert place in probed.artifact_root
    assert probed.file_error is not None
