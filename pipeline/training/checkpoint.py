"""Checkpoints as transactions: a folder counts only once its manifest, written last, proves every byte of it.

Weights, optimizer and RNG tensors in safetensors, everything else in JSON, never pickle. A save writes a temporary
folder, seals it (`pipeline.training.manifest`), renames it and makes the rename durable. A process killed anywhere in
between leaves the previous checkpoint untouched.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.training.manifest import checkpoint_folders, fsync, newest_verified, seal

_STATE = "state.json"


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

    def __init__(self, folder: Path, keep_last: int, may_commit: Callable[[], None] = lambda: None) -> None:
        """Use a folder.

        Args:
            folder: where the checkpoints lie.
            keep_last: newest checkpoints kept.
            may_commit: called right before a checkpoint becomes visible; raises to prevent it.
        """
        self._folder, self._keep_last, self._may_commit = folder, keep_last, may_commit

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
            seal(temporary, step)
            self._may_commit()
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        shutil.rmtree(target, ignore_errors=True)  # only ever a defective folder, or the same step computed again
        temporary.rename(target)
        fsync(self._folder)
        for old in checkpoint_folders(self._folder)[: -self._keep_last]:
            shutil.rmtree(old, ignore_errors=True)
        return target

    def latest(self) -> Checkpoint | None:
        """Return the newest checkpoint whose every byte verifies; None when there is none."""
        newest = newest_verified(self._folder)
        if newest is None:
            return None
        return Checkpoint(newest.path, newest.step, json.loads((newest.path / _STATE).read_text()))
