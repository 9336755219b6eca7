"""What a check found."""

from __future__ import annotations

from typing import Literal, NamedTuple


class Finding(NamedTuple):
    """One line of the doctor's table."""

    check: str
    status: Literal["ok", "warning", "error"]
    """An error means that the run would fail, or could lose work."""
    detail: str
    """What was found, and for anything but ok what to do."""
    exit_code: int = 2
    """For an error: the code that a run would end with."""
