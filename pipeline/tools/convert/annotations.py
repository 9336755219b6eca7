"""Conversations in annotation files, images in a folder: LLaVA's JSON array, or one object per line.

Both dialects (`conversations` and `messages`) are kept as they are; only `image` (or `video`) is rewritten, to the
names that the images get in the shard. What the files were called before is kept beside it.
"""

from __future__ import annotations

import codecs
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import BinaryIO, cast

import pyarrow as pa

from pipeline.errors import DataError, Reason
from pipeline.samples.annotation import read_annotation
from pipeline.samples.schema import SchemaPolicy, has_turns
from pipeline.samples.strict_json import MAX_JSON_BYTES, JsonValue
from pipeline.samples.video import has_video
from pipeline.shards.storage import open_shard
from pipeline.tools.convert.image_field import listed_names, with_stored_names
from pipeline.tools.convert.image_folder import image_extension, image_size_bytes, read_image_file
from pipeline.tools.convert.json_stream import iterate_array
from pipeline.tools.convert.repair import repair_turns
from pipeline.tools.convert.source import Entry, Members, entry_table, refused, stored_bytes

LINE_ENDINGS = (".jsonl", ".ndjson")
_GZIP_MAGIC = b"\x1f\x8b"
_HEAD_BYTES = 2 * MAX_JSON_BYTES
_NUM_TRIED = 17
"""Lines at the start that are looked at to tell one object per line from an array."""


@dataclass(frozen=True)
class AnnotationSource:
    """Annotation files in the format of LLaVA or chat messages."""

    files: tuple[str, ...]
    """An array each, or one object per line; see `holds_lines`."""
    image_folder: str
    policy: SchemaPolicy = field(default_factory=SchemaPolicy)
    """Repairs that are applied to what is written, so that the shards need none."""
    kind: str = "annotations"

    def units(self) -> list[str]:
        """Return the annotation files."""
        return list(self.files)

    def list_unit(self, unit: str) -> pa.Table:
        """List the objects of a file with the sizes of their images."""
        entries: list[Entry] = []
        texts: list[bytes] = []
        lines = holds_lines(unit)
        with open_annotations(unit) as file:
            try:
                for row, text in enumerate(_lines(file) if lines else iterate_array(file)):
                    entries.append(self._entry(row, text))
                    texts.append(b"" if entries[-1].reason else text)
            except DataError as error:  # of the file: an element only costs itself
                raise error.at(shard=unit) from None
        return entry_table(entries, {"text": pa.array(texts, pa.large_binary())})

    def read(self, unit: str, entries: pa.Table) -> Iterator[Members | DataError]:
        """Yield annotation and images of each entry."""
        for text in entries["text"]:
            try:
                yield self._members(_parse(text.as_py()))
            except DataError as error:
                yield error

    def _entry(self, row: int, text: bytes) -> Entry:
        try:
            names = listed_names(_parse(text))
            sizes = [image_size_bytes(self.image_folder, name) for name in set(names)]
        except DataError as error:
            return refused(row, error)
        # written, it also holds each name's twin, such as `, "0.jpg"`
        sizes.append(len(text) + sum(len(name) + 12 for name in names))
        return Entry(row, row, sum(stored_bytes(size) for size in sizes))

    def _members(self, tree: dict[str, JsonValue]) -> Members:
        names = listed_names(tree)
        members: Members = {}
        stored: dict[str, str] = {}
        for name in names:
            if name not in stored:
                data = read_image_file(self.image_folder, name)
                stored[name] = f"{len(stored)}.{image_extension(data)}"
                members[stored[name]] = data
        # the place of a video is `<video>`: there is never a missing `<image>` to add
        tree = repair_turns(tree, self.policy, num_images=0 if has_video(tree) else len(names))
        if names:
            tree = with_stored_names(tree, names, [stored[name] for name in names])
        members["json"] = json.dumps(tree, ensure_ascii=False).encode()
        return members


def plain_name(path: str) -> str:
    """Return a path in small letters and without the ending of gzip, to compare its ending."""
    return path.casefold().removesuffix(".gz")


def is_gzipped(path: str) -> bool:
    """Whether a file holds gzip, by its first bytes."""
    with open_shard(path) as file:
        return file.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC


@contextmanager
def open_annotations(path: str) -> Iterator[BinaryIO]:
    """Open an annotation file for reading from start to end, unpacked if it is compressed with gzip.

    Raises:
        ValueError: the compressed file is damaged.
    """
    with open_shard(path) as file:
        if not is_gzipped(path):
            yield file
            return
        try:
            with gzip.open(file) as unpacked:
                yield cast(BinaryIO, unpacked)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise ValueError(f"{path}: not readable as gzip ({error}); fetch or write the file again") from error


def holds_lines(path: str) -> bool:
    """Whether an annotation file holds one object per line: its ending says so, or one of its first lines is one."""
    if plain_name(path).endswith(LINE_ENDINGS):
        return True
    with open_annotations(path) as file:
        head = file.read(_HEAD_BYTES).removeprefix(codecs.BOM_UTF8).lstrip()
    return not head.startswith(b"[") and any(_is_annotation(line) for line in head.split(b"\n")[:_NUM_TRIED])


def _is_annotation(line: bytes) -> bool:
    try:
        return bool(_parse(line))
    except DataError:
        return False


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """Yield lines that are not blank; of one that is too long only the start, which the parser refuses by its size."""
    lines = io.BufferedReader(cast(io.RawIOBase, file))
    while line := lines.readline(MAX_JSON_BYTES + 2):
        rest = line
        while rest and not rest.endswith(b"\n"):
            rest = lines.readline(MAX_JSON_BYTES)
        if line.strip():
            yield line


def _parse(text: bytes) -> dict[str, JsonValue]:
    tree = read_annotation(text)
    if not isinstance(tree, dict) or not has_turns(tree):
        raise DataError(Reason.MISSING_ANNOTATION, "an entry with neither `conversations` nor `messages`")
    return tree
