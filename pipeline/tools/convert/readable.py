"""Errors of pyarrow with the name of the file: its own messages do not name it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa


@contextmanager
def name_unreadable(path: str | Path, advice: str, *, where: str = "") -> Iterator[None]:
    """Turn what pyarrow raises for damaged content into an error that names the file.

    Args:
        path: file that is read in the block.
        advice: what to do about it.
        where: which part of the file is read.

    Raises:
        ValueError: the content is damaged.
        OSError: storage failed.
    """
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # of the operating system, not of the content
            raise
        place = f"{path}, {where}" if where else str(path)
        raise ValueError(f"{place}: not readable as Parquet or Arrow ({error}); {advice}") from error
