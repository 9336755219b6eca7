"""Where this process works on a run folder: in the folder itself, or in a working copy of one in object storage."""

from __future__ import annotations

import atexit
import fcntl
import hashlib
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from pipeline.run_folder.mirror import Mirror
from pipeline.run_folder.probe import check_conditional_writes
from pipeline.storage.urls import below, parse_object_url

RUN_COPIES = "RAY_LLAVA_RUN_COPIES"
"""Environment variable: where working copies are made; the default is a folder of this user in the temporary folder."""
_LOCK = ".alive"

_mirrors: dict[str, Mirror] = {}
_opening = threading.Lock()
_locks: list[IO[bytes]] = []


def working_folder(run_dir: str | Path, what: str = "run_dir") -> Path:
    """Return the folder in which this process finds and leaves the files of a run.

    Args:
        run_dir: a folder, which is returned; or a URL, of which this process gets a copy, read when first asked for.
        what: what messages call it.

    Raises:
        ValueError: not a URL of object storage, or its store has no conditional writes.
        OSError: the storage failed, or refused.
    """
    if not isinstance(run_dir, str) or "://" not in run_dir:
        return Path(run_dir)
    return open_mirror(run_dir, what).folder


def open_mirror(url: str, what: str = "run_dir", *, to_write: bool = True) -> Mirror:
    """Return this process's copy of a run folder in object storage; see `working_folder`."""
    with _opening:
        if url not in _mirrors:
            name = parse_object_url(url, what).key.rstrip("/").rpartition("/")[2]
            mirror = Mirror(url, _new_folder(url) / name, what)
            if to_write:
                check_conditional_writes(mirror.objects)
            mirror.folder.mkdir(parents=True)
            mirror.pull()
            _mirrors[url] = mirror
        return _mirrors[url]


def reading_copy(url: str, *prefixes: str) -> Path:
    """Return a copy of a run folder, or of any folder of object storage, that is not written back.

    Args:
        url: of the folder.
        prefixes: of names that are read besides the small files; empty text for all.
    """
    mirror = open_mirror(url, to_write=False)
    mirror.pull(*prefixes)
    return mirror.folder


def mirror_of(place: str | Path) -> Mirror | None:
    """Return the copy that a URL has in this process, or that a path is in; None for a run folder itself."""
    for url, mirror in _mirrors.items():
        if place == url or Path(place).is_relative_to(mirror.folder):
            return mirror
    return None


def place_in(run_dir: str | Path, name: str) -> str:
    """Return the path or URL of something in a run folder that is not worked on in a copy, such as checkpoints."""
    mirror = mirror_of(run_dir)
    url = str(run_dir) if mirror is None else mirror.url
    return below(url, name) if "://" in url else str(Path(run_dir) / name)


def shown(place: str | Path) -> str:
    """Return how messages call a run folder or a place in it: by its URL, where it has one."""
    mirror = mirror_of(place)
    if mirror is None or (isinstance(place, str) and "://" in place):
        return str(place)
    inside = Path(place).relative_to(mirror.folder).as_posix()
    return mirror.objects.url if inside == "." else f"{mirror.objects.url}/{inside}"


def found_here(place: str, run_dir: str | Path) -> Path:
    """Return where this process finds what `shown` has named, in its copy of the run folder if that is one."""
    mirror = mirror_of(run_dir)
    return Path(place) if mirror is None else mirror.folder / place.removeprefix(f"{mirror.objects.url}/")


def write_alone(run_dir: str | Path, *names: str) -> None:
    """Become the only writer of growing files of a run folder in object storage, and write them back from now on."""
    if (mirror := mirror_of(run_dir)) is not None:
        mirror.own(*names)
        mirror.start()


def follow(run_dir: str | Path, *names: str) -> None:
    """Keep files that others write up to date in this process's copy, if the run folder is in object storage."""
    if (mirror := mirror_of(run_dir)) is not None:
        mirror.follow(*names)


def push(run_dir: str | Path) -> None:
    """Write what this process has changed in a run folder to object storage, if it is there.

    Raises:
        OSError: the storage failed.
        LeaseLostError: another process has taken the run over.
    """
    if (mirror := mirror_of(run_dir)) is not None:
        mirror.push()


def fetch(run_dir: str | Path, *prefixes: str) -> None:
    """Bring files of a run folder whose names begin so, such as `index/`, into this process's copy, if it is one."""
    if (mirror := mirror_of(run_dir)) is not None:
        mirror.pull(*prefixes)


@contextmanager
def shared_files(run_dir: str | Path) -> Iterator[None]:
    """Read, and after the block write, the files of a run folder that several processes write; no-op on a disk."""
    mirror = mirror_of(run_dir)
    if mirror is None:
        yield
        return
    with mirror.shared():
        yield


def _new_folder(url: str) -> Path:
    """Return a new folder for a copy, and remove those of processes that are gone."""
    root = Path(os.environ.get(RUN_COPIES) or Path(tempfile.gettempdir()) / f"ray-llava-runs-{os.getuid()}")
    parent = root / hashlib.sha256(url.encode()).hexdigest()[:16]
    parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (parent / "lock").open("wb") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        for old in parent.glob("*/" + _LOCK):
            with suppress(OSError), old.open("rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(old.parent, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(prefix=f"{os.getpid()}-", dir=parent))
        alive = (folder / _LOCK).open("wb")
        fcntl.flock(alive, fcntl.LOCK_SH)
        _locks.append(alive)  # until this process ends
    atexit.register(_remove, folder, os.getpid())
    return folder


def _remove(folder: Path, owner: int) -> None:
    if os.getpid() == owner:  # not in a forked child
        shutil.rmtree(folder, ignore_errors=True)
