"""How a child process ends: the limits it runs under, its exit codes, and the words for them."""

from __future__ import annotations

import resource
import signal
from pathlib import Path
from typing import Final

START_TIMEOUT_S: Final = 300.0  # libraries, tokenizer and index come from disks of any kind
SAMPLE_TIMEOUT_S: Final = 60.0
READY: Final = "ready"
"""What a child says once it can work."""
OUT_OF_MEMORY_EXIT: Final = 77
_MEMORY_BYTES: Final = 4 << 30  # on top of what the libraries map; the largest allowed image takes 0.2 GB


def limit_memory() -> None:
    """Limit the memory of this process, on top of what it has mapped."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + _MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def describe_exit(exit_code: int) -> str:
    """Describe how a process ended: `ended by signal SIGSEGV`."""
    if exit_code == OUT_OF_MEMORY_EXIT:
        return "ran out of memory"
    if exit_code == -signal.SIGKILL:
        return f"was killed, or ran for more than {SAMPLE_TIMEOUT_S:.0f} s"
    if exit_code < 0:
        return f"ended by signal {signal.Signals(-exit_code).name}"
    return f"ended with exit code {exit_code}"
