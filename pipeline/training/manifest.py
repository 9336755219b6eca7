"""The manifest of a checkpoint folder: proof, written last, of every byte in it; and the search for the newest proof.

Needs no torch, so that the data stream can learn a run's position without loading it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any, NamedTuple

CHECKPOINT_FOLDER = "checkpoints"
_MANIFEST = "MANIFEST.json"
_FORMAT = 1

logger = logging.getLogger(__name__)


class CheckpointError(ValueError):
    """A checkpoint folder does not hold what its manifest says."""


class VerifiedFolder(NamedTuple):
    """A checkpoint folder whose every byte was verified."""

    path: Path
    step: int
    """Optimizer steps done; the next one to run."""


def seal(folder: Path, step: int) -> None:
    """Make every file of a folder durable, then prove them by a manifest that is written last."""
    files = {}
    for path in sorted(folder.iterdir()):
        fsync(path)
        files[path.name] = {"size": path.stat().st_size, "sha256": _sha256(path)}
    body = {"format": _FORMAT, "step": step, "files": files}
    manifest = folder / _MANIFEST
    manifest.write_text(json.dumps({"body": body, "sha256": _body_digest(body)}, indent=1))
    fsync(manifest)
    fsync(folder)


def verify(folder: Path) -> VerifiedFolder:
    """Check every file of a folder against its manifest, and the manifest against itself.

    Raises:
        CheckpointError: a byte differs or is missing; names the file.
    """
    try:
        manifest = json.loads((folder / _MANIFEST).read_text())
        body = manifest["body"]
        if manifest["sha256"] != _body_digest(body):
            raise CheckpointError(f"checkpoint {folder}: the manifest changed since it was written")
        if body["format"] != _FORMAT:
            raise CheckpointError(f"checkpoint {folder}: format {body['format']!r}, this version reads {_FORMAT}")
        expected = {name: (entry["size"], entry["sha256"]) for name, entry in body["files"].items()}
        step = int(body["step"])
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"checkpoint {folder}: manifest missing or unreadable ({error})") from error
    for name, (size, digest) in expected.items():
        path = folder / name
        found = path.stat().st_size if path.is_file() else -1
        if found != size:
            raise CheckpointError(f"checkpoint {folder}: {name} has {found} bytes, the manifest says {size}")
        if _sha256(path) != digest:
            raise CheckpointError(f"checkpoint {folder}: the content of {name} changed since it was written")
    return VerifiedFolder(folder, step)


def checkpoint_folders(parent: Path) -> list[Path]:
    """Return the checkpoint folders in `parent`, oldest first, verified or not."""
    return sorted(parent.glob("step-????????")) if parent.is_dir() else []


def newest_verified(parent: Path) -> VerifiedFolder | None:
    """Return the newest checkpoint whose every byte verifies; None when there is none.

    Defective folders are skipped with a warning that names them, never read and never deleted.
    """
    for folder in reversed(checkpoint_folders(parent)):
        try:
            return verify(folder)
        except CheckpointError as error:
            logger.warning("%s; falling back to the checkpoint before it", error)
    return None


def steps_done(parent: Path) -> int:
    """Return the optimizer steps that the newest verified checkpoint holds, 0 without one."""
    newest = newest_verified(parent)
    return newest.step if newest else 0


def fsync(path: Path) -> None:
    """Make a file's content, or a folder's list of names, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _body_digest(body: Any) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
