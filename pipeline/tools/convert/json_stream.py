"""Elements of a large JSON array one by one: an annotation file of gigabytes never exists as Python objects.

Elements are only cut apart here; each is judged on its own by the strict parser, so that one bad element does not cost
the others. Only where the syntax is broken the file is refused, because the start of the next element is unknown.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import BinaryIO

from pipeline.errors import DataError, Reason

_CHUNK_BYTES = 4 * 1024 * 1024
_MAX_ELEMENT_CHARS = 64 * 1024 * 1024
_SPACE = re.compile(r"[ \t\n\r]*")
_SCALAR = re.compile(r"[^ \t\n\r,\]}]*")
_MARKS = re.compile(r'"(?:[^"\\]++|\\.)*+("?)|[\[\]{}]', re.DOTALL)
"""A string, with its closing quote if it is there, or a bracket."""


def iterate_array(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Yield (byte offset, text as UTF-8) of each element of a JSON array.

    Raises:
        DataError: the file is not a JSON array, or is broken from some element on.
    """
    text = _Text(file)
    if text.next_token() != "[":
        raise DataError(Reason.JSON_INVALID, "not a JSON array")
    text.skip(1)
    number = 0
    if text.next_token() != "]":
        while True:
            text.next_token()
            offset = text.offset
            yield offset, text.element(number).encode("utf-8", "surrogatepass")
            number += 1
            separator = text.next_token()
            if separator == "]":
                break
            if separator != ",":
                raise _broken(number, "expected a comma or the end of the array")
            text.skip(1)
    text.skip(1)
    if text.next_token():
        raise _broken(number, "text after the end of the array")


class _Text:
    """A window of decoded text over the file."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._decode = codecs.getincrementaldecoder("utf-8-sig")()
        self._parse = json.JSONDecoder().raw_decode
        self._text, self._at, self._ended, self._num_bytes = "", 0, False, 0
        self._counted_at, self._counted_bytes = 0, 0

    @property
    def offset(self) -> int:
        """Byte of the file at which the window stands; what was passed over is counted once."""
        passed = self._text[self._counted_at : self._at]
        self._counted_bytes += len(passed.encode("utf-8", "surrogatepass"))
        self._counted_at = self._at
        return self._counted_bytes

    def next_token(self) -> str:
        """Return the next character that is not a space, without consuming it; empty at the end."""
        while True:
            self._at = self._space_end()
            if self._at < len(self._text):
                return self._text[self._at]
            if self._ended:
                return ""
            self._read_more()

    def skip(self, num_chars: int) -> None:
        self._at += num_chars

    def element(self, number: int) -> str:
        """Return the text of the value that begins here and pass over it."""
        if not self.next_token():
            raise _broken(number, "the file ends inside the array")
        while True:
            try:
                _, end = self._parse(self._text, self._at)
                refused = ""
            except RecursionError:
                end, refused = _scan_value(self._text, self._at), "nested too deep, and the file ends in it"
            except json.JSONDecodeError as error:
                end, refused = len(self._text), self._place(error)
            except ValueError:
                end, refused = _scan_value(self._text, self._at), "a number with too many digits"
            if end < len(self._text) or (self._ended and not refused):  # a number could continue in the next chunk
                start, self._at = self._at, end
                return self._text[start:end]
            if refused and (self._ended or len(self._text) - self._at > _MAX_ELEMENT_CHARS):
                raise _broken(number, refused)
            self._read_more()

    def _space_end(self) -> int:
        match = _SPACE.match(self._text, self._at)
        assert match is not None  # the pattern matches nothing as well
        return match.end()

    def _place(self, error: json.JSONDecodeError) -> str:
        """Return what is wrong, with the byte of the file at which the parser gave up."""
        unread = len(self._text[error.pos :].encode("utf-8", "surrogatepass")) + len(self._decode.getstate()[0])
        return f"{error.msg} at byte {self._num_bytes - unread}"

    def _read_more(self) -> None:
        # a window that doubles keeps the work of parsing a long element again linear in its length
        wanted = max(_CHUNK_BYTES, len(self._text) - self._at)
        _ = self.offset
        chunk = self._file.read(wanted)
        if self._num_bytes == 0 and chunk.startswith(codecs.BOM_UTF8[:1]) and codecs.BOM_UTF8.startswith(chunk[:3]):
            self._counted_bytes = len(codecs.BOM_UTF8)
        self._ended = not chunk
        self._num_bytes += len(chunk)
        try:
            self._text = self._text[self._at :] + self._decode.decode(chunk, final=self._ended)
        except UnicodeDecodeError as error:
            at = self._num_bytes - len(error.object) + error.start
            raise DataError(Reason.TEXT_INVALID_UNICODE, f"the annotation file is not UTF-8 at byte {at}") from None
        self._at = self._counted_at = 0


def _scan_value(text: str, start: int) -> int:
    """Return where the value at `start` ends, by brackets and strings alone; the end of the text if not before."""
    if text[start] not in "[{":
        scalar = _SCALAR.match(text, start)
        assert scalar is not None  # the pattern matches nothing as well
        return scalar.end()
    depth = 0
    for mark in _MARKS.finditer(text, start):
        if mark[0][0] == '"' and not mark[1]:
            break
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(mark[0], 0)
        if depth == 0:
            return mark.end()
    return len(text)


def _broken(number: int, what: str) -> DataError:
    return DataError(Reason.JSON_INVALID, f"element {number} of the array: {what}")
