"""Every byte of a checkpoint against its manifest, and which checkpoint a run continues from."""

from __future__ import annotations

import hashlib
import io
import logging
from pathlib import Path

import pytest

from pipeline.checkpoint import verification
from pipeline.checkpoint.manifest import MANIFEST_NAME, CheckpointError, FileProof, Manifest, encode_manifest
from pipeline.checkpoint.storage import CheckpointStorage, Generation, open_storage
from pipeline.checkpoint.verification import (
    Position,
    check_proof,
    measure,
    newest_verified,
    read_manifest,
    readable_manifests,
    verify,
)

FILES = {"model.safetensors": b"weights", "random.safetensors": b"", "optimizer.safetensors": b"moments"}


@pytest.fixture
def storage(tmp_path: Path) -> CheckpointStorage:
    return open_storage(str(tmp_path / "checkpoints"))


def write(storage: CheckpointStorage, step: int, manifest_step: int | None = None) -> Generation:
    """Commit a checkpoint of three files."""
    place = storage.begin(step, "0001-token")
    proofs = {}
    for name, content in FILES.items():
        with storage.create(place, name) as file:
            file.write(content)
        proofs[name] = FileProof(len(content), hashlib.sha256(content).hexdigest())
    with storage.create(place, MANIFEST_NAME) as file:
        file.write(encode_manifest(Manifest(step if manifest_step is None else manifest_step, proofs, {"mark": step})))
    return Generation(step, storage.commit(place, step))


def path_of(storage: CheckpointStorage, generation: Generation, name: str) -> Path:
    return Path(storage.location) / generation.name / name


def test_verify_sound_checkpoint_returns_its_manifest(storage: CheckpointStorage) -> None:
    generation = write(storage, 3)
    assert verify(storage, generation) == read_manifest(storage, generation)
    assert verify(storage, generation).state == {"mark": 3}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"weightz", "model.safetensors: the content changed since it was written"),
        (b"weight", "model.safetensors has 6 bytes, the manifest says 7"),
        (b"weights!", "model.safetensors has 8 bytes, the manifest says 7"),
        (None, "model.safetensors is missing"),
    ],
)
def test_verify_any_difference_names_the_file(storage: CheckpointStorage, content: bytes | None, message: str) -> None:
    generation = write(storage, 3)
    path = path_of(storage, generation, "model.safetensors")
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"checkpoint {storage.location}/{generation.name}: {message}"):
        verify(storage, generation)


def test_verify_file_that_is_a_folder_is_missing(storage: CheckpointStorage) -> None:
    generation = write(storage, 3)
    path = path_of(storage, generation, "random.safetensors")
    path.unlink()
    path.mkdir()
    with pytest.raises(CheckpointError, match=r"random\.safetensors is missing"):
        verify(storage, generation)


def test_read_manifest_of_another_step_or_missing_is_refused(storage: CheckpointStorage) -> None:
    with pytest.raises(CheckpointError, match="the manifest is that of step 4"):
        read_manifest(storage, write(storage, 3, manifest_step=4))
    generation = write(storage, 5)
    path_of(storage, generation, MANIFEST_NAME).unlink()
    with pytest.raises(CheckpointError, match="manifest missing"):
        read_manifest(storage, generation)


def test_measure_of_several_reads_equals_that_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    content = b"more than one read"
    whole = measure(io.BytesIO(content))
    assert whole == (18, hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(verification, "_CHUNK_BYTES", 5)
    assert measure(io.BytesIO(content)) == whole
    assert measure(io.BytesIO(b"")) == (0, hashlib.sha256(b"").hexdigest())


def test_check_proof_compares_size_and_digest() -> None:
    check_proof(FileProof(3, "a"), FileProof(3, "a"), "here")
    with pytest.raises(CheckpointError, match="here has 3 bytes, the manifest says 4"):
        check_proof(FileProof(3, "a"), FileProof(4, "a"), "here")
    with pytest.raises(CheckpointError, match="here: the content changed"):
        check_proof(FileProof(3, "a"), FileProof(3, "b"), "here")


def test_newest_verified_passes_over_damage_and_names_it(
    storage: CheckpointStorage, caplog: pytest.LogCaptureFixture
) -> None:
    assert newest_verified(storage) is None
    sound, damaged, missing = (write(storage, step) for step in (3, 5, 11))
    assert newest_verified(storage) == Position(missing.name, 11)
    path_of(storage, missing, "model.safetensors").unlink()
    path_of(storage, damaged, "optimizer.safetensors").write_bytes(b"momentz")
    with caplog.at_level(logging.WARNING):
        assert newest_verified(storage) == Position(sound.name, 3)
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2
    assert f"{missing.name}: model.safetensors is missing" in caplog.records[0].getMessage()
    assert f"{damaged.name}: optimizer.safetensors: the content changed" in caplog.records[1].getMessage()


def test_newest_verified_without_a_sound_one_does_not_begin_again(storage: CheckpointStorage) -> None:
    for step in (3, 5):
        path_of(storage, write(storage, step), "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=f"2 checkpoints in {storage.location}"):
        newest_verified(storage)


def test_newest_verified_storage_that_fails_says_nothing_of_the_checkpoint(
    storage: CheckpointStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise PermissionError("no access")

    write(storage, 3)
    monkeypatch.setattr(type(storage), "open", fails)
    with pytest.raises(PermissionError, match="no access"):
        newest_verified(storage)


def test_readable_manifests_are_those_of_sound_manifests_oldest_first(storage: CheckpointStorage) -> None:
    first, broken, last = (write(storage, step) for step in (3, 5, 11))
    path_of(storage, broken, MANIFEST_NAME).write_bytes(b"{")
    path_of(storage, first, "model.safetensors").unlink()  # files are not looked at
    found = readable_manifests(storage)
    assert [(name, manifest.step) for name, manifest in found.items()] == [(first.name, 3), (last.name, 11)]
