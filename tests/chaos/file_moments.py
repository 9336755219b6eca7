"""Dying at a chosen file operation of a checkpoint save: the n-th time Python opens, renames, removes ... under it.

Counts interpreter audit events, so it knows nothing of how a checkpoint is written and reaches every operation there
is. Writes by native code (safetensors) happen between two such events; kills at random moments reach into those.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

_EVENTS = frozenset({"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "shutil.rmtree"})
_FOLDER = "/checkpoints"


def die_at(number: int) -> None:
    """End this process by SIGKILL right before file operation `number` (1 is the first) below a checkpoint folder."""
    count = 0

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event in _EVENTS and arguments and _FOLDER in str(arguments[0]) and not _is_reading(event, arguments):
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


def die_at_request(number: int) -> None:
    """End this process by SIGKILL right before it sends request `number` (1 is the first) to a service over HTTP."""
    count = 0

    def watch(event: str, _arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event == "http.client.send":
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


def _is_reading(event: str, arguments: tuple[Any, ...]) -> bool:
    # fsync opens for reading too, so a plain open for reading inside a half-made folder counts
    return event == "open" and ".tmp" not in str(arguments[0]) and not (arguments[2] & (os.O_WRONLY | os.O_RDWR))
