"""Bringing a checkpoint from an object store to this machine, once for all ranks on it, verified on the way.

Every rank verifies what it finds here again before it loads it, at the same time as the others.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from pipeline.checkpoint.manifest import MANIFEST_NAME, CheckpointError, FileProof, Manifest, encode_manifest
from pipeline.checkpoint.storage import CheckpointStorage, FolderStorage, Generation
from pipeline.checkpoint.verification import Position, check_proof, measure, read_manifest, verify
from pipeline.run_folder.locks import lock_file

logger = logging.getLogger(__name__)

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
    cache = _cache_folder() / hashlib.sha256(storage.location.encode()).hexdigest()[:16]
    while True:
        with _locked(cache, fcntl.LOCK_SH):
            if _is_sound(cache, generation, manifest):
                return cache / position.name, manifest
            found = _stamp(cache, generation)
        with _locked(cache, fcntl.LOCK_EX):
            if _stamp(cache, generation) == found:  # otherwise another rank has fetched it in the meantime
                _fetch_all(storage, position.name, manifest, cache)
                return cache / position.name, manifest


def _is_sound(cache: Path, generation: Generation, manifest: Manifest) -> bool:
    path = cache / generation.name / MANIFEST_NAME
    if not path.is_file() or path.read_bytes() != encode_manifest(manifest):
        return False
    try:
        verify(FolderStorage(cache), generation)
    except CheckpointError as error:
        logger.warning("copy of a checkpoint on this machine is fetched again: %s", error)
        return False
    return True


def _stamp(cache: Path, generation: Generation) -> tuple[int, int] | None:
    """Return what changes whenever the generation is fetched; None when it is not there."""
    path = cache / generation.name / MANIFEST_NAME
    return (path.stat().st_ino, path.stat().st_mtime_ns) if path.is_file() else None


def _fetch_all(storage: CheckpointStorage, generation: str, manifest: Manifest, cache: Path) -> None:
    for old in [path for path in cache.iterdir() if path.is_dir()]:  # one checkpoint of a run is enough
        shutil.rmtree(old)
    target = cache / generation
    target.mkdir()
    for name, proof in manifest.files.items():
        _fetch(storage, generation, name, proof, target)
    (target / MANIFEST_NAME).write_bytes(encode_manifest(manifest))


def _fetch(storage: CheckpointStorage, generation: str, name: str, proof: FileProof, folder: Path) -> None:
    with storage.open(generation, name) as source, (folder / name).open("wb") as copy:
        shutil.copyfileobj(source, copy, 8 << 20)
    with (folder / name).open("rb") as written:
        check_proof(measure(written), proof, f"checkpoint {storage.location}/{generation}: {name}")


def _cache_folder() -> Path:
    chosen = os.environ.get(CACHE_FOLDER)
    return Path(chosen) if chosen else Path(tempfile.gettempdir()) / f"ray-llava-checkpoints-{os.getuid()}"


@contextmanager
def _locked(folder: Path, how: int) -> Iterator[BinaryIO]:
    """Let one process of this machine at a time into the block (LOCK_EX), or all those that only read (LOCK_SH)."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (folder / "lock").open("a+b") as lock:
        lock_file(lock.fileno(), how, folder / "lock", f"set {CACHE_FOLDER} to a folder on a local disk")
        yield lock
