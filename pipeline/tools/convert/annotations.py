"""Annotation files, images in a folder or in the rows: an array of objects, or one object per line.

A row that can be written as a sample unchanged keeps its turns; any other is written as `messages`. `image` (or
`video`) is rewritten to the names that the images get in the shard; what the files were called before is kept with it.
"""

from __future__ import annotations

import codecs
import gzip
import io
import itertools
import json
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import BinaryIO, cast

import pyarrow as pa

from pipeline.errors import DataError, Reason
from pipeline.samples.annotation import read_annotation
from pipeline.samples.strict_json import MAX_JSON_BYTES, JsonValue
from pipeline.shards.storage import open_shard
from pipeline.tools.convert.frames import has_frames, read_frames, write_frames
from pipeline.tools.convert.json_stream import iterate_array
from pipeline.tools.convert.media_bytes import media_bytes, media_size
from pipeline.tools.convert.row import Reading, RowRules
from pipeline.tools.convert.row_media import is_file_name
from pipeline.tools.convert.row_reader import read_row
from pipeline.tools.convert.source import Entry, Outcome, entry_table, failed, refused, stored_bytes
from pipeline.tools.convert.turns import CAPTION_NAMES, QUESTION_NAMES, TURN_NAMES
from pipeline.tools.convert.written import kept_fields, write_members

LINE_ENDINGS = (".jsonl", ".ndjson")
_GZIP_MAGIC = b"\x1f\x8b"
_HEAD_BYTES = 2 * MAX_JSON_BYTES
MAX_ROW_BYTES = 64 * 1024 * 1024
"""Largest row: one whose pictures are written in it as base64."""
_CHUNK_ROWS = 65_536
"""Entries of a listing that are held as Python objects at a time."""
_NUM_TRIED = 17
"""Lines at the start that are looked at to tell one object per line from an array."""


@dataclass(frozen=True)
class AnnotationSource:
    """Annotation files: an object per sample, in any of the dialects that `read_row` knows."""

    files: tuple[str, ...]
    """An array each, or one object per line; see `holds_lines`."""
    image_folder: str
    rules: RowRules = field(default_factory=RowRules)
    kind: str = "annotations"

    def units(self) -> list[str]:
        """Return the annotation files."""
        return list(self.files)

    def list_unit(self, unit: str) -> pa.Table:
        """List the objects of a file with the sizes of their images and their positions in the file.

        Of a compressed file, in which nothing can be found again by its place, the text itself is listed.
        """
        chunks = Chunks(keeps_text=is_gzipped(unit))
        with open_annotations(unit) as file:
            try:
                for row, (offset, text) in enumerate(_lines(file) if holds_lines(unit) else iterate_array(file)):
                    chunks.add(self.entry(row, text), offset, text)
            except DataError as error:  # of the file: an element only costs itself
                raise error.at(shard=unit) from None
        return chunks.table()

    def read(self, unit: str, entries: pa.Table) -> Iterator[Outcome]:
        """Yield annotation and images of each entry."""
        columns = (entries[name].to_pylist() for name in ("offset", "length", "text"))
        with open_shard(unit) as file:
            for offset, length, text in zip(*columns, strict=True):
                yield self.outcome(text or _text_at(file, offset, length))

    def entry(self, row: int, text: bytes) -> Entry:
        """Return the entry of a row, given its text."""
        try:
            reading = self._reading(_parse(text))
        except DataError as error:
            return refused(row, error)
        try:
            names = {one.value if isinstance(one.value, str) else id(one): one for one in reading.media}
            sizes = [media_size(one, self.image_folder) for one in names.values()]
        except DataError as error:
            return refused(row, error)._replace(media=reading.tally.media)
        # written, it also holds each name's twin, such as `, "0.jpg"`
        sizes.append(len(text) + sum(len(str(one.value)) + 12 for one in reading.media if is_file_name(one.value)))
        return Entry(row, row, sum(stored_bytes(size) for size in sizes))

    def outcome(self, text: bytes) -> Outcome:
        """Return what a row becomes, given its text."""
        try:
            row = self.rules.fields.apply(_parse(text))
            reading = self._reading(row)
        except DataError as error:
            return failed(error)
        try:
            by_name = {
                one.value: media_bytes(one, self.image_folder) for one in reading.media if is_file_name(one.value)
            }
            contents = [
                by_name[one.value] if is_file_name(one.value) else media_bytes(one, self.image_folder)
                for one in reading.media
            ]
            if has_frames(row):
                return Outcome(write_frames(row, reading, contents, self.rules), reading.tally)
            kept = kept_fields(row, reading)
            return Outcome(write_members(reading, contents, kept, self.rules.policy), reading.tally)
        except DataError as error:
            return Outcome(error, reading.tally)

    def _reading(self, row: dict[str, JsonValue]) -> Reading:
        reading = read_frames(row, self.rules) if has_frames(row) else read_row(row, self.rules)
        if reading.caption is not None and not reading.media:
            raise DataError(
                Reason.MISSING_ANNOTATION, "an entry with neither turns nor a question, and a text without picture"
            )
        return reading


class Chunks:
    """A listing in the making; what is complete is held as Arrow, which takes some bytes per entry."""

    def __init__(self, *, keeps_text: bool) -> None:
        self._keeps_text = keeps_text
        self._tables: list[pa.Table] = []
        self._entries: list[Entry] = []
        self._places: list[tuple[int, int, bytes]] = []

    def add(self, entry: Entry, offset: int, text: bytes) -> None:
        """Take an entry in, with where its text is in the file."""
        self._entries.append(entry)
        self._places.append((offset, len(text), text if self._keeps_text and not entry.reason else b""))
        if len(self._entries) == _CHUNK_ROWS:
            self._close()

    def table(self) -> pa.Table:
        """Return the listing."""
        self._close()
        return pa.concat_tables(self._tables)

    def _close(self) -> None:
        offsets, lengths, texts = zip(*self._places, strict=True) if self._places else ((), (), ())
        columns = {
            "offset": pa.array(offsets, pa.int64()),
            "length": pa.array(lengths, pa.int64()),
            "text": pa.array(texts, pa.large_binary()),
        }
        self._tables.append(entry_table(self._entries, columns))
        self._entries, self._places = [], []


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
    """Whether an annotation file holds one object per line, by its ending or by its first lines."""
    if plain_name(path).endswith(LINE_ENDINGS):
        return True
    with open_annotations(path) as file:
        head = file.read(_HEAD_BYTES).removeprefix(codecs.BOM_UTF8).lstrip()
    return not head.startswith(b"[") and any(_is_annotation(line) for line in head.split(b"\n")[:_NUM_TRIED])


def looks_at(path: str) -> list[dict[str, JsonValue]]:
    """Return the first object of an annotation file, or the one that the whole file is; none where there is neither."""
    try:
        with open_annotations(path) as file:
            head = file.read(_HEAD_BYTES).removeprefix(codecs.BOM_UTF8).lstrip()
            if not head.startswith(b"["):
                found = [_object(line) for line in head.split(b"\n")[:_NUM_TRIED]]
                whole = [row for row in found if row]
                return whole[:1] or [row for row in [_fields_at_the_top(path)] if row]
        with open_annotations(path) as file:
            return [row for row in [_object(next(iterate_array(file), (0, b""))[1])] if row]
    except (ValueError, OSError):
        return []


def first_rows(path: str, number: int) -> list[dict[str, JsonValue]]:
    """Return the first objects of an annotation file; those that cannot be read are left out."""
    with open_annotations(path) as file:
        texts = itertools.islice(_lines(file) if holds_lines(path) else iterate_array(file), number)
        return [row for row in [_object(text) for _, text in texts] if row]


def _object(text: bytes) -> dict[str, JsonValue]:
    try:
        return _parse(text)
    except DataError:
        return {}


def _fields_at_the_top(path: str) -> dict[str, JsonValue]:
    """Return the fields of the object that a file is."""
    with open_annotations(path) as file:
        tree = json.loads(file.read())
    return tree if isinstance(tree, dict) else {}


def has_content(row: Mapping[str, JsonValue]) -> bool:
    """Whether an object has a field in which annotations say something."""
    return any(name in row for name in (*TURN_NAMES, *CAPTION_NAMES, *QUESTION_NAMES))


def _is_annotation(line: bytes) -> bool:
    try:
        return has_content(_parse(line))
    except DataError:
        return False


def _lines(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Yield (byte offset, text) of lines that are not blank; of one that is too long only the start."""
    lines = io.BufferedReader(cast(io.RawIOBase, file))
    offset = 0
    while line := lines.readline(MAX_ROW_BYTES + 2):
        size, rest = len(line), line
        while rest and not rest.endswith(b"\n"):
            rest = lines.readline(MAX_ROW_BYTES)
            size += len(rest)
        if line.strip():
            yield offset, line
        offset += size


def _text_at(file: BinaryIO, offset: int, length: int) -> bytes:
    file.seek(offset)
    return file.read(length)


def _parse(text: bytes) -> dict[str, JsonValue]:
    """Parse a row; it may be larger than the annotation it becomes, by pictures that are written in it."""
    tree = read_annotation(text, max_bytes=MAX_ROW_BYTES)
    if not isinstance(tree, dict):
        raise DataError(Reason.MISSING_ANNOTATION, "an entry that is not an object")
    return tree
