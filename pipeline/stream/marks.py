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
from typing import Protocol

from pipeline.storage.objects import ObjectFolder

_TALLY = "tally.json"
_SUSPICIOUS_DEATHS = 2
"""Processes that died over the same samples before these are suspected: one death has a thousand causes."""


class _Place(Protocol):
    """Where marks are: small files by name."""

    def write(self, name: str, content: str) -> None: ...

    def read(self, name: str) -> str | None: ...

    def remove(self, name: str) -> None: ...

    def names(self) -> list[str]: ...


@dataclass(frozen=True)
class _Folder:
    path: Path

    def write(self, name: str, content: str) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / name).write_text(content)

    def read(self, name: str) -> str | None:
        try:
            return (self.path / name).read_text()
        except OSError:
            return None

    def remove(self, name: str) -> None:
        (self.path / name).unlink(missing_ok=True)

    def names(self) -> list[str]:
        return [path.name for path in self.path.iterdir()] if self.path.is_dir() else []


@dataclass(frozen=True)
class _Objects:
    url: str

    def write(self, name: str, content: str) -> None:
        self._folder().write(name, content.encode())

    def read(self, name: str) -> str | None:
        found = self._folder().find(name)
        return None if found is None else found.content.decode()

    def remove(self, name: str) -> None:
        self._folder().delete([name])

    def names(self) -> list[str]:
        return [entry.key for entry in self._folder().list()]

    def _folder(self) -> ObjectFolder:
        return ObjectFolder(self.url)


@dataclass(frozen=True)
class WorkMarks:
    """The marks in one folder, or under one URL, which all data workers of a run share."""

    folder: str | Path

    @contextmanager
    def working_on(self, step: int, rank: int, sample_ids: Sequence[int]) -> Iterator[None]:
        """Mark the samples of a rank-step for the length of the block."""
        owner = f"{socket.gethostname()}-{os.getpid()}-{threading.get_ident()}"
        name, place = f"{step}-{rank}-{owner}.json", self._place
        place.write(name, json.dumps(list(sample_ids)))
        try:
            yield
        finally:
            place.remove(name)

    def suspects(self, *, died: bool) -> list[int]:
        """Return the samples over which processes keep dying, and clear the marks; call it while none works.

        Args:
            died: it is known that a data worker died by itself, so its first death is reason enough.
        """
        place = self._place
        names = place.names()
        if not names:
            return []
        tally: Counter[str] = Counter(self._read_tally())
        seen_now: Counter[str] = Counter()
        for name in names:
            if "-" not in name or not name.endswith(".json"):
                continue
            with suppress(json.JSONDecodeError):  # killed while it wrote the mark: it had not begun
                seen_now[json.dumps(json.loads(place.read(name) or ""))] += 1
            place.remove(name)
        tally.update(seen_now)
        needed = 1 if died else _SUSPICIOUS_DEATHS
        suspicious = [work for work, deaths in tally.items() if deaths >= needed and work in seen_now]
        remaining = {work: deaths for work, deaths in tally.items() if work in seen_now and work not in suspicious}
        place.write(_TALLY, json.dumps(remaining))
        return sorted({sample_id for work in suspicious for sample_id in json.loads(work)})

    @property
    def _place(self) -> _Place:
        return _Objects(str(self.folder)) if "://" in str(self.folder) else _Folder(Path(self.folder))

    def _read_tally(self) -> dict[str, int]:
        try:
            tally: dict[str, int] = json.loads(self._place.read(_TALLY) or "")
        except json.JSONDecodeError:
            return {}
        return tally
