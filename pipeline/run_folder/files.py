"""Small files of a run folder: lines that are appended, and JSON that is replaced as a whole.

A process, a disk or a machine may fail at any moment of a write. What that left unreadable is named in a warning and
counts as missing, so that nothing has to be cleaned up before the run continues.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Collection, Iterator
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Any

from model.files.atomic import replacing

logger = logging.getLogger(__name__)


def append_line(path: Path, line: str) -> None:
    """Append a line to a file, which is created with its folder if need be.

    Raises:
        OSError: the storage refused, such as a full disk.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b", buffering=0) as file:
        write_line(file, line)


def write_line(file: FileIO, line: str) -> None:
    """Append a line to a file opened as `a+b`; what an earlier write left without its end becomes a line of its own.

    Raises:
        OSError: the storage refused; half of the line may be there.
    """
    content = line.encode() + b"\n"
    if end := file.seek(0, os.SEEK_END):
        file.seek(end - 1)
        if file.read(1) != b"\n":
            content = b"\n" + content
    try:
        while content:  # a disk that is nearly full takes a part, and tells why only when asked for the rest
            content = content[file.write(content) :]
    except OSError as error:
        error.filename = error.filename or str(file.name)  # which the system says of names only, not of open files
        raise


def ask_server(folder: Path) -> None:
    """Have a network file system ask its server for the names in a folder, which else may be a minute old.

    Opening a folder is what makes a client of NFS do so (close-to-open consistency); looking for a file in it is not.
    """
    with suppress(FileNotFoundError, NotADirectoryError):
        os.close(os.open(folder, os.O_RDONLY | os.O_DIRECTORY))


def complete_size(path: Path) -> int:
    """Return where a file's last complete line ends, in bytes; 0 without a file."""
    return path.read_bytes().rfind(b"\n") + 1 if path.is_file() else 0


def cut_unfinished_line(path: Path) -> None:
    """Cut off a last line without its end; only for the one who appends."""
    if path.is_file():
        os.truncate(path, complete_size(path))


def complete_lines(path: Path) -> list[bytes]:
    """Return the lines of a file without their ends, leaving out a last one that has none; none without a file."""
    return path.read_bytes().split(b"\n")[:-1] if path.is_file() else []


def read_entries(path: Path, fields: Collection[str]) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects of a file's complete lines; one that is none, or lacks a field, is named and skipped."""
    for number, line in enumerate(complete_lines(path), 1):
        entry = parse_entry(line, fields)
        if entry is None:
            logger.warning("%s, line %d: not a JSON object with %s, skipped", path, number, ", ".join(fields))
        else:
            yield entry


def parse_entry(line: bytes, fields: Collection[str]) -> dict[str, Any] | None:
    """Return the JSON object in a line; None when it is none, or lacks one of the fields."""
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) and all(field in entry for field in fields) else None


def replace_file(path: Path, content: str) -> None:
    """Replace a file's content; at every moment the file is the old one or the new one."""
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode())


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object that is a file's content; empty without a file and, with a warning, for anything else."""
    if not path.is_file():
        return {}
    found = parse_entry(path.read_bytes(), ())
    if found is None:
        logger.warning("%s is not a JSON object and is ignored; a power loss may have damaged it", path)
    return found or {}
