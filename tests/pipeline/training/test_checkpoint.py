import json
import logging
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from pipeline.training.checkpoint import Checkpoint, CheckpointStore

WRITER = """
import sys, torch
from pathlib import Path
from pipeline.training.checkpoint import CheckpointStore
store = CheckpointStore(Path(sys.argv[1]), keep_last=2)
step = int(sys.argv[2])
while True:
    step += 1
    store.save(step, {"model": {"weight": torch.full((60_000,), float(step))}}, {"mark": step})
    print(step, flush=True)
"""


def save(store: CheckpointStore, step: int) -> None:
    store.save(step, {"model": {"weight": torch.arange(7.0) + step}}, {"mark": f"at {step}"})


def read_latest(store: CheckpointStore) -> Checkpoint:
    latest = store.latest()
    assert latest is not None
    return latest


def test_latest_after_saves_returns_newest_tensors_and_state(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep_last=2)
    assert store.latest() is None
    for step in (3, 11, 101):
        save(store, step)
    latest = read_latest(store)
    assert (latest.step, latest.state["mark"]) == (101, "at 101")
    assert latest.tensors("model")["weight"].tolist() == [101.0 + idx for idx in range(7)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000011", "step-00000101"]


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "append"])
def test_latest_any_damaged_file_falls_back_one_generation_and_says_so(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = CheckpointStore(tmp_path, keep_last=2)
    save(store, 5)
    save(store, 7)
    generator = random.Random(13)
    intact = {path.name: path.read_bytes() for path in (tmp_path / "step-00000007").iterdir()}
    for name, content in intact.items():
        path = tmp_path / "step-00000007" / name
        position = generator.randrange(len(content))
        if damage == "delete":
            path.unlink()
        elif damage == "truncate":
            path.write_bytes(content[:position])
        elif damage == "append":
            path.write_bytes(content + b"x")
        else:
            path.write_bytes(content[:position] + bytes([content[position] ^ 4]) + content[position + 1 :])
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert read_latest(store).step == 5, f"{damage} of {name}, byte {position}, went unnoticed"
        assert "step-00000007" in caplog.text
        path.write_bytes(content)
    assert read_latest(store).step == 7


def test_latest_folder_without_manifest_is_never_read(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep_last=3)
    save(store, 5)
    newer = tmp_path / "step-00000009"
    newer.mkdir()
    (newer / "state.json").write_text(json.dumps({"step": 9}))
    assert read_latest(store).step == 5


def test_latest_storage_that_fails_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = CheckpointStore(tmp_path, keep_last=3)
    save(store, 5)

    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(store.storage, "open", fail)
    with pytest.raises(OSError, match="Input/output error"):
        store.latest()


def test_damaged_checkpoints_ahead_of_the_run_take_no_place_from_sound_ones(tmp_path: Path) -> None:
    before = CheckpointStore(tmp_path, keep_last=2)
    for step in (4, 6):
        save(before, step)
    damaged = tmp_path / "step-00000006" / "model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    store = CheckpointStore(tmp_path, keep_last=1, start_step=read_latest(before).step)
    save(store, 5)
    assert read_latest(store).step == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000005", "step-00000006"]
    save(store, 6)
    assert read_latest(store).step == 6
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000006"]


def test_save_write_error_keeps_previous_checkpoint_and_leaves_no_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CheckpointStore(tmp_path, keep_last=2)
    save(store, 5)

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save(store, 7)
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000005"]
    assert read_latest(store).step == 5


@pytest.mark.chaos
def test_latest_writer_killed_at_random_moments_is_always_readable(tmp_path: Path) -> None:
    seed = 20260
    generator = random.Random(seed)
    last_printed = 0
    for kill in range(6):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path), str(last_printed)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        lines = [process.stdout.readline()]
        time.sleep(generator.uniform(0.0, 0.05))
        process.send_signal(signal.SIGKILL)
        lines += process.stdout.read().splitlines()
        assert process.wait() == -signal.SIGKILL
        last_printed = int([line for line in lines if line.strip()][-1])
        latest = read_latest(CheckpointStore(tmp_path, keep_last=2))
        assert latest.step in (last_printed, last_printed + 1), f"kill {kill}, seed {seed}"
        assert latest.tensors("model")["weight"].unique().tolist() == [float(latest.step)]
