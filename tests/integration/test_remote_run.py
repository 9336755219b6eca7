"""Runs whose folder is in object storage, as a user starts them."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from safetensors.numpy import load
from typer.testing import CliRunner

from jobs.cli import app
from jobs.failures import classify
from pipeline.config import load_config
from pipeline.launch.run import run_training
from pipeline.run_folder.held import RunHeldError
from pipeline.run_folder.log_parts import LogParts
from pipeline.run_folder.place import shown
from pipeline.storage.objects import ObjectFolder
from tests.integration.conftest import WriteConfig
from tests.integration.runs import losses, start
from tests.pipeline.shards.object_store import BUCKET, FaultRelay, serve_bucket


class Store(NamedTuple):
    url: str
    client: Any
    environment: dict[str, str]


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    with serve_bucket() as (port, client):
        endpoint = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_DEFAULT_REGION": "us-east-1"}
        with pytest.MonkeyPatch.context() as environment:
            for name, value in endpoint.items():
                environment.setenv(name, value)
            yield Store(f"s3://{BUCKET}/runs", client, endpoint)


def remote_losses(url: str) -> list[tuple[int, float]]:
    lines = LogParts("metrics.jsonl").read_new(ObjectFolder(url), b"").splitlines()
    return [(entry["step"], entry["metrics"]["train/loss"]) for entry in map(json.loads, lines)]


def assert_equal(url: str, calm: Path) -> None:
    """Bitwise: same losses step by step, same final weights."""
    assert remote_losses(url) == losses(calm)
    name = "projector/mm_projector.safetensors"
    ours, theirs = load(ObjectFolder(url).read(name).content), load((calm / name).read_bytes())
    assert {key: value.tobytes() for key, value in ours.items()} == {
        key: value.tobytes() for key, value in theirs.items()
    }


@pytest.mark.chaos
def test_killed_run_in_object_storage_continues_bit_for_bit(
    store: Store, write_config: WriteConfig, tmp_path: Path
) -> None:
    config, url = str(write_config("calm")), f"{store.url}/killed one"
    run_training(load_config(config))
    process = start("jobs", "pretrain", "--config", config, f"run_dir={url}")
    while len(remote_losses(url)) < 3:
        time.sleep(0.05)
        assert process.poll() is None, process.communicate()[0]
    process.send_signal(signal.SIGSTOP)
    with pytest.raises(RunHeldError, match=rf"run folder {url} is held by process {process.pid} on "):
        run_training(load_config(config, [f"run_dir={url}"]))
    process.kill()
    process.wait()
    finished = run_training(load_config(config, [f"run_dir={url}"]))
    assert shown(finished.output) == f"{url}/projector/mm_projector.safetensors"
    assert_equal(url, tmp_path / "calm")
    assert [entry.key for entry in ObjectFolder(url).list("lease/")] == ["lease/00000001", "lease/00000002"]
    # what reads runs takes the URL too
    follow = [f"model.pretrain_mm_mlp_adapter={url}", f"run_dir={url} 2"]
    run_training(load_config(write_config("next", "finetune"), follow))
    told = CliRunner().invoke(app, ["generate", f"{url} 2", "What is this?", "--max-new-tokens", "2"])
    assert (told.exit_code, bool(told.output.strip())) == (0, True), told.output
    told = CliRunner().invoke(app, ["doctor", "--config", config, f"run_dir={url}"], env={"COLUMNS": "200"})
    assert "no process holds the run" in told.output
    told = CliRunner().invoke(app, ["mlflow-replay", url])
    assert f"{url}: no tracked run here" in str(told.exception)


VERBS = [
    ("pretrain",), ("pretrain", "--dry-run"), ("plan",), ("index",), ("doctor",), ("cache-features",),
    ("inspect", "--step", "0"),
]  # fmt: skip


def test_store_without_conditional_writes_is_refused_by_every_verb_in_the_same_words(
    store: Store, write_config: WriteConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    relay = FaultRelay(int(store.environment["AWS_ENDPOINT_URL"].rpartition(":")[2]))
    relay.ignores_conditions = True
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{relay.port}")
    config, url = str(write_config("x")), f"{store.url}/unsafe"
    for verb, *options in VERBS:
        arguments = [verb, "--config", config, *options, f"run_dir={url}", "data.feature_cache=/nowhere"]
        told = CliRunner().invoke(app, arguments, env={"COLUMNS": "1000"})
        said = told.output + str(told.exception)
        assert f"run_dir {url}: this object store has no conditional writes" in said, (verb, said)
        assert told.exception is not None
        assert told.exit_code == 2 or classify(told.exception).exit_code == 2
    relay.close()
    assert ObjectFolder(url).list() == []
