"""One writer per run folder in object storage, by objects that are created only if they are absent.

`lease/ATTEMPT` names the holder of an attempt. The process that creates the next number holds the run from then on, so
of two that try, one does. The holder writes its object again every few seconds. One that has not done so for a while,
by the clock of the service, or that has died on this machine, is followed by the next: no lock dies with its holder.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pipeline.run_folder.held import LeaseLostError, RunHeldError
from pipeline.storage.objects import ObjectFolder

logger = logging.getLogger(__name__)

_FOLDER = "lease/"
BEAT_S = 10.0
"""Between two signs of life."""
SILENT_S = 120.0
"""A holder that has given none for so long is taken for dead; longer than storage may be away."""
_LOOK_S = 2.0
_TOLD_S = 5.0
_KEPT = 2


class ObjectLease:
    """The lease of a run folder, held by this process or looked at."""

    def __init__(self, objects: ObjectFolder) -> None:
        self._objects = objects
        self._held = 0
        self._body: dict[str, Any] = {}
        self._changing = threading.Lock()

    @contextmanager
    def hold(self, above: int) -> Iterator[int]:
        """Hold the run for the length of the block; yields the attempt number.

        Args:
            above: the number is higher than this one, which workers of the run have had.

        Raises:
            RunHeldError: somebody else holds it.
            OSError: the storage failed.
        """
        attempt = self._take(above)
        ended = threading.Event()
        beats = threading.Thread(target=self._beat, args=(ended,), name="lease", daemon=True)
        beats.start()
        try:
            yield attempt
        finally:
            ended.set()
            beats.join()
            with suppress(OSError):  # the next holder then waits until the signs of life are old
                self._write(is_released=True)

    def next_attempt(self) -> int:
        """Fence off the workers of this attempt and return a new number; only for the holder.

        Raises:
            LeaseLostError: somebody else has taken the run over.
        """
        if not self._create(self._held + 1):
            raise LeaseLostError(f"run folder {self._objects.url}: attempt {self._held + 1} has taken over")
        return self._held

    def check(self, attempt: int) -> None:
        """Verify that no newer attempt has taken the run.

        Raises:
            LeaseLostError: one has, or it cannot be verified that none has.
        """
        found = [_number(entry.key) for entry in self._objects.list(_FOLDER, after=_key(attempt - 1))]
        if attempt not in found:
            raise LeaseLostError(
                f"run folder {self._objects.url}: {_key(attempt)} is missing: cannot verify that attempt {attempt} "
                "still owns the run; no checkpoint written. Start the same command again to continue"
            )
        if found[-1] != attempt:
            raise LeaseLostError(
                f"run folder {self._objects.url}: attempt {found[-1]} has taken over, this is attempt {attempt}; no "
                "checkpoint written"
            )

    def describe_holder(self) -> str | None:
        """Say who holds the run; None if it is free, as far as can be seen at once."""
        newest = self._newest()
        if newest is None:
            return None
        stored = self._objects.read(_key(newest))
        holder = _parse(stored.content)
        is_gone = holder.get("released") or stored.age_s > SILENT_S or _is_dead_here(holder)
        return None if is_gone else self._describe(newest, holder)

    def _take(self, above: int) -> int:
        newest = self._newest()
        if newest is not None:
            self._wait_until_free(newest)
        attempt = 1 + max(newest or 0, above)
        if not self._create(attempt):
            raise RunHeldError(self._describe(attempt, _parse(self._objects.read(_key(attempt)).content)))
        old = [entry.key for entry in self._objects.list(_FOLDER) if _number(entry.key) <= attempt - _KEPT]
        with suppress(OSError):
            self._objects.delete(old)
        return attempt

    def _wait_until_free(self, attempt: int) -> None:
        """Return once the holder is gone: at once if it said so, or died here; else when it is silent for long.

        Raises:
            RunHeldError: it is alive.
        """
        stored = first = self._objects.read(_key(attempt))
        is_told = False
        while True:
            holder = _parse(stored.content)
            if stored.etag != first.etag and not holder.get("released"):
                raise RunHeldError(self._describe(attempt, holder))
            if holder.get("released") or stored.age_s > SILENT_S or _is_dead_here(holder):
                return
            if _is_alive_here(holder):
                raise RunHeldError(self._describe(attempt, holder))
            if not is_told and SILENT_S - stored.age_s > _TOLD_S:
                is_told = True
                logger.warning(
                    "%s; its last sign of life is %.0f s old, waiting up to %.0f s whether there is another",
                    self._describe(attempt, holder), stored.age_s, SILENT_S - stored.age_s,
                )  # fmt: skip
            time.sleep(_LOOK_S)
            stored = self._objects.read(_key(attempt))

    def _create(self, attempt: int) -> bool:
        with self._changing:
            body = {**_who(), "since": round(time.time(), 3), "token": secrets.token_hex(8), "released": False}
            if not self._objects.create(_key(attempt), json.dumps(body).encode()):
                return False
            self._held, self._body = attempt, body
            return True

    def _beat(self, ended: threading.Event) -> None:
        while not ended.wait(BEAT_S):
            try:
                self._write(is_released=False)
            except OSError as error:
                logger.warning("run folder %s: no sign of life written: %s", self._objects.url, error)

    def _write(self, *, is_released: bool) -> None:
        with self._changing:
            self._body = {**self._body, "released": is_released, "beat": self._body.get("beat", 0) + 1}
            self._objects.write(_key(self._held), json.dumps(self._body).encode())

    def _newest(self) -> int | None:
        entries = self._objects.list(_FOLDER)
        return _number(entries[-1].key) if entries else None

    def _describe(self, attempt: int, holder: Mapping[str, Any]) -> str:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(holder.get("since", 0)))
        return (
            f"run folder {self._objects.url} is held by process {holder.get('pid')} on {holder.get('host')} since "
            f"{since} (attempt {attempt}); stop that run, or choose another run_dir"
        )


def _key(attempt: int) -> str:
    return f"{_FOLDER}{attempt:08d}"


def _number(key: str) -> int:
    return int(key.removeprefix(_FOLDER))


def _parse(content: bytes) -> dict[str, Any]:
    try:
        holder = json.loads(content)
    except ValueError:
        return {}
    return holder if isinstance(holder, dict) else {}


def _who() -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": os.getpid(), "began": _began(os.getpid()), "machine": _machine()}


def _machine() -> str:
    """Return what only processes that see each other have in common: the boot of the machine, and the PID namespace."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _began(pid: int) -> str | None:
    """Return when a process began, in ticks since the boot, so that a reused number is told apart; None if it ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


def _is_here(holder: Mapping[str, Any]) -> bool:
    return bool(_machine()) and holder.get("machine") == _machine()


def _is_dead_here(holder: Mapping[str, Any]) -> bool:
    return _is_here(holder) and _began(int(holder.get("pid", 0))) != holder.get("began")


def _is_alive_here(holder: Mapping[str, Any]) -> bool:
    return _is_here(holder) and not _is_dead_here(holder)
