"""Tracking against a real MLflow database: what arrives, what happens on resume, and when the server misbehaves."""

import json
import os
import socket
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient

from pipeline.checkpoint.store import CheckpointStore
from pipeline.launch.watch import tracked_run
from pipeline.run_folder.held import RunHeldError
from pipeline.run_folder.lease import hold_run
from pipeline.tracking import RunTracker, open_run, replay
from pipeline.tracking.sender import Sender
from tests.pipeline.tracking.tracked_runs import (
    MakeConfig,
    expected_history,
    history,
    runs_of,
    track,
    write_steps,
)


def test_finished_run_holds_params_tags_config_data_metrics_and_artifacts(
    make_config: MakeConfig, tracking_uri: str, tmp_path: Path
) -> None:
    config = make_config()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mm_projector.safetensors").write_bytes(b"weights")
    tracker = open_run(tracked_run(config), tags={"ray_llava.note": "x"}, interval_s=0.05)
    tracker.log_dataset(
        name="captions", digest="d" * 64, shards=["/d/a.tar", "/d/b.tar"], num_samples=13, context="training"
    )
    write_steps(config, range(5))
    tracker.log_metrics({"eval/accuracy": 0.75}, step=5)
    tracker.set_tags({"ray_llava.projector_sha256": "ab"})
    tracker.log_artifacts(tmp_path / "out", "projector")
    tracker.log_artifacts(tmp_path / "out" / "mm_projector.safetensors")
    tracker.finish("FINISHED")
    assert tracker.close() == 0

    (run,) = runs_of(config, tracking_uri)
    experiment = MlflowClient(tracking_uri).get_experiment(run.info.experiment_id)
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    assert run.info.run_id == tracker.run_id
    assert run.info.experiment_id == tracker.experiment_id
    assert (run.info.run_name, run.info.status) == ("tracked", "FINISHED")
    assert run.data.params["training.learning_rate"] == "0.001"
    assert run.data.params["data.shards"] == '["a.tar", "b.tar"]'
    tags = {key: value for key, value in run.data.tags.items() if key.startswith("ray_llava.")}
    assert tags.pop("ray_llava.run_key")
    assert tags == {
        "ray_llava.attempt": "1",
        "ray_llava.stage": "pretrain",
        "ray_llava.run_dir": config.run_dir,
        "ray_llava.note": "x",
        "ray_llava.projector_sha256": "ab",
    }
    assert history(tracking_uri, run.info.run_id, "train/loss") == expected_history(range(5))
    assert [row[:2] for row in history(tracking_uri, run.info.run_id, "eval/accuracy")] == [(5, 0.75)]
    assert run.inputs is not None
    (dataset,) = run.inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.dataset.digest) == ("captions", "d" * 36)
    assert json.loads(dataset.dataset.source)["shards"] == ["/d/a.tar", "/d/b.tar"]
    assert json.loads(dataset.dataset.profile or "") == {"num_samples": 13, "num_shards": 2}
    assert [(tag.key, tag.value) for tag in dataset.tags] == [("mlflow.data.context", "training")]
    artifacts = Path(run.info.artifact_uri.removeprefix("file://"))
    assert (artifacts / "projector" / "mm_projector.safetensors").read_bytes() == b"weights"
    assert (artifacts / "mm_projector.safetensors").read_bytes() == b"weights"
    assert (artifacts / "config" / "attempt-001.yaml").read_text() == config.to_yaml()
    assert artifacts.is_relative_to(Path(tracking_uri.removeprefix("sqlite:///")).parent)


def test_resumed_run_is_the_same_run_with_every_step_once(make_config: MakeConfig, tracking_uri: str) -> None:
    first = track(make_config(seed=3), range(5))
    changed = make_config(seed=5)
    tracker = open_run(tracked_run(changed), tags={}, interval_s=0.05)
    write_steps(changed, range(5, 11))
    assert tracker.close() == 0
    (run,) = runs_of(changed, tracking_uri)
    assert run.info.run_id == first.run_id == tracker.run_id
    assert run.info.status == "RUNNING"
    assert run.data.tags["ray_llava.attempt"] == "2"
    assert run.data.params["seed"] == "3"  # as started; the attempt's own value is in its YAML
    artifacts = Path(run.info.artifact_uri.removeprefix("file://"))
    assert "seed: 5" in (artifacts / "config" / "attempt-002.yaml").read_text()
    assert history(tracking_uri, run.info.run_id, "train/loss") == expected_history(range(11))


def test_run_whose_local_state_is_lost_is_found_again_without_duplicates(
    make_config: MakeConfig, tracking_uri: str
) -> None:
    config = make_config()
    first = track(config, range(5))
    state_path = Path(config.run_dir) / "mlflow.json"
    key = json.loads(state_path.read_text())["run_key"]
    # As if the process had died between the server creating the run and the answer being stored.
    state_path.write_text(json.dumps({"run_key": key, "tracking_uri": tracking_uri}))
    sender = replay(Path(config.run_dir), tracking_uri)
    assert sender.state.run_id == first.run_id
    assert len(runs_of(config, tracking_uri)) == 1
    with sqlite3.connect(tracking_uri.removeprefix("sqlite:///")) as database:
        rows = database.execute("SELECT COUNT(*) FROM metrics WHERE run_uuid = ?", (first.run_id,)).fetchone()
    assert rows == (5,)


def test_deleted_run_gets_a_successor_that_holds_everything(make_config: MakeConfig, tracking_uri: str) -> None:
    config = make_config()
    first = track(config, range(3))
    assert first.run_id is not None
    MlflowClient(tracking_uri).delete_run(first.run_id)
    second = track(config, range(3, 7))
    (run,) = runs_of(config, tracking_uri)
    assert run.info.run_id == second.run_id != first.run_id
    assert history(tracking_uri, run.info.run_id, "train/loss") == expected_history(range(7))


def test_run_deleted_while_it_is_sent_gets_a_successor_that_holds_everything(
    make_config: MakeConfig, tracking_uri: str
) -> None:
    config = make_config()
    open_run(
        tracked_run(config.model_copy(update={"tracking": config.tracking.model_copy(update={"enabled": False})})),
        tags={},
    )
    write_steps(config, range(3))
    sender = replay(Path(config.run_dir), tracking_uri)
    first_id = sender.state.run_id
    assert first_id is not None
    MlflowClient(tracking_uri).delete_run(first_id)
    write_steps(config, range(3, 7))
    with pytest.raises(Exception, match="active"):
        sender.send()
    sender.send()
    sender.artifacts.send()
    assert sender.num_pending() == 0
    (run,) = runs_of(config, tracking_uri)
    assert run.info.run_id != first_id
    assert history(tracking_uri, run.info.run_id, "train/loss") == expected_history(range(7))


def test_more_points_than_one_call_may_carry_all_arrive(make_config: MakeConfig, tracking_uri: str) -> None:
    config = make_config()
    tracker = open_run(tracked_run(config), tags={}, interval_s=0.05)
    write_steps(config, range(211), keys=("train/loss", "b", "c", "d", "e", "f", "g"))
    assert tracker.close() == 0
    assert tracker.run_id is not None
    assert history(tracking_uri, tracker.run_id, "train/loss") == expected_history(range(211))
    assert len(history(tracking_uri, tracker.run_id, "g")) == 211


def test_record_that_the_server_refuses_is_counted_and_does_not_hold_up_the_rest(
    make_config: MakeConfig, tracking_uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    config = make_config(enabled=False)
    tracker = open_run(tracked_run(config), tags={})
    tracker.log_metrics({"no#such?name": 1.0}, step=1)
    tracker.set_tags({"after": "yes"})
    sender = replay(Path(config.run_dir), tracking_uri)
    assert (sender.num_refused, sender.num_pending()) == (1, 0)
    assert "metric 'no#such?name' of step 1 refused and left out" in caplog.text
    (run,) = runs_of(config, tracking_uri)
    assert run.data.tags["after"] == "yes"


def test_metric_that_the_server_refuses_does_not_take_its_batch_with_it(
    make_config: MakeConfig, tracking_uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    config = make_config(enabled=False)
    open_run(tracked_run(config), tags={})
    write_steps(config, range(11), keys=("train/loss", "bad (name)!", "train/lr"))
    sender = replay(Path(config.run_dir), tracking_uri)
    assert (sender.num_refused, sender.num_pending()) == (11, 0)
    (run,) = runs_of(config, tracking_uri)
    assert history(tracking_uri, run.info.run_id, "train/loss") == expected_history(range(11))
    assert len(history(tracking_uri, run.info.run_id, "train/lr")) == 11
    assert caplog.text.count("metric 'bad (name)!' of step") == 1


def test_sections_of_the_charts_begin_with_the_loss(make_config: MakeConfig, tracking_uri: str) -> None:
    config = make_config(enabled=False)
    open_run(tracked_run(config), tags={})
    write_steps(config, range(2), keys=("perf/mfu", "perf_mean/mfu", "data/samples_trained", "train/loss"))
    replay(Path(config.run_dir), tracking_uri)
    (run,) = runs_of(config, tracking_uri)
    sections = sorted({name.split("/")[0] for name in run.data.metrics})
    assert sections == ["train", "train_data", "train_perf", "train_perf_mean"]


def test_run_describes_itself_and_keeps_its_lineage(make_config: MakeConfig, tracking_uri: str) -> None:
    config = make_config(enabled=False)
    open_run(tracked_run(config), tags={"mlflow.note.content": "Projector from elsewhere."})
    replay(Path(config.run_dir), tracking_uri)
    (run,) = runs_of(config, tracking_uri)
    note = run.data.tags["mlflow.note.content"]
    assert note.startswith("**pretrain** of `tracked`: trains the projector.")
    assert "Language model `lm`, vision tower `tower`" in note
    assert note.endswith("Projector from elsewhere.")


def test_deleted_experiment_says_what_to_do_and_keeps_everything(make_config: MakeConfig, tracking_uri: str) -> None:
    config = make_config(enabled=False)
    open_run(tracked_run(config), tags={})
    client = MlflowClient(tracking_uri)
    experiment_id = client.create_experiment(config.tracking.experiment)
    client.delete_experiment(experiment_id)
    with pytest.raises(ValueError, match=r"was deleted and takes no runs: restore it .* or set tracking\.experiment"):
        replay(Path(config.run_dir), tracking_uri)
    client.restore_experiment(experiment_id)
    assert replay(Path(config.run_dir), tracking_uri).num_pending() == 0


def test_tracking_switched_off_sends_nothing_until_it_is_replayed(make_config: MakeConfig, tracking_uri: str) -> None:
    config = make_config(enabled=False)
    tracker = track(config, range(3))
    assert (tracker.tracking_uri, tracker.run_id) == (None, None)
    assert runs_of(config, tracking_uri) == []
    replay(Path(config.run_dir), tracking_uri)
    (run,) = runs_of(config, tracking_uri)
    assert run.info.status == "FINISHED"
    assert history(tracking_uri, run.info.run_id, "train/loss") == expected_history(range(3))


@pytest.fixture
def silent_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server that takes connections and never answers."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_server_that_never_answers_leaves_the_records_pending_for_a_replay(
    make_config: MakeConfig, tracking_uri: str, silent_server: str
) -> None:
    config = make_config(uri=silent_server)
    tracker = open_run(tracked_run(config), tags={}, interval_s=0.05)
    write_steps(config, range(5))
    tracker.finish("FINISHED")
    assert tracker.close(timeout_s=0.1) == 7  # opening, 5 values, end
    assert tracker.run_id is None
    assert replay(Path(config.run_dir), tracking_uri).num_pending() == 0
    (run,) = runs_of(config, tracking_uri)
    assert history(tracking_uri, run.info.run_id, "train/loss") == expected_history(range(5))


def test_server_dead_for_a_while_does_not_hold_the_end_of_the_run(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        dead = f"http://127.0.0.1:{listener.getsockname()[1]}"
    config = make_config(uri=dead)
    tracker = open_run(tracked_run(config), tags={}, interval_s=0.01)
    write_steps(config, range(5))
    assert tracker._records is not None
    while tracker._records.num_failures < 3:
        time.sleep(0.01)
    assert tracker.close(timeout_s=10_000) == 6  # opening, 5 values


def test_server_that_fails_only_when_the_run_ends_is_given_up_after_a_few_tries(
    make_config: MakeConfig, tracking_uri: str
) -> None:
    class Failing(Sender):
        tried = threading.Event()

        def send(self) -> None:
            self.tried.set()
            raise ConnectionError("refused")

    config = make_config(enabled=False)
    open_run(tracked_run(config), tags={})
    sender = Failing(Path(config.run_dir), tracking_uri)
    tracker = RunTracker(Path(config.run_dir), sender, interval_s=0.5)
    sender.tried.wait()  # the second try comes a second later
    assert tracker.close(timeout_s=20.0) == 1
    assert tracker._records is not None
    assert not tracker._records.thread.is_alive()


def test_locked_database_is_tried_again_until_it_is_free(
    make_config: MakeConfig, tracking_uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    config = make_config()
    tracker = track(config, range(3))
    with sqlite3.connect(tracking_uri.removeprefix("sqlite:///"), isolation_level=None) as database:
        database.execute("BEGIN EXCLUSIVE")
        locked = open_run(tracked_run(config), tags={}, interval_s=0.05)
        write_steps(config, range(3, 7))
        assert locked.close(timeout_s=0.2) == 5
        database.execute("ROLLBACK")
    assert locked.close(timeout_s=120) == 0
    assert tracker.run_id is not None
    assert history(tracking_uri, tracker.run_id, "train/loss") == expected_history(range(7))


def test_replay_of_a_folder_without_a_run_says_so(tmp_path: Path, tracking_uri: str) -> None:
    with pytest.raises(ValueError, match=r"no tracked run here \(tracking.jsonl is missing\)"):
        replay(tmp_path, tracking_uri)


def test_unreadable_state_is_recovered_from_the_newest_checkpoint_and_the_run_goes_on(
    make_config: MakeConfig, tracking_uri: str
) -> None:
    config = make_config()
    run_dir = Path(config.run_dir)
    first = track(config, range(3))
    known = json.loads((run_dir / "mlflow.json").read_text())
    names = ("run_key", "run_id", "experiment_id", "tracking_uri")
    store = CheckpointStore(run_dir / "checkpoints", 5)
    store.save(2, {"model": {"w": torch.ones(3)}}, {"mlflow": {name: known[name] for name in names}})
    store.save(3, {"model": {"w": torch.ones(3)}}, {"mlflow": {}})
    (run_dir / "mlflow.json").write_bytes(b"")
    second = track(config, range(3, 5))
    assert second.run_id == first.run_id
    assert len(runs_of(config, tracking_uri)) == 1
    assert first.run_id is not None
    assert history(tracking_uri, first.run_id, "train/loss") == expected_history(range(5))


def test_replay_of_a_run_that_is_held_is_refused_naming_the_holder(make_config: MakeConfig, tracking_uri: str) -> None:
    config = make_config()
    track(config, range(2))
    with hold_run(Path(config.run_dir)), pytest.raises(RunHeldError, match=f"held by process {os.getpid()}"):
        replay(Path(config.run_dir), tracking_uri)
    assert replay(Path(config.run_dir), tracking_uri).num_pending() == 0
