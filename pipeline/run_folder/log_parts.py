"""A growing file as numbered objects, `NAME/NUMBER`, each created once: object storage cannot append.

A part says at which byte its content begins, and takes the place of everything from there on; so a file may also be
rewritten, and many small parts be replaced by a large one. A number that is taken tells a writer that another one came
after it. Parts whose whole content was replaced by later ones are removed.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from pipeline.storage.objects import ObjectFolder

_NUMBER = re.compile(r"\d{10}")
_MERGED = 64
"""So many parts of a level are replaced by one of the next, so that a long run has few of them."""
_TRIES = 20


class _Part(NamedTuple):
    number: int
    offset: int
    level: int


@dataclass
class LogParts:
    """What is known of the parts of one file."""

    name: str
    parts: list[_Part] = field(default_factory=list)
    size_bytes: int = 0
    """Of the file that the known parts make up."""

    @property
    def last(self) -> int:
        """Number of the newest known part, 0 before the first."""
        return self.parts[-1].number if self.parts else 0

    def read_new(self, objects: ObjectFolder, content: bytes) -> bytes:
        """Return the file's content with the parts that came since.

        Args:
            objects: the run folder.
            content: of the file that the known parts make up.

        Raises:
            OSError: the storage failed, or parts vanished again and again.
        """
        for _ in range(_TRIES):
            keys = [entry.key for entry in objects.list(f"{self.name}/", after=_key(self.name, self.last))]
            try:
                found = [(_number(key), *_decode(objects.read(key).content)) for key in keys if _is_part(key)]
            except FileNotFoundError:
                continue  # replaced by a larger one since they were listed
            whole, parts, is_whole = _fold(content, self.parts, found)
            if is_whole:
                self.parts, self.size_bytes = parts, len(whole)
                return whole
        raise OSError(f"{objects.url}/{self.name}: parts are missing")

    def add(self, objects: ObjectFolder, offset: int, content: bytes, level: int = 0) -> bool:
        """Write a part; returns False when another writer has taken the number."""
        number = self.last + 1
        header = {"offset": offset, "level": level, "writer": secrets.token_hex(8)}
        if not objects.create(_key(self.name, number), json.dumps(header).encode() + b"\n" + content):
            return False
        doomed = [part for part in self.parts if part.offset >= offset]
        self.parts = [part for part in self.parts if part.offset < offset] + [_Part(number, offset, level)]
        self.size_bytes = offset + len(content)
        objects.delete(_key(self.name, part.number) for part in doomed)
        return True

    def due_merge(self) -> tuple[int, int] | None:
        """Return from which byte on a larger part should replace the newest ones, and its level; None for not yet."""
        level = self.parts[-1].level if self.parts else 0
        run = 0
        for part in reversed(self.parts):
            if part.level != level:
                break
            run += 1
        return (self.parts[-run].offset, level + 1) if run >= _MERGED else None


def log_names(keys: Iterable[str]) -> set[str]:
    """Return the names of the files whose parts are among the keys."""
    return {key.rpartition("/")[0] for key in keys if _is_part(key)}


def _fold(
    content: bytes, known: list[_Part], found: list[tuple[int, int, int, bytes]]
) -> tuple[bytes, list[_Part], bool]:
    """Put parts onto a content; returns the whole, its parts, and whether none was missing."""
    parts, whole, missing_from = list(known), bytearray(content), None
    for number, offset, level, piece in found:
        if missing_from is not None and offset <= missing_from:
            missing_from = None
        if offset > len(whole):
            missing_from = len(whole) if missing_from is None else missing_from
            continue
        del whole[offset:]
        whole += piece
        parts = [part for part in parts if part.offset < offset] + [_Part(number, offset, level)]
    return bytes(whole), parts, missing_from is None


def _key(name: str, number: int) -> str:
    return f"{name}/{number:010d}"


def _is_part(key: str) -> bool:
    return key.rpartition("/")[0].endswith(".jsonl") and bool(_NUMBER.fullmatch(key.rpartition("/")[2]))


def _number(key: str) -> int:
    return int(key.rpartition("/")[2])


def _decode(content: bytes) -> tuple[int, int, bytes]:
    header, _, rest = content.partition(b"\n")
    entry = json.loads(header)
    return int(entry["offset"]), int(entry["level"]), rest
