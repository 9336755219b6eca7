"""Memory of this process and its device, as operating system and allocator count it."""

from __future__ import annotations

import re
import resource
import sys
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")


def memory_peak_bytes(device: torch.device) -> int:
    """Return the most memory held since the process started.

    On CUDA what torch's allocator handed out on `device`, elsewhere the resident set of this process.
    """
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_resident_bytes()


def peak_resident_bytes() -> int:
    """Return the high-water mark of this process's resident set."""
    if _STATUS.exists():
        return _status_bytes("VmHWM")
    # getrusage would do on Linux too, but there a child inherits the mark of the process that started it
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def resident_bytes() -> int:
    """Return this process's resident set now; without /proc, its high-water mark."""
    return _status_bytes("VmRSS") if _STATUS.exists() else peak_resident_bytes()


def reset_peak_resident() -> None:
    """Let the high-water mark start again from what is resident now; without /proc it stays.

    See proc(5), `clear_refs`.
    """
    if _CLEAR_REFS.exists():
        _CLEAR_REFS.write_text("5", encoding="ascii")


def _status_bytes(field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB$", _STATUS.read_text(encoding="ascii"), re.MULTILINE)
    if found is None:
        raise ValueError(f"{_STATUS} has no {field}; expected a Linux process status")
    return int(found[1]) * 1024
