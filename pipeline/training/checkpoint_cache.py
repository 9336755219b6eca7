"""Bringing a checkpoint from an object store to this machine, once for all ranks on it, verified on the way."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from pipeline.training.checkpoint_storage import CheckpointStorage, FolderStorage, Generation
from pipeline.training.manifest import MANIFEST_NAME, FileProof, Manifest, encode_manifest
from pipeline.training.verification import Position, check_proof, measure, read_manifest

CACHE_FOLDER = "RAY_LLAVA_CHECKPOINT_CACHE"
"""Environment variable: where fetched checkpoints go; the default is a folder of this user in the temporary folder."""


def local_folder(storage: CheckpointStorage, position: Position) -> tuple[Path, Manifest]:
    """Return a local folder with the files of a checkpoint, and its manifest.

    Raises:
        CheckpointError: what arrived is not what the manifest says.
    """
    generation = Generation(position.step, position.name)
    manifest = read_manifest(storage, generation)
    if isinstance(storage, FolderStorage):
        return storage.folder / position.name, manifest
    content = encode_manifest(manifest)
    cache = _cache_folder() / hashlib.sha256(storage.location.encode()).hexdigest()[:16]
    target = cache / position.name
    with _exclusive(cache):
        if not (target / MANIFEST_NAME).is_file() or (target / MANIFEST_NAME).read_bytes() != content:
            for old in [path for path in cache.iterdir() if path.is_dir()]:  # one checkpoint of a run is enough
                shutil.rmtree(old)
            target.mkdir()
            for name, proof in manifest.files.items():
                _fetch(storage, position.name, name, proof, target)
            (target / MANIFEST_NAME).write_bytes(content)
    return target, manifest


def _fetch(storage: CheckpointStorage, generation: str, name: str, proof: FileProof, folder: Path) -> None:
    with storage.open(generation, name) as source, (folder / name).open("wb") as copy:
        shutil.copyfileobj(source, copy, 8 << 20)
    with (folder / name).open("rb") as written:
        check_proof(measure(written), proof, f"checkpoint {storage.location}/{generation}: {name}")


def _cache_folder() -> Path:
    chosen = os.environ.get(CACHE_FOLDER)
    return Path(chosen) if chosen else Path(tempfile.gettempdir()) / f"ray-llava-checkpoints-{os.getuid()}"


@contextmanager
def _exclusive(folder: Path) -> Iterator[BinaryIO]:
    """Let one process of this machine at a time into the block."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (folder / "lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock
