"""The same checkpoints in a folder and on an object store."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import BinaryIO

import boto3
import pytest
import torch
from moto.server import ThreadedMotoServer

from pipeline.checkpoint import store as store_module
from pipeline.checkpoint.cache import CACHE_FOLDER
from pipeline.checkpoint.manifest import MANIFEST_NAME
from pipeline.checkpoint.storage import CheckpointStorage, ObjectStorage, open_storage
from pipeline.checkpoint.store import Checkpoint, CheckpointStore, MissingShareError, SaveJob
from pipeline.checkpoint.tensor_file import Piece
from pipeline.checkpoint.verification import newest_verified


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """Return the URL of an empty bucket; `%s` is the place of a prefix."""
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    keys = {"aws_access_key_id": "id", "aws_secret_access_key": "key", "region_name": "us-east-1"}
    boto3.client("s3", endpoint_url=f"http://{host}:{port}", **keys).create_bucket(Bucket="runs")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ACCESS_KEY_ID", "id")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "key")
        yield f"s3://runs/%s?scheme=http&endpoint_override={host}:{port}&region=us-east-1"
    server.stop()


@pytest.fixture(params=["folder", "objects"])
def location(request: pytest.FixtureRequest, tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv(CACHE_FOLDER, str(tmp_path / "cache"))
    return str(tmp_path / "checkpoints") if request.param == "folder" else bucket % f"{tmp_path.name}/checkpoints"


def save(store: CheckpointStore, step: int, score: float | None = None) -> str:
    group = {"weight": torch.arange(7.0) + step, "step": torch.tensor(float(step))}
    return store.save(step, {"model": group}, {"mark": f"at {step}"}, score)


def damage(storage: CheckpointStorage, name: str, file: str) -> None:
    with storage.open(name, file) as source:
        content = bytearray(source.read())
    content[len(content) // 2] ^= 4
    with storage.create(name, file) as target:
        target.write(bytes(content))


def read_latest(store: CheckpointStore) -> Checkpoint:
    latest = store.latest()
    assert latest is not None
    return latest


def test_store_returns_what_was_saved_and_keeps_the_newest_and_the_best(location: str) -> None:
    store = CheckpointStore(location, keep_last=2, keep_best=1)
    assert store.latest() is None
    for step, score in ((2, 0.5), (3, 0.7), (5, 0.6), (7, None), (11, 0.9)):
        save(store, step, score)
    latest = read_latest(store)
    assert (latest.step, latest.state["mark"]) == (11, "at 11")
    assert latest.tensors("model")["weight"].tolist() == [11.0 + idx for idx in range(7)]
    assert latest.tensors("model")["step"].item() == 11.0
    assert [generation.step for generation in store.storage.generations()] == [2, 7, 11]


@pytest.mark.parametrize("file", ["model.safetensors", MANIFEST_NAME])
def test_newest_with_a_flipped_bit_is_passed_over_saying_so(
    location: str, file: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = CheckpointStore(location, keep_last=2)
    save(store, 3)
    name = save(store, 5)
    read_latest(store)  # whatever was fetched before must not hide the damage
    damage(store.storage, name, file)
    with caplog.at_level(logging.WARNING):
        assert read_latest(store).step == 3
    assert name in caplog.text


def test_fetched_copy_with_a_flipped_bit_is_fetched_again_saying_so(
    tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(CACHE_FOLDER, str(tmp_path / "cache"))
    store = CheckpointStore(bucket % f"{tmp_path.name}/checkpoints", keep_last=2)
    save(store, 5)
    copy = read_latest(store).folder / "model.safetensors"
    sound, written = copy.read_bytes(), copy.stat().st_ino
    assert read_latest(store).folder == copy.parent
    assert copy.stat().st_ino == written
    assert "fetched again" not in caplog.text
    copy.write_bytes(sound[:-2] + bytes([sound[-2] ^ 4]) + sound[-1:])
    with caplog.at_level(logging.WARNING):
        assert read_latest(store).tensors("model")["weight"].tolist() == [5.0 + idx for idx in range(7)]
    assert copy.read_bytes() == sound
    assert f"is fetched again: checkpoint {copy.parent}: model.safetensors: the content changed" in caplog.text


def test_writer_that_died_leaves_no_checkpoint_and_its_remains_are_swept(location: str) -> None:
    store = CheckpointStore(location, keep_last=2)
    save(store, 3)
    place = store.storage.begin(5, "0001-dead")
    with store.storage.create(place, "model.safetensors") as file:
        file.write(b"half")
    assert read_latest(store).step == 3
    store.storage.sweep()
    assert not store.storage.exists(place, "model.safetensors")
    assert read_latest(store).step == 3


def test_shares_of_three_ranks_become_one_checkpoint_that_any_rank_reads(location: str) -> None:
    whole = torch.arange(11.0 * 3).reshape(11, 3)
    bounds = (0, 4, 8, 11)
    stores = [CheckpointStore(location, keep_last=2) for _ in range(3)]

    def write(rank: int) -> None:
        piece = Piece(whole[bounds[rank] : bounds[rank + 1]].clone(), (bounds[rank], 0))
        groups = {"model": {"w": piece} | ({"b": Piece(torch.ones(2), (0,))} if rank == 0 else {})}
        stores[rank].write(SaveJob(13, groups, {"mark": 1}, token="0001-same", rank=rank, num_writers=3))

    threads = [threading.Thread(target=write, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    latest = read_latest(stores[0])
    assert torch.equal(latest.tensors("model")["w"], whole)
    assert latest.tensors("model")["b"].tolist() == [1.0, 1.0]
    position = newest_verified(stores[1].storage)
    assert position is not None
    assert torch.equal(stores[2].open(position).tensors("model")["w"], whole)


def test_share_that_never_comes_fails_the_save_and_keeps_the_one_before(location: str) -> None:
    store = CheckpointStore(location, keep_last=2)
    save(store, 3)
    store.hurry()
    with pytest.raises(OSError, match="rank 1 did not write its share"):
        store.write(SaveJob(5, {"model": {"w": Piece(torch.ones(2), (0,))}}, {}, num_writers=2))
    assert [generation.step for generation in store.storage.generations()] == [3]
    assert read_latest(store).step == 3


def fail_on(storage: CheckpointStorage, ending: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a storage refuse files whose names end so."""
    original = storage.create

    def create(place: str, name: str) -> AbstractContextManager[BinaryIO]:
        if name.endswith(ending):
            raise OSError(28, "No space left on device", name)
        return original(place, name)

    monkeypatch.setattr(storage, "create", create)


def test_share_that_cannot_be_written_ends_the_save_on_rank_0_with_the_error_of_its_rank(
    location: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, third = CheckpointStore(location, keep_last=2), CheckpointStore(location, keep_last=2)
    save(first, 3)
    fail_on(third.storage, "model-00002.safetensors", monkeypatch)
    jobs = [
        SaveJob(5, {"model": {"w": Piece(torch.ones(2), (0,))}}, {}, token="0001-same", rank=rank, num_writers=3)
        for rank in range(3)
    ]
    with pytest.raises(OSError, match="No space left on device"):
        third.write(jobs[2])
    with pytest.raises(MissingShareError, match=r"rank 2 could not write its share: .* No space left on device"):
        first.write(jobs[0])  # though rank 1 has not written anything yet
    assert [generation.step for generation in first.storage.generations()] == [3]
    assert not first.storage.exists(first.storage.begin(5, "0001-same"), "part-00002.json")


def test_share_that_is_proved_stays_proved_whatever_its_rank_meets_afterwards(
    location: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores = [CheckpointStore(location, keep_last=2) for _ in range(2)]
    jobs = [
        SaveJob(5, {"model": {f"w{rank}": Piece(torch.ones(2), (0,))}}, {}, token="0001-same", rank=rank, num_writers=2)
        for rank in range(2)
    ]

    def fail(moment: str) -> None:
        if moment == "checkpoint.part_written":
            raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(store_module, "reached", fail)
        with pytest.raises(OSError, match="Input/output error"):
            stores[1].write(jobs[1])
    stores[0].write(jobs[0])
    assert sorted(read_latest(stores[0]).specs("model")) == ["w0", "w1"]


@pytest.mark.parametrize("refused", ["model.safetensors", MANIFEST_NAME])
def test_save_that_fails_tells_why_whatever_was_written_before(
    location: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, refused: str
) -> None:
    store = CheckpointStore(location, keep_last=2)
    fail_on(store.storage, refused, monkeypatch)
    with caplog.at_level(logging.WARNING), pytest.raises(OSError, match="No space left on device"):
        save(store, 3)
    assert store.storage.generations() == []
    assert [record.message for record in caplog.records if record.name.startswith("pipeline")] == []


def test_save_that_fails_tells_why_also_when_its_remains_cannot_be_removed(
    tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    storage = ObjectStorage(bucket % f"{tmp_path.name}/checkpoints")
    store = CheckpointStore(storage, keep_last=2)
    fail_on(storage, MANIFEST_NAME, monkeypatch)

    def delete_dir(path: str) -> None:
        raise PermissionError(13, "Access denied", path)

    refusing = SimpleNamespace(open_output_stream=storage._filesystem.open_output_stream, delete_dir=delete_dir)
    monkeypatch.setattr(storage, "_filesystem", refusing)
    with caplog.at_level(logging.WARNING), pytest.raises(OSError, match="No space left on device"):
        save(store, 3)
    assert "was left behind, the next start removes it: [Errno 13] Access denied" in caplog.text


class Unsendable(BytesIO):
    """An upload that fails when it is to be completed."""

    def close(self) -> None:
        raise OSError(5, "the upload was not completed")


def test_upload_that_cannot_be_completed_does_not_hide_why_writing_it_failed(
    tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CheckpointStore(bucket % f"{tmp_path.name}/checkpoints", keep_last=2)
    filesystem = SimpleNamespace(open_output_stream=lambda _path: Unsendable(), delete_dir=lambda _path: None)
    monkeypatch.setattr(store.storage, "_filesystem", filesystem)
    with pytest.raises(OSError, match="the upload was not completed"):
        save(store, 3)

    def fail(*_: object) -> None:
        raise OSError(13, "Access denied")

    monkeypatch.setattr(store_module, "write_tensors", fail)
    with pytest.raises(OSError, match="Access denied"):
        save(store, 3)


def test_storage_refuses_other_schemes() -> None:
    with pytest.raises(ValueError, match="expected a local path, s3:// or gs://"):
        open_storage("http://host/folder")


def test_object_storage_writes_the_manifest_last(location: str, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = open_storage(location)
    created: list[str] = []
    original = storage.create

    def create(place: str, name: str) -> AbstractContextManager[BinaryIO]:
        created.append(name)
        return original(place, name)

    monkeypatch.setattr(storage, "create", create)
    CheckpointStore(storage, keep_last=2).save(3, {"model": {"w": torch.ones(3)}, "random": {"r": torch.ones(1)}}, {})
    assert created[-1] == MANIFEST_NAME
    assert sorted(created) == sorted([MANIFEST_NAME, "model.safetensors", "random.safetensors"])
