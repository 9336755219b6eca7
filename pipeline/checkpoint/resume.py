"""Where a run continues: decided in one place per start, for weights, data and everything else. Needs no torch."""

from __future__ import annotations

from pathlib import Path

from pipeline.checkpoint.manifest import CHECKPOINT_FOLDER
from pipeline.checkpoint.storage import CheckpointStorage, open_storage
from pipeline.checkpoint.verification import Position, newest_verified
from pipeline.config import CheckpointConfig
from pipeline.run_folder.place import place_in


def run_storage(run_dir: str | Path, checkpoint: CheckpointConfig) -> CheckpointStorage:
    """Return the storage of a run's checkpoints.

    Args:
        run_dir: a folder; or a URL of object storage, or this process's copy of it.
        checkpoint: names another place, if it does.
    """
    return open_storage(checkpoint.folder or place_in(run_dir, CHECKPOINT_FOLDER))


def find_position(run_dir: str | Path, checkpoint: CheckpointConfig) -> Position | None:
    """Return the newest checkpoint of the run whose every byte verifies; None to start from nothing.

    Called once per start of the workers. The caller passes the answer on: a second lookup may differ.
    """
    return newest_verified(run_storage(run_dir, checkpoint))
