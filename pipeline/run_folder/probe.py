"""Whether an object store keeps the one promise that a run folder needs: an object is created only if it is absent."""

from __future__ import annotations

import secrets
from contextlib import suppress

from pipeline.storage.objects import ObjectFolder

_proven: set[str] = set()


def check_conditional_writes(objects: ObjectFolder) -> None:
    """Try it with a probe object, once per process and folder.

    Raises:
        ValueError: the store ignores the condition, so two runs could mix their files.
        OSError: the storage failed, or refused.
    """
    if objects.url in _proven:
        return
    key = f"probe/{secrets.token_hex(8)}"
    try:
        first, second = objects.create(key, b"first"), objects.create(key, b"second")
        is_kept = objects.read(key).content == b"first"
    finally:
        with suppress(OSError):
            objects.delete([key])
    if not first or second or not is_kept:
        raise ValueError(
            f"{objects.what} {objects.url}: this object store has no conditional writes (it ignores If-None-Match), so "
            "two runs could mix their files. Choose a store that has them (such as Amazon S3 or MinIO), or a folder "
            "that all machines of the run share, and let checkpoint.folder be the URL"
        )
    _proven.add(objects.url)
