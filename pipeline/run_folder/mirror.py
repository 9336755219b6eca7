"""A process's working copy of a run folder in object storage: read at the start, written back while the run goes on.

The objects are the run; the copy is this process's alone and is lost with it. Files that grow line by line (`*.jsonl`)
become numbered parts (`log_parts`), all others whole objects. What a checkpoint counts on is written before the
checkpoint is committed, so that nothing is lost by a kill that is not computed again.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from pipeline.run_folder.held import LeaseLostError
from pipeline.run_folder.log_parts import LogParts, log_names
from pipeline.storage.objects import ObjectFolder

logger = logging.getLogger(__name__)

_INTERVAL_S = 1.0
_KEPT_ELSEWHERE = ("checkpoints/", "ray/", "lease/", "working/", "probe/")
"""Objects of a run that others read and write."""
_ON_DEMAND = ("index/", "model/", "projector/", "profile/")
_PARTED_BYTES = 32 << 20
"""Larger files go in several requests."""
_LAST = ("config.json", "index.json")
"""What tells that a folder is complete is written after the rest of it."""


class _Seen(NamedTuple):
    """What a file was like when it was read from, or written to, the storage."""

    inode: int
    size_bytes: int
    modified_ns: int


class Mirror:
    """The working copy of one run folder."""

    def __init__(self, url: str, folder: Path, what: str = "run_dir") -> None:
        """Make an empty copy; `pull` fills it."""
        self.url, self.folder = url, folder
        self.objects = ObjectFolder(url, what)
        self.attempt_lost: Exception | None = None
        self._logs: dict[str, LogParts] = {}
        self._seen: dict[str, _Seen] = {}
        self._etags: dict[str, str] = {}
        self._owned: set[str] = set()
        self._followed: tuple[str, ...] = ()
        self._lock = threading.RLock()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def pull(self, *prefixes: str) -> None:
        """Bring the copy up to date.

        Args:
            prefixes: of names; none means all files but those that are read on demand, such as the index.

        Raises:
            OSError: the storage failed.
        """
        with self._lock:
            entries = [entry for prefix in prefixes or ("",) for entry in self.objects.list(prefix)]
            # some clients write an empty object whose name ends like that of a folder
            keys = [
                one.key for one in entries if not one.key.startswith(_KEPT_ELSEWHERE) and one.key[-1:] not in ("", "/")
            ]
            names = log_names(keys)
            for name in names - self._owned:
                self._pull_log(name)
            etags = {entry.key: entry.etag for entry in entries}
            for key in keys:
                is_wanted = bool(prefixes) or not key.startswith(_ON_DEMAND)
                if is_wanted and key.rpartition("/")[0] not in names and self._etags.get(key) != etags[key]:
                    self.objects.download(key, self.folder / key)
                    self._note(key, etags[key])

    def push(self) -> None:
        """Write what has changed in the copy.

        Raises:
            OSError: the storage failed.
            LeaseLostError: another process has gone on with a file that only one may write.
        """
        with self._lock:
            names = sorted(self._local_names())
            logs = {name for name in names if name.endswith(".jsonl")}
            # read before the logs: a note of what was sent must never be ahead of what there was to send
            others = [(name, _look(self.folder / name)) for name in names if name not in logs]
            changed = [(name, seen) for name, seen in others if seen is not None and self._seen.get(name) != seen]
            contents = {name: (self.folder / name).read_bytes() for name, seen in changed if _is_small(seen)}
            for name in sorted({*logs, *self._logs}):
                self._push_log(name)
            for name, seen in sorted(changed, key=lambda entry: entry[0].endswith(_LAST)):
                if name in contents:
                    self._etags[name] = self.objects.write(name, contents[name])
                else:
                    self.objects.upload(self.folder / name, name)
                    self._etags.pop(name, None)
                self._seen[name] = seen
            gone = [name for name in self._seen if name not in logs and not (self.folder / name).exists()]
            if gone:
                self.objects.delete(gone)
                for name in gone:
                    del self._seen[name]
                    self._etags.pop(name, None)

    def own(self, *names: str) -> None:
        """Become the only writer of growing files: one that wrote them before fails with its next part."""
        with self._lock:
            for name in names:
                log = self._logs.setdefault(name, LogParts(name))
                self._pull_log(name)
                while not log.add(self.objects, log.size_bytes, b""):
                    self._pull_log(name)
                self._owned.add(name)

    def follow(self, *prefixes: str) -> None:
        """Bring these names up to date regularly, besides what this process owns."""
        self._followed = tuple({*self._followed, *prefixes})
        self.start()

    def start(self) -> None:
        """Write changes back from a thread, and read what is followed."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._keep_up, name="run-folder", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End the thread; what it has not written is written by the next `push`."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        self._thread, self._ended = None, threading.Event()
        self._owned.clear()  # another process may be the writer next
        self._followed = ()

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Read files that several processes write, change them in the block, and write them at once."""
        with self._lock:
            self.pull("restarts.jsonl", "failures.jsonl", "quarantine/")
            yield
            self.push()

    def _keep_up(self) -> None:
        failing_since: float | None = None
        while not self._ended.wait(_INTERVAL_S):
            try:
                self.push()
                if followed := [prefix for prefix in self._followed if prefix not in self._owned]:
                    self.pull(*followed)
                failing_since = None
            except OSError as error:
                failing_since = failing_since or time.monotonic()
                logger.warning(
                    "run folder %s: not up to date for %.0f s, tried again: %s",
                    self.url, time.monotonic() - failing_since, error,
                )  # fmt: skip
            except RuntimeError as error:  # of the lease: the next checkpoint, which writes first, ends the run with it
                logger.warning("%s", error)
                return

    def _pull_log(self, name: str) -> None:
        log, path = self._logs.setdefault(name, LogParts(name)), self.folder / name
        local = path.read_bytes() if path.is_file() else b""
        known, own_tail, last = local[: log.size_bytes], local[log.size_bytes :], log.last
        whole = log.read_new(self.objects, known)
        if log.last == last:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        if own_tail or not whole.startswith(known):
            path.write_bytes(whole + own_tail)
        else:
            with path.open("ab") as file:
                file.write(whole[len(known) :])
        now = _look(path) or _Seen(0, 0, 0)
        self._seen[name] = now._replace(size_bytes=0) if own_tail else now  # the tail is still to be written

    def _push_log(self, name: str) -> None:
        log, path = self._logs.setdefault(name, LogParts(name)), self.folder / name
        while True:
            now, before = _look(path), self._seen.get(name)
            if now == before or (now is None and not log.size_bytes):
                return
            is_same = now is not None and (before is None or now.inode == before.inode)
            offset = log.size_bytes if is_same and now is not None and now.size_bytes >= log.size_bytes else 0
            piece = _read_lines(path, offset)
            if piece or offset < log.size_bytes:
                if not log.add(self.objects, offset, piece):
                    if name in self._owned:
                        raise LeaseLostError(
                            f"run folder {self.url}: another process goes on with {name}; this one may not any more"
                        )
                    self._pull_log(name)
                    continue
                while (due := log.due_merge()) is not None:
                    start, level = due
                    if not log.add(self.objects, start, _read_lines(path, start, log.size_bytes), level):
                        break  # the next push finds out who wrote it
            if now is None:
                self._seen.pop(name, None)
            else:
                self._seen[name] = now
            return

    def _note(self, name: str, etag: str) -> None:
        self._etags[name] = etag
        if (seen := _look(self.folder / name)) is not None:
            self._seen[name] = seen

    def _local_names(self) -> Iterable[str]:
        for place, folders, files in os.walk(self.folder):
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in files:
                path = (Path(place) / name).relative_to(self.folder).as_posix()
                if not name.startswith(".") and not path.startswith(_KEPT_ELSEWHERE) and not name.endswith(".lock"):
                    yield path


def _look(path: Path) -> _Seen | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return _Seen(found.st_ino, found.st_size, found.st_mtime_ns)


def _is_small(seen: _Seen | None) -> bool:
    return seen is not None and seen.size_bytes <= _PARTED_BYTES


def _read_lines(path: Path, start: int, end: int | None = None) -> bytes:
    """Return the complete lines of a file between two bytes."""
    try:
        with path.open("rb") as file:
            file.seek(start)
            content = file.read() if end is None else file.read(end - start)
    except FileNotFoundError:
        return b""
    return content[: content.rfind(b"\n") + 1]
