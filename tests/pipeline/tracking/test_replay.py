"""Sending a run later: from another place than it was trained in, and to servers that do not answer or say no."""

import logging
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow.entities import Run

from jobs.failures import classify
from pipeline.config import ExperimentConfig
from pipeline.launch.watch import tracked_run
from pipeline.tracking import open_run, replay
from pipeline.tracking.journal import Journal
from pipeline.tracking.operations import LogArtifacts, OpenRun
from tests.pipeline.tracking.tracked_runs import MakeConfig, runs_of, write_steps


@pytest.fixture
def dead_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An address where nothing listens, asked twice, as a client of this process would by default."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    connections = logging.getLogger("urllib3.connectionpool")
    connections.setLevel(logging.NOTSET)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    yield f"http://me:s3cret@127.0.0.1:{port}"
    connections.setLevel(logging.NOTSET)


def train_untracked(config: ExperimentConfig) -> Path:
    """Write what a run leaves whose server was away; returns its projector."""
    projector = Path(config.run_dir) / "projector" / "mm_projector.safetensors"
    projector.parent.mkdir(parents=True)
    projector.write_bytes(b"weights")
    tracker = open_run(tracked_run(config), tags={})
    write_steps(config, range(3))
    tracker.log_artifacts(projector, "projector")
    tracker.finish("FINISHED")
    return projector


def stored(run: Run) -> bytes | None:
    path = Path(run.info.artifact_uri.removeprefix("file://")) / "projector" / "mm_projector.safetensors"
    return path.read_bytes() if path.is_file() else None


def test_dead_server_is_named_with_what_to_do_and_without_its_password(
    make_config: MakeConfig, dead_server: str, caplog: pytest.LogCaptureFixture
) -> None:
    config = make_config(enabled=False)
    train_untracked(config)
    shown = dead_server.replace("me:s3cret@", "")
    with pytest.raises(ConnectionError, match=f"MLflow at {shown}: .*refused.* run the same command again") as raised:
        replay(Path(config.run_dir), dead_server)
    assert classify(raised.value) == (6, True)
    assert "s3cret" not in f"{raised.value}"
    assert [record for record in caplog.records if record.name.startswith("urllib3")] == []


def test_dead_server_is_reported_by_a_run_without_its_password(
    make_config: MakeConfig, dead_server: str, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = open_run(tracked_run(make_config(uri=dead_server)), tags={}, interval_s=0.01)
    assert tracker.close(timeout_s=60.0) == 1
    assert f"MLflow at {dead_server.replace('me:s3cret@', '')}: " in caplog.text
    assert "s3cret" not in caplog.text
    assert tracker.tracking_uri == dead_server.replace("me:s3cret@", "")


def test_address_that_no_server_can_have_is_refused_as_a_mistake(make_config: MakeConfig) -> None:
    config = make_config(enabled=False)
    train_untracked(config)
    with pytest.raises(ValueError, match=r"MLflow at foo://bar: .* correct tracking\.uri"):
        replay(Path(config.run_dir), "foo://bar")


def test_run_folder_that_was_moved_sends_its_result_not_that_of_its_old_place(
    make_config: MakeConfig, tracking_uri: str
) -> None:
    config = make_config(enabled=False)
    projector = train_untracked(config)
    moved = Path(config.run_dir).rename(Path(config.run_dir).with_name("moved"))
    projector.parent.mkdir(parents=True)
    projector.write_bytes(b"of another run")
    assert replay(moved, tracking_uri).num_pending() == 0
    (run,) = runs_of(config, tracking_uri)
    assert stored(run) == b"weights"


def test_moved_run_folder_of_an_older_version_sends_its_result(make_config: MakeConfig, tracking_uri: str) -> None:
    config = make_config(enabled=False)
    projector = train_untracked(config)
    journal = Journal(Path(config.run_dir))
    lines = journal.path.read_text().splitlines()
    (at,) = (number for number, operation in journal.numbered() if isinstance(operation, LogArtifacts))
    old = LogArtifacts(time_s=5.0, path=str(projector), artifact_path="projector")
    journal.path.write_text("\n".join([*lines[: at - 1], old.model_dump_json(), *lines[at:]]) + "\n")
    moved = Path(config.run_dir).rename(Path(config.run_dir).with_name("moved"))
    assert replay(moved, tracking_uri).num_pending() == 0
    (run,) = runs_of(config, tracking_uri)
    assert stored(run) == b"weights"


def test_result_that_is_not_there_is_left_for_a_later_replay_and_holds_up_nothing(
    make_config: MakeConfig, tracking_uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    config = make_config(enabled=False)
    projector = train_untracked(config)
    away = projector.rename(projector.parents[2] / "away")
    for _ in range(2):
        sender = replay(Path(config.run_dir), tracking_uri)
        assert (sender.num_refused, sender.num_pending()) == (0, 1)
    assert f"artifact {projector}: no such file or folder; put it back" in caplog.text
    (run,) = runs_of(config, tracking_uri)
    assert (run.info.status, run.data.metrics["train/loss"], stored(run)) == ("FINISHED", 1 / 3, None)
    away.rename(projector)
    assert replay(Path(config.run_dir), tracking_uri).num_pending() == 0
    (run,) = runs_of(config, tracking_uri)
    assert (run.info.status, stored(run)) == ("FINISHED", b"weights")


def test_params_tags_data_and_config_arrive_without_credentials(make_config: MakeConfig, tracking_uri: str) -> None:
    config = make_config(enabled=False)
    checkpoint = config.checkpoint.model_copy(update={"folder": "s3://KEY:SECRET@bucket/runs/a"})
    config = config.model_copy(update={"checkpoint": checkpoint})
    tracker = open_run(tracked_run(config), tags={"note": "from https://KEY:SECRET@host/x"})
    tracker.log_dataset(name="d", digest="5", shards=["s3://KEY:SECRET@data/a.tar"], num_samples=3, context="training")
    journal = Journal(Path(config.run_dir))
    assert "SECRET" not in journal.path.read_text()
    older = OpenRun(
        time_s=7.0, attempt=2, experiment="e", run_name="r", params={}, tags={"older": "http://KEY:SECRET@host"},
        config_yaml="uri: http://KEY:SECRET@host\n",
    )  # fmt: skip
    with journal.path.open("a") as file:
        file.write(older.model_dump_json() + "\n")
    assert replay(Path(config.run_dir), tracking_uri).num_pending() == 0
    (run,) = runs_of(config, tracking_uri)
    assert run.data.params["checkpoint.folder"] == "s3://bucket/runs/a"
    assert (run.data.tags["note"], run.data.tags["older"]) == ("from https://host/x", "http://host")
    assert run.inputs is not None
    assert run.inputs.dataset_inputs[0].dataset.source.count("s3://data") == 2
    files = Path(run.info.artifact_uri.removeprefix("file://")) / "config"
    assert "folder: s3://bucket/runs/a\n" in (files / "attempt-001.yaml").read_text()
    assert (files / "attempt-002.yaml").read_text() == "uri: http://host\n"
