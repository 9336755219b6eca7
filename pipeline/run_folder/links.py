"""Symbolic links in a run folder that lead out of it: what a run overwrites, removes or uploads must be its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

_DEPTH = 3  # run folder / checkpoints / step-... / file: nothing that a run writes is deeper, but for Ray's own files


def check_links(folder: Path, what: str = "run_dir") -> None:
    """Make sure that no link in a folder leads out of it; the folder itself may be one.

    Raises:
        ValueError: one does; names it and where it leads.
    """
    root = Path(os.path.realpath(folder))
    for link in _links(root, _DEPTH):
        target = Path(os.path.realpath(link))
        if not target.is_relative_to(root):
            raise ValueError(
                f"{what} {folder}: {link.relative_to(root)} is a link to {target}, outside the folder, where files "
                "would be overwritten and removed. Remove the link; other places are chosen with checkpoint.folder and "
                "data.index_dir"
            )


def _links(folder: Path, depth: int) -> Iterator[Path]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except FileNotFoundError:
        return
    for entry in entries:
        if entry.is_symlink():
            yield Path(entry.path)
        elif depth > 1 and entry.is_dir(follow_symlinks=False):
            yield from _links(Path(entry.path), depth - 1)
