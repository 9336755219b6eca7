"""One writer per run folder: a lock that dies with its holder, and an attempt number that fences off survivors.

The launcher holds a file lock for as long as it lives. Each holder gets a higher attempt number; a worker that outlives
its launcher finds a newer number in the folder before it commits a checkpoint, and may not. Method: fencing tokens,
Kleppmann, "Designing Data-Intensive Applications", 2017, chapter 8.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.run_folder.files import ask_server, read_object, replace_file
from pipeline.run_folder.held import LeaseLostError, RunHeldError
from pipeline.run_folder.links import check_links
from pipeline.run_folder.locks import lock_file
from pipeline.run_folder.mirror import Mirror
from pipeline.run_folder.object_lease import ObjectLease
from pipeline.run_folder.place import mirror_of, open_mirror
from pipeline.run_folder.probe import check_conditional_writes
from pipeline.run_folder.restarts import last_attempt

LOCK_NAME = "lease.lock"
_HOLDER = "lease.json"
_CHECKPOINTS_LOCK = "checkpoints.lock"
_leases: dict[str, ObjectLease] = {}
"""Of this process, by URL."""


@contextmanager
def hold_run(run_dir: str | Path) -> Iterator[int]:
    """Hold the run folder for the length of the block; yields the attempt number, 1 for the first.

    Args:
        run_dir: a folder; or a URL of object storage, or this process's copy of it.

    Raises:
        FileExistsError: there is a file in its place.
        ValueError: a link in it leads out of it.
        RunHeldError: another process holds it; names host, process id and since when.
    """
    mirror = mirror_of(run_dir) or (open_mirror(str(run_dir)) if "://" in str(run_dir) else None)
    if mirror is not None:
        with _hold_remote(mirror) as attempt:
            yield attempt
        return
    run_dir = Path(run_dir)
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise FileExistsError(f"run_dir {run_dir}: expected a folder, found a file; choose another run_dir") from error
    check_links(run_dir)
    with _locked(run_dir / LOCK_NAME, partial(describe_holder, run_dir), "choose another run_dir"):
        yield next_attempt(run_dir)


@contextmanager
def _hold_remote(mirror: Mirror) -> Iterator[int]:
    check_conditional_writes(mirror.objects)  # also where the copy was made for reading
    lease = _lease_of(mirror)
    with lease.hold(last_attempt(mirror.folder)) as attempt:
        mirror.pull()  # again: what was read before may be older than the lease
        mirror.start()
        try:
            yield attempt
        except BaseException:
            mirror.stop()
            with suppress(OSError, LeaseLostError):  # what ended the run is told in any case
                mirror.push()
            raise
        mirror.push()
        mirror.stop()


def _lease_of(mirror: Mirror) -> ObjectLease:
    return _leases.setdefault(mirror.url, ObjectLease(mirror.objects))


@contextmanager
def hold_checkpoints(folder: str | None) -> Iterator[None]:
    """Hold a checkpoint folder outside the run folder, where another run may write too.

    Args:
        folder: local path, held; None or a URL, where nothing can be held.

    Raises:
        ValueError: a link in it leads out of it.
        RunHeldError: another run holds it.
    """
    if folder is None or "://" in folder:
        yield
        return
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    refusal = f"checkpoint.folder {folder} is in use by another run; give each run its own"
    check_links(path, "checkpoint.folder")
    with _locked(path / _CHECKPOINTS_LOCK, lambda: refusal, "choose another checkpoint.folder"):
        yield


@contextmanager
def _locked(path: Path, describe: Callable[[], str], remedy: str) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            lock_file(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, path, remedy)
        except BlockingIOError as error:
            raise RunHeldError(describe()) from error
        yield
    finally:
        os.close(descriptor)


def next_attempt(run_dir: Path) -> int:
    """Fence off the workers of earlier attempts and return a new number; only for the holder of the run folder.

    The number is above those of all workers started so far, even when lease.json is gone or unreadable.
    """
    if (mirror := mirror_of(run_dir)) is not None:
        return _lease_of(mirror).next_attempt()
    attempt: int = 1 + max(read_holder(run_dir).get("attempt", 0), last_attempt(run_dir))
    holder = {"attempt": attempt, "host": socket.gethostname(), "pid": os.getpid(), "since": time.time()}
    replace_file(run_dir / _HOLDER, json.dumps(holder))
    return attempt


def check_lease(run_dir: Path, attempt: int) -> None:
    """Verify that no newer attempt has taken the run folder.

    Raises:
        LeaseLostError: one has, or it cannot be verified that none has.
    """
    if (mirror := mirror_of(run_dir)) is not None:
        _lease_of(mirror).check(attempt)
        return
    ask_server(run_dir)
    current = read_holder(run_dir).get("attempt")
    if current is None:
        raise LeaseLostError(
            f"run folder {run_dir}: {_HOLDER} is missing or unreadable: cannot verify that attempt {attempt} "
            "still owns the run; no checkpoint written. Start the same command again to continue"
        )
    if current != attempt:
        raise LeaseLostError(
            f"run folder {run_dir}: attempt {current} has taken over, this is attempt {attempt}; no checkpoint written"
        )


def read_holder(run_dir: Path) -> dict[str, Any]:
    """Return who holds, or last held, a run folder; empty when that is not known."""
    return read_object(run_dir / _HOLDER)


def describe_holder(run_dir: Path) -> str:
    """Say who holds a run folder."""
    holder = read_holder(run_dir)
    if not holder:
        return (
            f"run folder {run_dir} is held by a process that {_HOLDER} does not name (yet); find it by its open "
            f"{LOCK_NAME} and stop it, or choose another run_dir"
        )
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(holder.get("since", 0)))
    return (
        f"run folder {run_dir} is held by process {holder.get('pid')} on {holder.get('host')} since {since} (attempt "
        f"{holder.get('attempt')}); stop that run, or choose another run_dir"
    )
