"""Marks of work in progress: a small file per rank-step being built, which stays behind when its process dies."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

_TALLY = "tally.json"
_SUSPICIOUS_DEATHS = 2
"""Processes that died over the same samples before these are suspected: one death has a thousand causes."""


@dataclass(frozen=True)
class WorkMarks:
    """The marks in one folder, which all data workers of a run share."""

    folder: Path

    @contextmanager
    def working_on(self, step: int, rank: int, sample_ids: Sequence[int]) -> Iterator[None]:
        """Mark the samples of a rank-step for the length of the block."""
        owner = f"{socket.gethostname()}-{os.getpid()}-{threading.get_ident()}"
        path = self.folder / f"{step}-{rank}-{owner}.json"
        self.folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(list(sample_ids)))
        try:
            yield
        finally:
            path.unlink(missing_ok=True)

    def suspects(self, *, died: bool) -> list[int]:
        """Return the samples over which processes keep dying, and clear the marks; call it while none works.

        Args:
            died: it is known that a data worker died by itself, so its first death is reason enough.
        """
        if not self.folder.is_dir():
            return []
        tally: Counter[str] = Counter(self._read_tally())
        seen_now: Counter[str] = Counter()
        for path in self.folder.glob("*-*.json"):
            with suppress(json.JSONDecodeError):  # killed while it wrote the mark: it had not begun
                seen_now[json.dumps(json.loads(path.read_text()))] += 1
            path.unlink(missing_ok=True)
        tally.update(seen_now)
        needed = 1 if died else _SUSPICIOUS_DEATHS
        suspicious = [work for work, deaths in tally.items() if deaths >= needed and work in seen_now]
        remaining = {work: deaths for work, deaths in tally.items() if work in seen_now and work not in suspicious}
        (self.folder / _TALLY).write_text(json.dumps(remaining))
        return sorted({sample_id for work in suspicious for sample_id in json.loads(work)})

    def _read_tally(self) -> dict[str, int]:
        try:
            tally: dict[str, int] = json.loads((self.folder / _TALLY).read_text())
        except (OSError, json.JSONDecodeError):
            return {}
        return tally
