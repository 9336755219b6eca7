"""Replacing a file so that it is, at every moment, the old one or the new one: the one atomic write of this project."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write; it is renamed to `path` once its bytes are on the disk.

    Whenever the process or the machine dies, `path` is the old file or the new one. Its folder must exist. When the
    block raises, nothing is replaced and nothing is left behind.

    Raises:
        OSError: the storage refused.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        sync(temporary)  # a rename may reach the disk before the content does
        temporary.replace(path)
        sync(path.parent)  # the new name
    finally:
        temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Force a file, or the names in a folder, onto the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
