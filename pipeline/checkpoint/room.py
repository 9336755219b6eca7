"""Room for checkpoints on a disk: what they take, as measured on the newest one or estimated, and what is free."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from pipeline.checkpoint.storage import CheckpointStorage, FolderStorage
from pipeline.checkpoint.verification import readable_manifests

_FIRST: Final = 2.5
"""Checkpoints that a new run needs room for: the newest, the one being written, and the rest of its files."""
_NEXT: Final = 1.5
"""The same of a run that has one already."""


class Room(NamedTuple):
    """What a disk has and what a run needs there."""

    folder: Path
    """Nearest existing folder of where checkpoints go."""
    free_bytes: int
    checkpoint_bytes: int
    """0 when unknown."""
    is_measured: bool
    """On a checkpoint of the run; else estimated."""

    @property
    def checkpoints_needed(self) -> float:
        """Checkpoints that must fit."""
        return _NEXT if self.is_measured else _FIRST

    @property
    def is_enough(self) -> bool:
        """Whether they fit; True when their size is unknown."""
        return self.free_bytes >= self.checkpoints_needed * self.checkpoint_bytes

    def __str__(self) -> str:
        """Say what was found, and what to do if it is too little."""
        how = "as the newest one" if self.is_measured else "estimated"
        found = (
            f"{_size(self.free_bytes)} free in {self.folder}; a checkpoint takes {_size(self.checkpoint_bytes)} ({how})"
        )
        if self.is_enough:
            return found
        return (
            f"{found}, expected room for {self.checkpoints_needed:g}; make room, or set checkpoint.folder to another "
            "disk or an object store"
        )


def measure_room(storage: CheckpointStorage, estimate: Callable[[], int]) -> Room | None:
    """Return the room where checkpoints go; None for an object store, whose room cannot be asked for.

    Args:
        storage: of the run's checkpoints.
        estimate: returns the bytes of a checkpoint, 0 if it does not know; asked when the run has none yet.
    """
    if not isinstance(storage, FolderStorage):
        return None
    folder = next(path for path in (storage.folder, *storage.folder.parents) if path.exists())
    free = shutil.disk_usage(folder).free
    manifests = list(readable_manifests(storage).values())
    size = sum(proof.size for proof in manifests[-1].files.values()) if manifests else estimate()
    return Room(folder, free, size, is_measured=bool(manifests))


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 5e7 else f"{num_bytes / 1e6:.1f} MB"
