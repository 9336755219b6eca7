"""Marks in texts that stand for pictures, films and sounds, and how to tell them from texts that speak about them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

_NAMED = re.compile(r"<img>([^<>\n]{1,1000}?\.\w{2,5}|https?://[^<>\s]+)</img>", re.IGNORECASE)
_PLACE = re.compile(
    rf"(?P<plain><image>)|{_NAMED.pattern}|<(?:image|img)[ _-]?(?P<number>\d{{1,4}})>|<\|image_(?P<token>\d{{1,4}})\|>",
    re.IGNORECASE,
)
_FOREIGN = re.compile(
    r"<(?:video|audio)>|<\|vision_start\|>.*?<\|vision_end\|>|<\|(?:image|image_pad|video|audio|img)\|>|<ImageHere>|"
    r"<image_placeholder>|<start_of_image>",
    re.DOTALL,
)
_STARTS = re.compile(
    rf"\s*(?:<image>\s*)*(?:{_FOREIGN.pattern})(?:\s*$|\s*\n|[^\s.,;:!?)/<]|\s?[A-Z]|\s*<(?:image|video|audio)>)",
    re.DOTALL,
)
_ON_ITS_LINE = re.compile(rf"(?:^|\n)[ \t]*(?:{_FOREIGN.pattern})[ \t]*(?=\n|$)", re.DOTALL)
_ENDS = re.compile(rf"(?:[.!?\u3002\uff1f]|<image>)[ \t]*(?:{_FOREIGN.pattern})\s*$", re.DOTALL)


class Mark(NamedTuple):
    """A place in a text."""

    name: str | None = None
    """Of the picture, where the mark itself says it."""
    number: int | None = None
    """Which picture of the row, counted as its author counts."""


def split_marks(text: str, *, numbered: bool) -> list[str | Mark]:
    """Split a text at its marks; `numbered` also takes `<image 2>` for one, which needs pictures to count."""
    parts: list[str | Mark] = []
    at = 0
    for match in _PLACE.finditer(text):
        number = match["number"] or match["token"]
        if match["plain"] is None and number is not None and not numbered:
            continue
        if match["plain"] is not None and match["plain"] != "<image>":
            continue  # in other letters it is text
        if match.start() > at:
            parts.append(text[at : match.start()])
        parts.append(Mark(match[2] or None, int(number) if number else None))
        at = match.end()
    return [*parts, *([text[at:]] if at < len(text) else [])]


def foreign_marks(text: str) -> Iterator[str]:
    """Yield marks in a user's text that stand for something that cannot be shown.

    `<video>` in a text about HTML is text: a mark is where pictures are put, at the start of the text, alone on a
    line, or after the last sentence.
    """
    if re.search(r"</(?:video|audio)>", text):
        return
    for pattern in (_STARTS, _ON_ITS_LINE, _ENDS):
        if match := pattern.search(text) if pattern is not _STARTS else pattern.match(text):
            found = _FOREIGN.search(match[0])
            assert found is not None  # part of each of the patterns
            yield found[0][:24]
            return
