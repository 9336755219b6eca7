import json
import logging
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO

import pytest
import torch

from pipeline.checkpoint import store as store_module
from pipeline.checkpoint.manifest import FileProof
from pipeline.checkpoint.storage import FolderStorage
from pipeline.checkpoint.store import Checkpoint, CheckpointStore, MissingShareError, SaveJob
from pipeline.checkpoint.tensor_file import Piece, write_tensors
from pipeline.parallel import ranks

WRITER = """
import sys, torch
from pathlib import Path
from pipeline.checkpoint.store import CheckpointStore
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


class Undeletable(FolderStorage):
    """A folder of which one checkpoint cannot be removed, as in a bucket without that right."""

    stuck = "step-00000003"

    def remove(self, name: str) -> None:
        if name == self.stuck:
            raise PermissionError(13, "Access denied", name)
        super().remove(name)


def test_save_with_an_old_checkpoint_that_cannot_be_removed_succeeds_says_so_and_tries_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    storage = Undeletable(tmp_path)
    store = CheckpointStore(storage, keep_last=1)
    with caplog.at_level(logging.WARNING):
        for step in (3, 5, 7):
            save(store, step)
    assert read_latest(store).step == 7
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000003", "step-00000007"]
    assert caplog.text.count(f"old checkpoint {tmp_path}/step-00000003 was not removed: [Errno 13] Access denied") == 2
    storage.stuck = "none"
    save(store, 11)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000011"]


def test_save_with_an_old_manifest_that_cannot_be_read_succeeds_says_so_and_keeps_that_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = CheckpointStore(tmp_path, keep_last=1)
    save(store, 3)
    readable = store.storage.open

    def open_most(place: str, name: str) -> AbstractContextManager[BinaryIO]:
        if place == "step-00000003":
            raise OSError(5, "Input/output error")
        return readable(place, name)

    monkeypatch.setattr(store.storage, "open", open_most)
    with caplog.at_level(logging.WARNING):
        save(store, 5)
        save(store, 7)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000003", "step-00000007"]
    assert f"checkpoint {tmp_path}/step-00000003 was not read, so it stays: [Errno 5] Input/output" in caplog.text


def test_save_with_checkpoints_that_cannot_be_listed_succeeds_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = CheckpointStore(tmp_path, keep_last=1)

    def fail() -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched, caplog.at_level(logging.WARNING):
        patched.setattr(store.storage, "generations", fail)
        save(store, 3)
    assert read_latest(store).step == 3
    assert f"{tmp_path} was not listed, so old checkpoints stay" in caplog.text


class Clock:
    """A stand-in for the module `time` and for an event that never comes; it runs only while somebody waits."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.now += seconds

    def is_set(self) -> bool:
        return False


@pytest.mark.parametrize("own_share_s", [1.0, 450.0])
def test_share_that_never_comes_is_given_up_before_a_collective_of_the_other_ranks_gives_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_share_s: float
) -> None:
    clock, store = Clock(), CheckpointStore(tmp_path, keep_last=1)
    monkeypatch.setattr(store_module, "time", clock)
    monkeypatch.setattr(store, "_hurried", clock)
    monkeypatch.setattr(store_module, "_POLL_S", 1.0)

    def write_slowly(stream: BinaryIO, pieces: Mapping[str, Piece]) -> FileProof:
        clock.wait(own_share_s)
        return write_tensors(stream, pieces)

    monkeypatch.setattr(store_module, "write_tensors", write_slowly)
    job = SaveJob(5, {"model": {"w": Piece(torch.ones(2), (0,))}}, {}, num_writers=2)
    with pytest.raises(MissingShareError, match="rank 1 did not write its share"):
        store.write(job)
    assert own_share_s + 30.0 < clock.now < 0.9 * ranks._GROUP_TIMEOUT.total_seconds()
    assert list(tmp_path.iterdir()) == []


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
