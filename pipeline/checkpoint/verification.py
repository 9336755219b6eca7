"""Finding the newest checkpoint whose every byte is what its manifest says. Needs no torch."""

from __future__ import annotations

import hashlib
import logging
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO, NamedTuple

from pipeline.checkpoint.manifest import MANIFEST_NAME, CheckpointError, FileProof, Manifest, decode_manifest
from pipeline.checkpoint.storage import CheckpointStorage, Generation

_CHUNK_BYTES = 8 << 20
_THREADS = 8  # hashing releases the interpreter's lock; a disk or an object store serves several readers faster

_NOT_A_FILE = (FileNotFoundError, IsADirectoryError, NotADirectoryError)

logger = logging.getLogger(__name__)


class Position(NamedTuple):
    """Where a run continues: one verified checkpoint, decided once and passed to all who need it."""

    name: str
    """Generation in the run's checkpoint storage."""
    step: int
    """Optimizer steps done; the next one to run."""


def read_manifest(storage: CheckpointStorage, generation: Generation) -> Manifest:
    """Read a generation's manifest, without looking at the files it speaks of.

    Raises:
        CheckpointError: it is missing, damaged, or that of another step.
        OSError: the storage failed.
    """
    where = f"{storage.location}/{generation.name}"
    try:
        with storage.open(generation.name, MANIFEST_NAME) as file:
            manifest = decode_manifest(file.read(), where)
    except _NOT_A_FILE as error:
        raise CheckpointError(f"checkpoint {where}: manifest missing ({error})") from error
    if manifest.step != generation.step:
        raise CheckpointError(f"checkpoint {where}: the manifest is that of step {manifest.step}")
    return manifest


def verify(storage: CheckpointStorage, generation: Generation) -> Manifest:
    """Check every file of a generation against its manifest, and the manifest against itself.

    Raises:
        CheckpointError: a byte differs or is missing; names the file.
        OSError: the storage failed, which says nothing about the checkpoint.
    """
    manifest = read_manifest(storage, generation)

    def check(entry: tuple[str, FileProof]) -> None:
        name, proof = entry
        where = f"checkpoint {storage.location}/{generation.name}: {name}"
        try:
            with storage.open(generation.name, name) as file:
                found = measure(file)
        except _NOT_A_FILE as error:
            raise CheckpointError(f"{where} is missing ({error})") from error
        check_proof(found, proof, where)

    with ThreadPoolExecutor(_THREADS) as threads:
        list(threads.map(check, manifest.files.items()))
    return manifest


def measure(file: BinaryIO) -> FileProof:
    """Read a file to its end and return its size and digest."""
    digest, size = hashlib.sha256(), 0
    while chunk := file.read(_CHUNK_BYTES):
        digest.update(chunk)
        size += len(chunk)
    return FileProof(size, digest.hexdigest())


def check_proof(found: FileProof, expected: FileProof, where: str) -> None:
    """Compare a file with its manifest entry.

    Raises:
        CheckpointError: they differ.
    """
    if found.size != expected.size:
        raise CheckpointError(f"{where} has {found.size} bytes, the manifest says {expected.size}")
    if found.sha256 != expected.sha256:
        raise CheckpointError(f"{where}: the content changed since it was written")


def newest_verified(storage: CheckpointStorage) -> Position | None:
    """Return the newest checkpoint whose every byte verifies; None when there is not a single one.

    Defective ones are skipped with a warning that names them, never read and never removed.

    Raises:
        CheckpointError: there are checkpoints, and not one of them verifies; the run must not begin again by itself.
        OSError: the storage failed.
    """
    generations = storage.generations()
    for generation in reversed(generations):
        try:
            verify(storage, generation)
        except CheckpointError as error:
            logger.warning("%s; looking at the checkpoint before it", error)
        else:
            return Position(generation.name, generation.step)
    if generations:
        raise CheckpointError(
            f"all {len(generations)} checkpoints in {storage.location} failed verification (listed above). Restore "
            "one from a backup; or, to train from the beginning, remove them or choose another run_dir"
        )
    return None


def readable_manifests(storage: CheckpointStorage) -> dict[str, Manifest]:
    """Return the manifests of all generations with a valid one, oldest first, without reading their files."""
    manifests = {}
    for generation in storage.generations():
        try:
            manifests[generation.name] = read_manifest(storage, generation)
        except CheckpointError:
            continue  # reported when a run looks for a place to continue
    return manifests
