"""Checkpoints as transactions: a folder counts only once its manifest, written last, proves every byte of it.

Weights, optimizer and RNG tensors in safetensors, everything else in JSON, never pickle. Order of a save: write into
a temporary folder, fsync each file, write and fsync the manifest (sizes, sha256), rename the folder, fsync its
parent. A process killed anywhere in between leaves the previous checkpoint untouched.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

_MANIFEST = "MANIFEST.json"
_STATE = "state.json"
_FORMAT = 1

logger = logging.getLogger(__name__)


class CheckpointError(ValueError):
    """A checkpoint folder does not hold what its manifest says."""


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint folder."""

    folder: Path
    step: int
    """Optimizer steps done; the next one to run."""
    state: dict[str, Any]
    """Everything that is no tensor: fingerprints, counters, config."""

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Load a group of tensors that was saved under `name`, on the CPU."""
        return load_file(self.folder / f"{name}.safetensors")


class CheckpointStore:
    """The checkpoints of one run folder."""

    def __init__(self, folder: Path, keep_last: int) -> None:
        """Use `folder`, keeping the newest `keep_last` checkpoints."""
        self._folder, self._keep_last = folder, keep_last

    def save(self, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> Path:
        """Write a checkpoint; returns its folder once it is durable.

        Args:
            step: optimizer steps done.
            tensors: groups of tensors, one safetensors file each.
            state: JSON-serialisable facts.

        Raises:
            OSError: the file system refused (full, read-only); earlier checkpoints are untouched.
        """
        target = self._folder / f"step-{step:08d}"
        temporary = self._folder / f".tmp-step-{step:08d}"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            for name, group in tensors.items():
                save_file(dict(group), temporary / f"{name}.safetensors")
            (temporary / _STATE).write_text(json.dumps({**state, "step": step}, indent=1))
            _seal(temporary, step)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        shutil.rmtree(target, ignore_errors=True)  # only ever a defective folder, or the same step computed again
        temporary.rename(target)
        _fsync(self._folder)
        self._prune()
        return target

    def latest(self) -> Checkpoint | None:
        """Return the newest checkpoint whose every byte verifies; None when there is none.

        Defective folders are skipped with a warning that names them, never read and never deleted.
        """
        for folder in reversed(self._folders()):
            try:
                return _verify(folder)
            except CheckpointError as error:
                logger.warning("%s; falling back to the checkpoint before it", error)
        return None

    def _folders(self) -> list[Path]:
        return sorted(self._folder.glob("step-????????")) if self._folder.is_dir() else []

    def _prune(self) -> None:
        for folder in self._folders()[: -self._keep_last]:
            shutil.rmtree(folder, ignore_errors=True)


def _seal(folder: Path, step: int) -> None:
    files = {}
    for path in sorted(folder.iterdir()):
        _fsync(path)
        files[path.name] = {"size": path.stat().st_size, "sha256": _sha256(path)}
    body = {"format": _FORMAT, "step": step, "files": files}
    manifest = folder / _MANIFEST
    manifest.write_text(json.dumps({"body": body, "sha256": _body_digest(body)}, indent=1))
    _fsync(manifest)
    _fsync(folder)


def _verify(folder: Path) -> Checkpoint:
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
    return Checkpoint(folder, step, json.loads((folder / _STATE).read_text()))


def _body_digest(body: Any) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
