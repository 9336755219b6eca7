"""Decoding suspects in a process that may die: a sample that kills it twice is reported, with how it ended.

The child (`sandbox_child`) prints each sample before decoding it, so the last line names the one it died over. A sample
that does not end it again when decoded alone is not to blame.
"""

from __future__ import annotations

import logging
import os
import selectors
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from pipeline.launch.crashes.sandbox_child import DONE
from pipeline.parallel.exits import READY, SAMPLE_TIMEOUT_S, START_TIMEOUT_S, describe_exit

logger = logging.getLogger(__name__)


def find_crashers(config_file: Path, suspects: Sequence[int]) -> dict[int, str]:
    """Decode suspects apart from this process; returns how each of those that ended the child did so.

    Args:
        config_file: resolved config of the run.
        suspects: sample ids.

    Raises:
        RuntimeError: the child cannot even start; its messages are included.
    """
    verdicts: dict[int, str] = {}
    pending = list(suspects)
    while pending:
        victim, how = _decode(config_file, pending)
        if victim is None:
            break
        again, how_again = _decode(config_file, [victim])
        if again == victim:
            verdicts[victim] = f"{how_again} when decoded alone in a sandbox"
            logger.warning("sample %d ends the process that decodes it: %s; it is left out", victim, how_again)
        else:
            logger.warning("sample %d: %s in a row of samples, but not alone; kept", victim, how)
        pending = pending[pending.index(victim) + 1 :]
    return verdicts


def _decode(config_file: Path, sample_ids: Sequence[int]) -> tuple[int | None, str]:
    """Return the sample over which a child died and how; None when it decoded all."""
    with tempfile.TemporaryFile() as messages:  # an unread pipe would block a child that prints much
        child = subprocess.Popen(
            [sys.executable, "-m", "pipeline.launch.crashes.sandbox_child", str(config_file), *map(str, sample_ids)],
            stdout=subprocess.PIPE,
            stderr=messages,
            cwd=Path(__file__).parents[3],  # a Ray worker's folder knows no `pipeline`
        )
        assert child.stdout is not None
        said = b""
        with child.stdout, selectors.DefaultSelector() as selector:
            selector.register(child.stdout, selectors.EVENT_READ)
            while selector.select(SAMPLE_TIMEOUT_S if said else START_TIMEOUT_S):
                # not `readline`, which keeps further lines where `select` does not see them
                if not (more := os.read(child.stdout.fileno(), 4096)):
                    break
                said += more
            else:
                child.kill()
        child.wait()
        last = said.decode().rpartition("\n")[0].rpartition("\n")[2]  # the last complete line
        if last == DONE:
            return None, ""
        if last in ("", READY):
            messages.seek(max(0, messages.seek(0, os.SEEK_END) - 2000))
            printed = messages.read().decode(errors="replace")
            raise RuntimeError(f"the sandbox for suspicious samples did not start: {printed}")
        return int(last), describe_exit(child.returncode)
