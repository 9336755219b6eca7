"""Locks of files, and what to do where a file system has none: some NFS, FUSE and object-store mounts."""

from __future__ import annotations

import errno
import fcntl
from pathlib import Path

_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


def lock_file(descriptor: int, how: int, path: Path, remedy: str) -> None:
    """Lock an open file with `fcntl.flock`.

    Args:
        descriptor: The open file.
        how: LOCK_EX or LOCK_SH, with LOCK_NB or without.
        path: The file, for messages.
        remedy: What else than another mount helps, such as a setting.

    Raises:
        BlockingIOError: somebody else holds it.
        OSError: the file system has no locks, or lost the file; says what to do.
    """
    try:
        fcntl.flock(descriptor, how)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno in _NO_LOCKS:
            raise OSError(
                error.errno,
                f"the file system of {path.parent} has no locks ({error.strerror}), so two runs could mix their files: "
                f"mount it with them (NFS 4, or NFS 3 with a lock service and without nolock), or {remedy}",
            ) from error
        if error.errno == errno.ESTALE:
            raise OSError(
                error.errno,
                f"{path} is gone on the server that shares it ({error.strerror}): mount it again, or {remedy}",
            ) from error
        raise
