"""File permissions that follow the umask."""

from __future__ import annotations

import os
import stat
import uuid
from pathlib import Path

_ANYBODY = 0o666


def follow_umask(path: str | Path) -> None:
    """Give a new file, or every `*.safetensors` in a folder, the mode that other new files there get.

    safetensors 0.8 makes its files readable by their owner only, so that no other user could load a trained model
    (https://github.com/safetensors/safetensors/issues/782).
    """
    target = Path(path)
    folder, files = (target, target.glob("*.safetensors")) if target.is_dir() else (target.parent, [target])
    probe = folder / f".{uuid.uuid4().hex}"  # asking the umask itself would change it for all threads
    descriptor = os.open(probe, os.O_CREAT | os.O_EXCL, _ANYBODY)
    try:
        mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
    finally:
        os.close(descriptor)
        probe.unlink()
    for file in files:
        file.chmod(mode)
