"""Moments at which a test may end the process, so that crashes are tried at every place where they could hurt.

`RAY_LLAVA_KILL_AT=checkpoint.file_written:3` makes the third passing of that moment end the process with SIGKILL, as a
machine failure would: no handler runs, nothing is flushed. Unset, passing a moment costs a dictionary lookup.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from typing import Literal

KILL_AT = "RAY_LLAVA_KILL_AT"

FaultPoint = Literal[
    "checkpoint.snapshot_taken",  # copied to host memory, nothing written
    "checkpoint.file_written",  # once per file, durable, not yet part of anything
    "checkpoint.part_written",  # a rank's share of a sharded checkpoint is complete
    "checkpoint.manifest_written",  # everything durable under its temporary name
    "checkpoint.committed",  # visible; older ones not removed yet
    "checkpoint.pruned",  # older ones removed
    "step.updated",  # weights changed, step not logged
    "step.logged",  # step logged, not saved
]

_passed: Counter[str] = Counter()


def reached(point: FaultPoint) -> None:
    """Pass a moment; ends the process here if the environment asks for it."""
    wanted = os.environ.get(KILL_AT)
    if wanted is None:
        return
    name, _, number = wanted.partition(":")
    _passed[point] += 1
    if name == point and _passed[point] == int(number or 1):
        os.kill(os.getpid(), signal.SIGKILL)
