"""Logged models, registry versions and their lineage, from the files of runs to a real MLflow."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.entities import LoggedModel

from pipeline.checkpoint.manifest import MANIFEST_NAME, Manifest, encode_manifest
from pipeline.config import ExperimentConfig
from pipeline.index.dataset import SourceFacts
from pipeline.launch.model_watch import ModelWatch, log_sources
from pipeline.launch.watch import tracked_run
from pipeline.tracking import RunTracker, open_run, replay
from pipeline.tracking.exported import record_export
from tests.pipeline.tracking.servers import Relay, Server
from tests.pipeline.tracking.tracked_runs import MakeConfig, runs_of, write_steps

DIGEST = "5d" * 32
FILES = {"projector": "mm_projector.safetensors", "model": "weights.safetensors"}


def commit(config: ExperimentConfig, step: int, score: float) -> Path:
    folder = Path(config.run_dir) / "checkpoints" / f"step-{step:08d}"
    folder.mkdir(parents=True)
    (folder / MANIFEST_NAME).write_bytes(encode_manifest(Manifest(step, {}, {}, score)))
    return folder


def write_output(config: ExperimentConfig, text: str) -> Path:
    name = "projector" if config.stage == "pretrain" else "model"
    output = Path(config.run_dir) / name / FILES[name]
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(text)
    return output if name == "projector" else output.parent


def train(config: ExperimentConfig, score: float, digest: str = DIGEST) -> RunTracker:
    """Leave behind what a finished run of seven steps does, and send it."""
    tracker = open_run(tracked_run(config), tags={}, interval_s=0.02)
    log_sources(tracker, config.name, digest, [SourceFacts("", digest, ("/d/a.tar",), 11)])
    write_steps(config, range(7))
    with ModelWatch(config, digest, tracker) as watch:
        commit(config, 7, score)
    watch.tell_result(write_output(config, f"score {score}"), with_files=True)
    tracker.finish("FINISHED")
    assert tracker.close() == 0
    return tracker


def other(config: ExperimentConfig, folder: str, **changes: object) -> ExperimentConfig:
    """Return the same config with another run folder and name."""
    run_dir = str(Path(config.run_dir).parent / folder)
    return config.model_copy(update={"run_dir": run_dir, "name": folder, **changes})


def models_of(uri: str, tracker: RunTracker) -> dict[str, LoggedModel]:
    assert tracker.experiment_id is not None
    found = MlflowClient(uri).search_logged_models([tracker.experiment_id], f"source_run_id = '{tracker.run_id}'")
    return {model.name: model for model in found}


def test_every_checkpoint_is_a_model_with_the_metrics_of_its_step_and_data(
    make_config: MakeConfig, tracking_uri: str
) -> None:
    config = make_config()
    tracker = open_run(tracked_run(config), tags={}, interval_s=0.02)
    write_steps(config, range(5), keys=("train/loss", "perf/step_time_s"))
    first = commit(config, 3, 0.75)
    watch = ModelWatch(config, DIGEST, tracker)
    watch._look()
    shutil.rmtree(first)  # as retention does
    commit(config, 5, 0.5)
    watch._look()
    watch._look()
    tracker.finish("KILLED")
    assert tracker.close() == 0

    models = models_of(tracking_uri, tracker)
    assert sorted(models) == ["step-00000003", "step-00000005"]
    assert [models[name].status.value for name in sorted(models)] == ["READY", "READY"]
    assert models["step-00000003"].tags["ray_llava.checkpoint"] == "removed"
    assert models["step-00000005"].tags["ray_llava.checkpoint"].endswith("/checkpoints/step-00000005")
    linked = {(m.key, m.step, m.value, m.dataset_name, m.dataset_digest) for m in models["step-00000005"].metrics or []}
    data = ("tracked-shards", DIGEST[:36])
    assert linked == {("train/loss", 4, 0.2, *data), ("train/loss_smoothed", 4, 0.5, *data)}
    (run,) = runs_of(config, tracking_uri)
    outputs = MlflowClient(tracking_uri).get_run(run.info.run_id).outputs
    assert outputs is not None
    steps = {output.model_id: output.step for output in outputs.model_outputs}
    assert steps == {models["step-00000003"].model_id: 3, models["step-00000005"].model_id: 5}


def test_resumed_run_logs_only_checkpoints_that_are_new(make_config: MakeConfig, tracking_uri: str) -> None:
    config = make_config()
    commit(config, 2, 0.9)
    for _ in range(2):
        tracker = open_run(tracked_run(config), tags={}, interval_s=0.02)
        with ModelWatch(config, DIGEST, tracker):
            pass
        assert tracker.close() == 0
    assert sorted(models_of(tracking_uri, tracker)) == ["step-00000002"]
    assert (Path(config.run_dir) / "tracking.jsonl").read_text().count('"kind":"model"') == 1


def test_registry_leads_from_the_export_over_finetuning_to_pretraining(
    make_config: MakeConfig, tracking_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri)
    pretrain = make_config()
    experiment = pretrain.tracking.experiment.replace("/", "-")
    first = train(pretrain, 0.8)
    parts = pretrain.model.model_copy(update={"pretrain_mm_mlp_adapter": pretrain.run_dir})
    second = train(other(pretrain, "fine", stage="finetune", model=parts), 0.4)
    fine_dir = Path(pretrain.run_dir).parent / "fine"
    told = record_export(fine_dir, fine_dir.parent / "hf.1", {"dtype": "bfloat16"})
    assert told == f"recorded in MLflow as a version of '{experiment}-export'"

    client = MlflowClient(tracking_uri)
    pretrained = client.get_model_version_by_alias(f"{experiment}-pretrain", "pretrained")
    best = client.get_model_version_by_alias(f"{experiment}-finetune", "best")
    exported = client.get_model_version_by_alias(f"{experiment}-export", "exported")
    assert (pretrained.run_id, best.run_id, exported.run_id) == (first.run_id, second.run_id, second.run_id)
    assert best.tags["ray_llava.made_from"] == f"models:/{experiment}-pretrain/1"
    assert exported.tags["ray_llava.made_from"] == f"models:/{experiment}-finetune/1"
    assert exported.tags["ray_llava.location"] == str(fine_dir.parent / "hf.1")
    assert second.run_id is not None
    inputs = client.get_run(second.run_id).inputs
    assert inputs is not None
    projector = models_of(tracking_uri, first)["projector"]
    assert [entry.model_id for entry in inputs.model_inputs] == [projector.model_id]
    place = mlflow.artifacts.download_artifacts(f"runs:/{second.run_id}/model", tracking_uri=tracking_uri)
    assert (Path(place) / "weights.safetensors").read_text() == "score 0.4"
    assert (Path(projector.artifact_location.removeprefix("file://")) / FILES["projector"]).is_file()


def test_alias_best_stays_with_the_lowest_loss_on_the_same_data_and_pretrained_with_the_newest(
    make_config: MakeConfig, tracking_uri: str
) -> None:
    config = make_config()
    name = f"{config.tracking.experiment.replace('/', '-')}-pretrain"
    client = MlflowClient(tracking_uri)
    best = []
    for number, (score, digest) in enumerate([(0.5, DIGEST), (0.7, DIGEST), (0.1, "00" * 32), (0.3, DIGEST)], 1):
        train(other(config, f"run{number}"), score, digest)
        best.append(client.get_model_version_by_alias(name, "best").version)
        assert str(client.get_model_version_by_alias(name, "pretrained").version) == str(number)
    assert [str(version) for version in best] == ["1", "1", "1", "4"]
    # sending a run again neither adds a version nor takes an alias back
    state = Path(config.run_dir).parent / "run1" / "mlflow.json"
    state.write_text(json.dumps({**json.loads(state.read_text()), "num_operations": 0}))
    assert replay(state.parent, tracking_uri).num_pending() == 0
    assert len(client.search_model_versions(f"name = '{name}'")) == 4
    assert str(client.get_model_version_by_alias(name, "pretrained").version) == "4"


def test_every_source_of_a_mix_is_an_input_with_its_own_digest_and_so_is_the_mix(
    make_config: MakeConfig, tracking_uri: str
) -> None:
    config = make_config()
    tracker = open_run(tracked_run(config), tags={}, interval_s=0.02)
    sources = [SourceFacts("captions", "aa" * 32, ("/d/a.tar",), 11), SourceFacts("vqa", "bb" * 32, ("/d/b.tar",), 13)]
    log_sources(tracker, config.name, DIGEST, sources)
    assert tracker.close() == 0
    (run,) = runs_of(config, tracking_uri)
    assert run.inputs is not None
    found = {(entry.dataset.name, entry.dataset.digest) for entry in run.inputs.dataset_inputs}
    assert found == {("captions", "aa" * 18), ("vqa", "bb" * 18), ("tracked-shards", DIGEST[:36])}


@pytest.mark.parametrize(("refused", "status"), [("/registered-models", 403), ("/logged-models", 404)])
def test_server_without_a_registry_or_without_logged_models_gets_the_result_all_the_same(
    make_config: MakeConfig, mlflow_server: Server, refused: str, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server.uri)
    relay = Relay(mlflow_server)
    relay.refused_path, relay.refused_status = refused, status
    try:
        config = other(make_config(uri=relay.uri), "fine", stage="finetune")
        tracker = train(config, 0.4)
    finally:
        relay.close()
    assert relay.num_refused > 0
    client = MlflowClient(mlflow_server.uri)
    assert tracker.run_id is not None
    run = client.get_run(tracker.run_id)
    assert run.info.status == "FINISHED"
    place = mlflow.artifacts.download_artifacts(f"runs:/{tracker.run_id}/model", tracking_uri=mlflow_server.uri)
    assert (Path(place) / "weights.safetensors").read_text() == "score 0.4"
    assert client.search_model_versions(f"run_id = '{tracker.run_id}'") == []
